"""Intervals and tests for rates and scores, without torch: a report needs none, and numpy only where means are drawn again."""

import random
from array import array
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from math import comb, sqrt
from statistics import NormalDist, fmean, pstdev, stdev
from typing import NamedTuple, TypeVar

DRAWN = 2**20  # values drawn at once: 16 MB

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


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
    """McNemar's exact two-sided p-value (1947) for equally many changes in both directions: a sign test on the changed pairs.

    Args:
        lost: pairs found before and not after.
        won: pairs found after and not before.
    """
    n, k = lost + won, min(lost, won)
    return min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n)


def holm(pvalues: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the given order (S. Holm 1979): at or under α where the family's error stays under α."""
    adjusted, worst = [0.0] * len(pvalues), 0.0
    for place, i in enumerate(sorted(range(len(pvalues)), key=pvalues.__getitem__)):
        worst = max(worst, min(1.0, (len(pvalues) - place) * pvalues[i]))
        adjusted[i] = worst
    return adjusted


def pooled(groups: Iterable[Iterable[float]]) -> float:
    """The mean of all values of all groups: `bootstrap(groups, pooled)` draws whole groups, as pictures of one concept."""
    return fmean(chain.from_iterable(groups))


def bootstrap(
    values: Sequence[T],
    statistic: Callable[[Sequence[T]], float] = fmean,  # pyright: ignore[reportArgumentType]  # of floats
    *,
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic (B. Efron 1979), the same for the same seed.

    Args:
        values: the sample to draw from with replacement: numbers, or whole groups for a statistic such as `pooled`.
        statistic: function of a sample of equal size.
        confidence: coverage of the interval.
        draws: number of bootstrap samples.
        seed: random seed.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("bootstrap: expected values, got none; leave the interval out")
    if statistic is fmean:
        return _mean_interval(array("d", sorted(values)).tobytes(), confidence, draws, seed)  # pyright: ignore[reportArgumentType]
    rng = random.Random(seed)
    return _middle([statistic(rng.choices(values, k=len(values))) for _ in range(draws)], confidence)


@lru_cache(maxsize=64)  # pages ask for the interval of one mean several times
def _mean_interval(values: bytes, confidence: float, draws: int, seed: int) -> tuple[float, float]:
    """The interval of the mean of sorted float64 values: the same values in any order have the same interval."""
    import numpy as np  # here, so that a report of rates needs none

    given, rng = np.frombuffer(values), np.random.default_rng(seed)
    rows = max(1, DRAWN // len(given))
    means = [
        given[rng.integers(len(given), size=(min(rows, draws - i), len(given)))].mean(1) for i in range(0, draws, rows)
    ]
    return _middle(np.concatenate(means).tolist(), confidence)


class Difference(NamedTuple):
    """Mean difference of `n` pairs with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int


def paired(before: Mapping[K, float | None], after: Mapping[K, float | None], *, seed: int = 0) -> Difference:
    """Mean of after - before over equal keys (prompt, seed), with a bootstrap interval that draws pairs.

    A pair with a None on either side, a failed detector, is left out of `n`.

    Raises:
        ValueError: a key has no partner, or nothing is left.
    """
    if alone := before.keys() ^ after.keys():
        one = min(map(repr, alone))
        raise ValueError(
            f"paired: expected the same keys before and after, got {len(alone)} alone, such as {one}; score both"
        )
    both = ((before[key], after[key]) for key in before)
    differences = [new - old for old, new in both if old is not None and new is not None]
    if not differences:
        raise ValueError("paired: expected at least one pair with both scores, got none; score both models")
    return Difference(fmean(differences), *bootstrap(differences, seed=seed), len(differences))


class Spread(NamedTuple):
    """A method's score over its training seeds: the mean of their means, and the standard deviation of these means."""

    mean: float
    population_std: float
    sample_std: float  # NaN for one training seed
    low: float  # of the 95 % interval of the mean
    high: float
    seeds: int


def spread(values_by_training_seed: Mapping[int, Sequence[float]], *, draws: int = 2000, seed: int = 0) -> Spread:
    """Summary of one method trained with several seeds, each scored on its pictures (J prompts with K sampling seeds each).

    The interval draws training seeds, then pictures within each drawn one. With fewer than some five training seeds it is too
    narrow: report their number with it.

    Raises:
        ValueError: no training seed, or one without scores.
    """
    runs = list(values_by_training_seed.values())
    if not runs or not all(runs):
        raise ValueError("spread: expected scores for every training seed, got a seed without; leave it out")
    means, rng = [fmean(run) for run in runs], random.Random(seed)
    drawn = [fmean(fmean(rng.choices(run, k=len(run))) for run in rng.choices(runs, k=len(runs))) for _ in range(draws)]
    sample = stdev(means) if len(means) > 1 else float("nan")
    return Spread(fmean(means), pstdev(means), sample, *_middle(drawn, 0.95), len(runs))


def _middle(drawn: list[float], confidence: float) -> tuple[float, float]:
    """The quantiles that leave equal shares outside, interpolated between neighbours."""
    drawn.sort()

    def quantile(q: float) -> float:
        at = q * (len(drawn) - 1)
        i = min(int(at), len(drawn) - 2)
        return drawn[i] + (at - i) * (drawn[i + 1] - drawn[i])

    return quantile(0.5 - confidence / 2), quantile(0.5 + confidence / 2)
