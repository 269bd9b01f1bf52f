"""Distances against Gaussians of known moments, loops over pairs, and other people's code where it is installed."""

import numpy as np
import pytest
from oracles import distances as oracle

from efface.core.errors import UsageError
from efface.metrics.distances import cmmd, frechet, frechet_moments, kernel, mmd


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def covariance(rng: np.random.Generator, d: int, rank: int) -> np.ndarray:
    a = rng.normal(size=(d, rank))
    return a @ a.T


def test_frechet_of_commuting_gaussians_is_a_sum_over_axes(rng: np.random.Generator):
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    sd1, sd2, mu1, mu2 = rng.uniform(0, 3, 5), rng.uniform(0, 3, 5), rng.normal(size=5), rng.normal(size=5)
    s1, s2 = (turn * sd1**2) @ turn.T, (turn * sd2**2) @ turn.T
    exact = ((mu1 - mu2) ** 2).sum() + ((sd1 - sd2) ** 2).sum()
    assert frechet_moments(mu1, s1, mu2, s2) == pytest.approx(exact, rel=1e-12)


def test_frechet_of_two_general_planar_gaussians():
    """tr M^½ = √(tr M + 2 √det M) for a 2 x 2 matrix M = S₁ S₂."""
    s1, s2 = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.8], [-0.8, 3.0]])
    m = s1 @ s2
    root = np.sqrt(np.trace(m) + 2 * np.sqrt(np.linalg.det(m)))
    exact = 25 + np.trace(s1) + np.trace(s2) - 2 * root
    assert frechet_moments(np.array([3.0, 0.0]), s1, np.array([0.0, 4.0]), s2) == pytest.approx(exact, rel=1e-12)


def test_frechet_estimates_the_distance_of_the_gaussians_it_sees(rng: np.random.Generator):
    mu1, mu2, s1, s2 = np.zeros(3), np.array([1.0, 0, -1]), covariance(rng, 3, 3), covariance(rng, 3, 3)
    x, y = rng.multivariate_normal(mu1, s1, 60_000), rng.multivariate_normal(mu2, s2, 50_000)
    assert frechet(x, y) == pytest.approx(frechet_moments(mu1, s1, mu2, s2), rel=0.03)


@pytest.mark.parametrize(("n", "m", "d"), [(7, 9, 40), (50, 30, 6), (3, 200, 20)])
def test_frechet_needs_no_full_rank(rng: np.random.Generator, n: int, m: int, d: int):
    x, y = rng.normal(size=(n, d)), 2 * rng.normal(size=(m, d)) + 1
    exact = oracle.frechet_without_roots(x, y)
    assert frechet(x, y, few=True) == pytest.approx(exact, rel=1e-6)  # roots of rounded zeros
    assert frechet(x, y, few=True) == pytest.approx(frechet(y, x, few=True), rel=1e-6)
    assert frechet(x[::-1], rng.permutation(y), few=True) == pytest.approx(exact, rel=1e-6)
    assert frechet(x, x, few=True) == pytest.approx(0, abs=1e-5)
    assert frechet(3 * x, 3 * y, few=True) == pytest.approx(9 * exact, rel=1e-6)
    assert frechet(x.astype(np.float32), y, few=True) == pytest.approx(exact, rel=1e-4)


def test_frechet_of_few_pictures_is_refused():
    x = np.zeros((2047, 2))
    with pytest.raises(UsageError, match=r"at least 2048 pictures in each set, got 2100 and 2047; .*few=True"):
        frechet(np.zeros((2100, 2)), x)
    assert frechet(x, x, few=True) == 0.0
    with pytest.raises(UsageError, match="at least 2 pictures in each set, got 1 and 2047; give more"):
        frechet(x[:1], x, few=True)


