"""Distances between feature sets, picture by picture, from their papers' definitions."""

from math import exp, sqrt

import numpy as np


def unbiased_mmd(x, y, degree) -> float:  # noqa: ANN001
    """Gretton et al. 2012, eq. 3, one pair at a time."""

    def k(a, b) -> float:  # noqa: ANN001
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** degree

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def cmmd(x, y, sigma, scale) -> float:  # noqa: ANN001
    """The biased MMD² of unit vectors with a Gaussian kernel, one pair at a time."""

    def k(a, b) -> float:  # noqa: ANN001
        a, b = ([v / sqrt(sum(u * u for u in c)) for v in c] for c in (a, b))
        return exp(-sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / (2 * sigma**2))

    def mean(left, right) -> float:  # noqa: ANN001
        return sum(k(a, b) for a in left for b in right) / (len(left) * len(right))

    return scale * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


def frechet_without_roots(x, y) -> float:  # noqa: ANN001
    """Heusel et al. 2017, eq. 6, by tr (S₁ S₂)^½ = the nuclear norm of A Bᵀ, where S₁ = AᵀA and S₂ = BᵀB: no covariance, no root."""
    a, b = ((c - c.mean(0)) / sqrt(len(c) - 1) for c in (x, y))
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * cross)
