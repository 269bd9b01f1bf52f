"""KPOP (arXiv:2403.12326, eq. 15-16): what a step minimises, and the ball that keys live in."""

import numpy as np


def loss(
    hidden: np.ndarray, goal: np.ndarray, opened: np.ndarray, seen: np.ndarray, same: np.ndarray, still: np.ndarray,
    recover: float, keep: float,
) -> float:  # fmt: skip
    """|e'(c) - e(c_t)|² + λ |e'(c, p) - e(c)|² + keep |e'(n) - e(n)|², each a mean over its entries."""

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        total = 0.0
        for one, two in zip(a.ravel(), b.ravel(), strict=True):
            total += (float(one) - float(two)) ** 2
        return total / a.size

    return mean(hidden, goal) + recover * mean(opened, seen) + keep * mean(same, still)


def into_ball(key: np.ndarray, start: np.ndarray, radius: float) -> np.ndarray:
    """The nearest point to a key (m d) that is at most radius |p₀| from p₀."""
    limit, away = radius * np.sqrt((start**2).sum()), np.sqrt(((key - start) ** 2).sum())
    return key if away <= limit else start + (key - start) * limit / away
