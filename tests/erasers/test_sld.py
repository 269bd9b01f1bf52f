"""SLD: whole trajectories against the equations in NumPy, the paper's numbers, and what each of them switches off."""

import numpy as np
import pytest
import torch
from oracles import schedule
from oracles.sld import Safe
from toys import MixtureDenoiser, pipeline

from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.edit import Edit
from efface.erasers.sld import SLD

CONFIGURATIONS = {  # of the paper: s_S, λ, δ, s_m, β_m
    "weak": (200, 0.0, 15, 0.0, 0.0),
    "medium": (1000, 0.01, 10, 0.3, 0.4),
    "strong": (2000, 0.025, 7, 0.5, 0.7),
    "max": (5000, 1.0, 0, 0.5, 0.7),
}
SOFT = {"scale": 3.0, "threshold": 0.05, "warmup": 2, "momentum": 0.4, "beta": 0.6}  # where μ is between 0 and 1


def numbers(eraser: SLD) -> tuple[float, ...]:
    return eraser.scale, eraser.threshold, eraser.warmup, eraser.momentum, eraser.beta


@pytest.fixture(scope="module")
def exact() -> MixtureDenoiser:
    return MixtureDenoiser(pipeline())


def fit(model: Denoiser, concept: Concept, **settings: float) -> Edit:
    return SLD(**settings).fit(model, concept)  # type: ignore[arg-type]


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("target", ["", "cat"])
@pytest.mark.parametrize("negative", ["", "sad"])
def test_a_whole_trajectory_is_the_papers_in_numpy(
    exact: MixtureDenoiser, guidance: float, target: str, negative: str
) -> None:
    edited = fit(exact, Concept("tiger", target), **SOFT)(exact)
    texts = [negative, "a red house", "tiger,", f"{target}," if target else negative]
    means = [m.double().numpy() for m in exact.means(exact.embed(texts))]
    combine, bars = Safe(**SOFT), schedule.alphas_cumprod()

    def eps(x: np.ndarray, t: int) -> np.ndarray:
        bar = bars[t]
        null, prompt, concept, neutral = (
            (1 - bar) ** 0.5 * (x - bar**0.5 * m) / (bar * exact.spread**2 + 1 - bar) for m in means
        )
        return combine(null, prompt, concept, guidance, neutral)

    expected = schedule.ddim(exact.noise([5])[0].double().numpy(), eps, steps=8)
    how = {"seeds": [5], "steps": 8, "guidance": guidance, "record": True, "negative": negative}
    path = edited.sample(exact.embed(texts[1:2]), **how)
    np.testing.assert_allclose(path[:, 0].numpy(), np.stack(expected), atol=5e-4)  # float32 against float64
    plain = exact.sample(exact.embed(texts[1:2]), **how)
    assert torch.allclose(plain[2], path[2], atol=1e-4)  # the warm-up
    assert (plain[-1] - path[-1]).abs().max() > 0.05


def test_presets_are_the_papers_configurations() -> None:
    assert {k: numbers(SLD.preset(k)) for k in CONFIGURATIONS} == CONFIGURATIONS  # type: ignore[arg-type]
    assert SLD() == SLD.preset("medium")
    assert SLD.preset("weak20", scale=200.0) == SLD.preset("weak")


def test_what_switches_it_off(exact: MixtureDenoiser) -> None:
    cond = exact.embed(["a tiger"])
    plain = exact.sample(cond, seeds=[1], steps=4)
    off = {"scale": 0.0}, {"warmup": 4}, {"threshold": -100.0}
    for settings in off:
        drawn = fit(exact, Concept("tiger"), **{**SOFT, **settings})(exact).sample(cond, seeds=[1], steps=4)
        torch.testing.assert_close(drawn, plain, atol=1e-4, rtol=0)
    on = fit(exact, Concept("tiger"), **{**SOFT, "warmup": 3})(exact).sample(cond, seeds=[1], steps=4)
    assert (on - plain).abs().max() > 1e-3


def test_momentum_gathers_while_the_warmup_lasts(exact: MixtureDenoiser) -> None:
    cond = exact.embed(["a red house"])
    one, two = (
        fit(exact, Concept("tiger"), **{**SOFT, "warmup": 3, "momentum": m})(exact).sample(cond, seeds=[1], steps=4)
        for m in (0.0, 0.9)
    )
    assert (one - two).abs().max() > 1e-3  # only the last step is pushed, and the memory is in it


def test_a_prompt_of_the_very_concept_is_steered_away_from_it(exact: MixtureDenoiser) -> None:
    edited = SLD.preset("max").fit(exact, "tiger")(exact)
    mean = exact.means(exact.embed(["tiger,"]))
    near = [
        float((m.sample(m.embed(["tiger"]), seeds=range(4), steps=10) - mean).square().mean()) for m in (exact, edited)
    ]
    assert near[1] > 1.2 * near[0]
