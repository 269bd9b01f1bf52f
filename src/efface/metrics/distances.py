"""Distances between two sets of pictures, from their features (n d): pure functions in float64.

The name under which a distance may be quoted depends on the features: `efface.metrics.trunks.distance_name`.
"""

import numpy as np
from jaxtyping import Float, Num

from efface.core.errors import UsageError

ENOUGH = (
    2048  # pictures; Inception's features have as many dimensions, and the Fréchet distance is biased upwards below
)
BLOCK = 1024  # rows of a kernel matrix held at once


def frechet_moments(
    mu1: Float[np.ndarray, " d"],
    s1: Float[np.ndarray, "d d"],
    mu2: Float[np.ndarray, " d"],
    s2: Float[np.ndarray, "d d"],
) -> float:
    """|μ₁ - μ₂|² + tr(S₁ + S₂ - 2 (S₁^½ S₂ S₁^½)^½): the squared Fréchet distance of two Gaussians.

    Heusel et al. 2017, arXiv:1706.08500, eq. 6. The product in the paper, S₁ S₂, has the same eigenvalues; this one is symmetric, so
    its root is real with any rank.
    """
    values, vectors = np.linalg.eigh(s1)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ s2 @ root).clip(0)).sum()
    return float(((mu1 - mu2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * cross)


def frechet(x: Num[np.ndarray, "n d"], y: Num[np.ndarray, "m d"], *, few: bool = False) -> float:
    """Fréchet distance of the Gaussians with the features' means and (n - 1) covariances (Heusel et al. 2017, eq. 6).

    Args:
        x: features of one set.
        y: features of the other.
        few: allow fewer than 2048 pictures; the estimate is then too large, by an amount that depends on their number.

    Raises:
        UsageError: too few pictures.
    """
    least = 2 if few else ENOUGH
    if min(len(x), len(y)) < least:
        remedy = "give more" if few else "give more, use the kernel distance, or allow it with few=True"
        raise UsageError(
            f"frechet: expected at least {least} pictures in each set, got {len(x)} and {len(y)}; {remedy}"
        )
    x, y = x.astype(np.float64), y.astype(np.float64)
    return frechet_moments(
        x.mean(0), np.atleast_2d(np.cov(x, rowvar=False)), y.mean(0), np.atleast_2d(np.cov(y, rowvar=False))
    )


def mmd(x: Num[np.ndarray, "n d"], y: Num[np.ndarray, "m d"], *, degree: int = 3) -> float:
    """Unbiased squared MMD with the kernel (x·y/d + 1)^degree; negative when the sets are closer than chance.

    Gretton et al. 2012, eq. 3, for unequal counts; the kernel is KID's (Bińkowski et al. 2018, arXiv:1801.01401).

    Raises:
        UsageError: a set has fewer than two pictures.
    """
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise UsageError(f"mmd: expected at least 2 pictures in each set, got {n} and {m}; give more")
    x, y = x.astype(np.float64), y.astype(np.float64)
    xx, yy, xy = (_polynomial(a, b, degree) for a, b in ((x, x), (y, y), (x, y)))
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within - 2 * xy.mean())


def _polynomial(x: np.ndarray, y: np.ndarray, degree: int) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** degree


def kernel(
    x: Num[np.ndarray, "n d"],
    y: Num[np.ndarray, "m d"],
    *,
    degree: int = 3,
    subsets: int = 100,
    size: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Mean and population standard deviation of the unbiased squared MMD over random subsets (KID).

    Args:
        x: features of one set.
        y: features of the other.
        degree: of the polynomial kernel.
        subsets: how many are drawn, without replacement within each.
        size: pictures of each set in a subset; all of a smaller set. When both sets are that small, every subset is the same and
            the deviation says nothing: give a smaller size to see one.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    values = [
        mmd(_draw(x, size, rng), _draw(y, size, rng), degree=degree)
        for _ in range(subsets if max(len(x), len(y)) > size else 1)
    ]
    return float(np.mean(values)), float(np.std(values))


def _draw(x: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    return x if len(x) <= size else x[rng.choice(len(x), size, replace=False)]


def cmmd(x: Num[np.ndarray, "n d"], y: Num[np.ndarray, "m d"], *, sigma: float = 10.0, scale: float = 1000.0) -> float:
    """`scale` times the squared MMD with kernel exp(-|x - y|² / 2σ²) on unit vectors (Jayasumana et al. 2024, arXiv:2401.09603).

    The V-statistic, equal pictures counted too, as in the released code (the paper writes the unbiased one): never negative, and
    0 for the same set. Comparable with published values only on embeddings of CLIP ViT-L/14 at 336 pixels.
    """
    x, y = (a.astype(np.float64) / np.linalg.norm(a.astype(np.float64), axis=1, keepdims=True) for a in (x, y))

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        # |a - b|² = 2 - 2 a·b for unit vectors
        rows = (np.exp((a[i : i + BLOCK] @ b.T - 1) / sigma**2).sum() for i in range(0, len(a), BLOCK))
        return float(sum(rows)) / (len(a) * len(b))

    return scale * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