@pytest.mark.parametrize(("n", "m", "degree"), [(5, 9, 3), (2, 2, 3), (8, 3, 1), (6, 6, 2)])
def test_mmd_counts_every_pair_but_not_a_picture_with_itself(rng: np.random.Generator, n: int, m: int, degree: int):
    x, y = rng.normal(size=(n, 4)), rng.normal(size=(m, 4)) + 0.5
    assert mmd(x, y, degree=degree) == pytest.approx(oracle.unbiased_mmd(x, y, degree), rel=1e-10, abs=1e-12)
    assert mmd(y, x, degree=degree) == pytest.approx(mmd(x, y, degree=degree), rel=1e-10)
    assert mmd(rng.permutation(x), y[::-1], degree=degree) == pytest.approx(mmd(x, y, degree=degree), rel=1e-10)
    assert kernel(x, y, degree=degree) == (pytest.approx(mmd(x, y, degree=degree)), 0.0)


def test_mmd_is_unbiased(rng: np.random.Generator):
    """With degree 1 the population value is |μ₁ - μ₂|²/d, whatever the counts."""
    shift = np.array([1.0, 0, 0, 0])
    estimates = [mmd(rng.normal(size=(6, 4)), rng.normal(size=(11, 4)) + shift, degree=1) for _ in range(300)]
    assert np.mean(estimates) == pytest.approx(0.25, abs=4 * np.std(estimates) / 300**0.5)
    same = [mmd(rng.normal(size=(6, 4)), rng.normal(size=(11, 4))) for _ in range(300)]
    assert np.mean(same) == pytest.approx(0, abs=4 * np.std(same) / 300**0.5)
    assert min(same) < 0


def test_kernel_draws_subsets_of_its_own(rng: np.random.Generator):
    x, y = rng.normal(size=(300, 4)), rng.normal(size=(90, 4)) + 0.5
    mean, std = kernel(x, y, subsets=200, size=60)
    assert mean == pytest.approx(mmd(x, y), abs=4 * std / 200**0.5)
    assert std > 0
    assert kernel(x, y, subsets=200, size=60) == (mean, std)
    assert kernel(x, y, subsets=200, size=60, seed=1) != (mean, std)
    assert kernel(x, y, subsets=20, size=100)[1] > 0  # the larger set is still drawn from
    assert kernel(x, y, size=300)[0] == pytest.approx(mmd(x, y))
    with pytest.raises(UsageError, match="at least 2 pictures in each set, got 300 and 1"):
        kernel(x, y[:1])


@pytest.mark.parametrize("sigma", [10.0, 0.7])
def test_cmmd_is_the_mean_over_all_pairs_of_unit_vectors(rng: np.random.Generator, sigma: float):
    x, y = rng.normal(size=(5, 6)), rng.normal(size=(8, 6)) + 1
    exact = oracle.cmmd(x, y, sigma, 1000.0)
    assert exact > 0.1
    assert cmmd(x, y, sigma=sigma) == pytest.approx(exact, rel=1e-8)
    assert cmmd(y[::-1], 7 * x, sigma=sigma) == pytest.approx(exact, rel=1e-8)  # length does not matter
    assert cmmd(x, x, sigma=sigma) == pytest.approx(0, abs=1e-9)
    assert cmmd(x, y, sigma=sigma, scale=1.0) == pytest.approx(exact / 1000, rel=1e-8)


def test_cmmd_sums_blocks(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch):
    x, y = rng.normal(size=(37, 6)), rng.normal(size=(20, 6)) + 1
    whole = cmmd(x, y)
    monkeypatch.setattr("efface.metrics.distances.BLOCK", 8)
    assert cmmd(x, y) == pytest.approx(whole, rel=1e-10)


@pytest.mark.filterwarnings("ignore")  # theirs
def test_frechet_and_mmd_as_torchmetrics_has_them(rng: np.random.Generator):
    fid, kid = pytest.importorskip("torchmetrics.image.fid"), pytest.importorskip("torchmetrics.image.kid")
    import torch

    x, y = rng.normal(size=(40, 8)), rng.normal(size=(40, 8)) * 1.5 + 0.3
    tx, ty = torch.from_numpy(x), torch.from_numpy(y)
    theirs = fid._compute_fid(tx.mean(0), tx.T.cov(), ty.mean(0), ty.T.cov()).item()
    assert frechet(x, y, few=True) == pytest.approx(theirs, rel=1e-9)
    assert mmd(x, y) == pytest.approx(kid.poly_mmd(tx, ty).item(), rel=1e-9)
