"""Conversions between predictions, against closed forms in float64."""

import numpy as np
import pytest
import torch
from oracles import schedule as oracle
from torch import Tensor

from efface.core.schedule import Prediction, Schedule

KINDS: list[Prediction] = ["epsilon", "v_prediction", "flow"]
LEVELS = np.array([0, 250, 999])


def schedule(kind: Prediction) -> Schedule:
    """Stable Diffusion's levels, or those of a straight path from pictures to noise, in float64."""
    if kind == "flow":
        sigma = torch.linspace(0.001, 1, 1000, dtype=torch.float64)
        return Schedule(1 - sigma, sigma, kind)
    return Schedule.variance_preserving(torch.from_numpy(oracle.alphas_cumprod()), kind)


def drawn() -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.random.default_rng(0).normal(size=(2, 3, 4, 2, 2)))


@pytest.mark.parametrize("kind", KINDS)
def test_conversions_are_the_closed_forms(kind: Prediction) -> None:
    s, (x0, eps), t = schedule(kind), drawn(), torch.from_numpy(LEVELS)
    if kind == "flow":
        sigma = [(i + 1) / 1000 for i in LEVELS]
        x = np.stack([(1 - n) * a + n * e for n, a, e in zip(sigma, x0, eps, strict=True)])
        native = eps - x0
    else:
        bars = oracle.alphas_cumprod()[LEVELS]
        x = np.stack([bar**0.5 * a + (1 - bar) ** 0.5 * e for bar, a, e in zip(bars, x0, eps, strict=True)])
        v = np.stack([oracle.velocity(a, e, bar) for bar, a, e in zip(bars, x0, eps, strict=True)])
        native = eps if kind == "epsilon" else v
    clean, noise, noisy, pred = (torch.from_numpy(a) for a in (x0, eps, x, native))
    np.testing.assert_allclose(s.add_noise(clean, t, noise).numpy(), x, atol=1e-14)
    np.testing.assert_allclose(s.native(clean, t, noise).numpy(), native, atol=1e-14)
    np.testing.assert_allclose(s.to_x0(noisy, t, pred).numpy(), x0, atol=1e-12)  # α = 0.07 at t = 999 of ε
    np.testing.assert_allclose(s.to_eps(noisy, t, pred).numpy(), eps, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_at_every_level_conversions_return_to_where_they_began(kind: Prediction) -> None:
    s, t = schedule(kind), torch.arange(1000)
    x0, eps = torch.randn(2, 1000, 5, dtype=torch.float64)
    x, pred = s.add_noise(x0, t, eps), s.native(x0, t, eps)
    torch.testing.assert_close(s.to_x0(x, t, pred), x0, atol=1e-11, rtol=0)
    torch.testing.assert_close(s.to_eps(x, t, pred), eps, atol=1e-11, rtol=0)
    torch.testing.assert_close(s.native(s.to_x0(x, t, pred), t, s.to_eps(x, t, pred)), pred, atol=1e-11, rtol=0)


@pytest.mark.parametrize("kind", ["v_prediction", "flow"])
def test_where_all_is_noise_the_prediction_still_says_what_is_clean(kind: Prediction) -> None:
    """A schedule with zero signal-to-noise ratio at its end: α = 0, σ = 1."""
    end = torch.tensor([0.5, 0.0], dtype=torch.float64)
    s = Schedule(1 - end.flip(0), end.flip(0), kind) if kind == "flow" else Schedule.variance_preserving(end, kind)
    s = Schedule(torch.tensor([0.5, 0.0]).double(), torch.tensor([0.5, 1.0]).double(), kind) if kind == "flow" else s
    x0, eps = torch.randn(2, 1, 7, dtype=torch.float64)
    t = torch.tensor([1])
    x, pred = s.add_noise(x0, t, eps), s.native(x0, t, eps)
    assert torch.equal(x, eps)
    torch.testing.assert_close(pred, -x0 if kind == "v_prediction" else eps - x0, atol=0, rtol=0)
    torch.testing.assert_close(s.to_x0(x, t, pred), x0, atol=1e-15, rtol=0)
    assert torch.equal(s.to_eps(x, t, pred), x)
    assert s.native_change(x, t, torch.zeros_like(x)).abs().max() == 0  # not 0 / 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_of_the_noise_is_the_change_of_the_prediction(kind: Prediction) -> None:
    s, t = schedule(kind), torch.tensor([0, 500, 900])
    x, pred, change = torch.randn(3, 3, 6, dtype=torch.float64)
    moved: Tensor = pred + s.native_change(x, t, change)
    torch.testing.assert_close(s.to_eps(x, t, moved), s.to_eps(x, t, pred) + change, atol=1e-12, rtol=0)


def test_numbers_have_the_latents_shape_and_dtype() -> None:
    s = Schedule.variance_preserving(torch.tensor([0.25, 0.75]), "epsilon")
    a, sigma = s.at(torch.zeros(3, 4, 2, 2, dtype=torch.float16), torch.tensor([0, 1, 0]))
    assert a.shape == sigma.shape == (3, 1, 1, 1)
    assert a.dtype == torch.float16
    assert a.flatten()[0] == 0.5
    assert len(s) == 2
