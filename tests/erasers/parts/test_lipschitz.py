"""The Lipschitz bounds of cross-attention: they hold, and the paper's softmax constant does not."""

import numpy as np
import pytest
import torch
from oracles import cpe as oracle
from torch import nn

from efface.core.denoiser import Denoiser
from efface.erasers.parts.lipschitz import cross_attention, normalised, of_sites, released


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_the_coefficients_are_the_theorems(heads: int) -> None:
    rng = torch.Generator().manual_seed(heads)
    q, v, out = (torch.randn(8, d, generator=rng) for d in (8, 5, 8))
    expected = oracle.coefficients(*(w.double().numpy() for w in (q, v, out)), heads, 2.0, 3.0)
    assert cross_attention(q, v, out, heads, 2.0, 3.0) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("size", [1e-3, 0.3, 3.0])
def test_no_change_of_keys_and_values_moves_the_output_further(size: float) -> None:
    rng, c, d, m, heads = np.random.default_rng(0), 8, 6, 5, 2
    worst = 0.0
    for _ in range(200):
        w_q, w_k, w_v, w_o = (rng.normal(size=s) for s in ((c, c), (c, d), (c, d), (c, c)))
        z, e = rng.normal(size=c), rng.normal(size=(m, d))
        dk, dv = (size * rng.normal(size=(m, c)) for _ in range(2))
        k, v = e @ w_k.T, e @ w_v.T
        moved = oracle.cross_attention(w_q @ z, k + dk, v + dv, w_o, heads) - oracle.cross_attention(
            w_q @ z, k, v, w_o, heads
        )
        lam_k, lam_v = cross_attention(
            *(torch.from_numpy(w).float() for w in (w_q, w_v, w_o)),
            heads,
            float(np.linalg.norm(z)),
            float(np.linalg.norm(e)),
        )
        bound = lam_k * np.linalg.norm(dk) + lam_v * np.linalg.norm(dv)
        worst = max(worst, float(np.linalg.norm(moved) / bound))
    assert 0.01 < worst <= 1


def test_half_is_the_constant_of_a_softmax_and_the_papers_is_none() -> None:
    m = 77
    x, step = np.full(m, -30.0), np.zeros(m)
    x[:2], step[:2] = 0.0, (1e-3, -1e-3)  # two tokens share the attention
    slope = np.linalg.norm(oracle.softmax(x + step) - oracle.softmax(x)) / np.linalg.norm(step)
    assert slope == pytest.approx(0.5, rel=1e-3)
    assert slope > 4 * np.sqrt(m - 1) / m


def test_a_layer_norm_lets_nothing_larger_out() -> None:
    norm, rng = nn.LayerNorm(6), torch.Generator().manual_seed(0)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(6, generator=rng))
        norm.bias.copy_(torch.randn(6, generator=rng))
        largest = float(norm(10 * torch.randn(5000, 6, generator=rng)).norm(dim=1).max())
    assert 0.5 * normalised(norm) < largest <= normalised(norm)


@pytest.mark.parametrize("as_released", [False, True])
def test_every_site_has_the_bound_of_its_own_attention(base: Denoiser, as_released: bool) -> None:
    sites = [name.removesuffix(".weight") for name in base.params("xattn.kv")]
    rows = base.embed(["tiger", "a house"]).tokens
    found = dict(zip(sites, of_sites(base, sites, rows, as_released), strict=True))
    m_e = max(np.linalg.norm(r) for r in rows.double().numpy())
    parts = {name: p.double().numpy() for name, p in base.params("denoiser").items()}
    assert len({round(v, 6) for v in found.values()}) == len(sites)
    for site in sites:
        block, _, name = site.rpartition(".attn2.")
        q, v, out = (parts[f"{block}.attn2.{w}.weight"] for w in ("to_q", "to_v", "to_out.0"))
        gain, bias = parts[f"{block}.norm2.weight"], parts[f"{block}.norm2.bias"]
        heads = base.pipeline.unet.get_submodule(f"{block}.attn2".removeprefix("unet.")).heads
        m_z = abs(gain).max() * len(gain) ** 0.5 + np.linalg.norm(bias)
        expected = oracle.coefficients(q, v, out, heads, m_z, m_e)
        if as_released:
            largest = [np.linalg.svd(w, compute_uv=False).max() for w in (out @ v, q, out)]
            expected = (largest[0] * largest[1] / rows.shape[1], largest[2])
        assert found[site] == pytest.approx(expected[name == "to_v"], rel=1e-4)


def test_the_released_ones_leave_out_what_comes_in() -> None:
    eye = torch.eye(4)
    assert released(2 * eye, 3 * eye, 5 * eye, 10) == pytest.approx((3.0, 5.0))
