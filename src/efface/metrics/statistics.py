"""Intervals and tests for rates, in plain Python: a report needs no torch."""

from math import comb, sqrt
from statistics import NormalDist


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a rate (E. B. Wilson 1927); (0, 1) when nothing was counted.

    Raises:
        ValueError: `successes` is not between 0 and `n`.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"wilson: expected 0 <= successes <= n, got {successes} of {n}")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate, z2 = successes / n, z * z / n
    middle, half = (rate + z2 / 2) / (1 + z2), z / (1 + z2) * sqrt(rate * (1 - rate) / n + z2 / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def mcnemar(lost: int, won: int) -> float:
    """Exact two-sided p-value that as many pairs change one way as the other (Q. McNemar 1947): a sign test on the changed pairs.

    Args:
        lost: pairs found before and not after.
        won: pairs found after and not before.
    """
    n, k = lost + won, min(lost, won)
    return min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n)
