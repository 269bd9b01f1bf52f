"""The negative prompt: the sampler's own, asked for by an edit."""

import numpy as np
import torch
from oracles import schedule
from oracles.sld import negative
from toys import MixtureDenoiser, pipeline

from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.erasers.negative import NegativePrompt

SEEDS = [1, 2, 3]


def test_it_is_the_samplers_negative_prompt(base: Denoiser) -> None:
    edited, cond = NegativePrompt().fit(base, ["tiger", "Car"])(base), base.embed(["a tiger", "house", ""])
    for scale in (1.0, 3.0, [1.0, 7.5, 0.0]):
        ours = edited.sample(cond, seeds=SEEDS, steps=3, guidance=scale)
        plain = base.sample(cond, seeds=SEEDS, steps=3, guidance=scale, negative="car, tiger")
        torch.testing.assert_close(ours, plain, atol=5e-4, rtol=1e-4)
    beside = edited.sample(cond, seeds=SEEDS, steps=3, negative="sad dog")
    plain = base.sample(cond, seeds=SEEDS, steps=3, negative="car, tiger, sad dog")
    torch.testing.assert_close(beside, plain, atol=5e-4, rtol=1e-4)
    long = " ".join(["happy"] * 20)  # cut off by the text encoder, not the concept
    away = [m.sample(cond, seeds=SEEDS, steps=3, negative=long) for m in (base, edited)]
    assert (away[1] - away[0]).abs().max() > 0.01
    assert (beside - edited.sample(cond, seeds=SEEDS, steps=3)).abs().max() > 0.01


def test_a_trajectory_of_exact_predictions_is_the_formula_in_numpy() -> None:
    model = MixtureDenoiser(pipeline())
    house, tiger = (m.double().numpy() for m in model.means(model.embed(["house", "tiger"])))

    def eps(x: np.ndarray, t: int) -> np.ndarray:
        bar = schedule.alphas_cumprod()[t]
        said, unwanted = (
            (1 - bar) ** 0.5 * (x - bar**0.5 * m) / (bar * model.spread**2 + 1 - bar) for m in (house, tiger)
        )
        return negative(said, unwanted, 3.0)

    expected = schedule.ddim(model.noise([5])[0].double().numpy(), eps, steps=8)
    edited = NegativePrompt().fit(model, "tiger")(model)
    path = edited.sample(model.embed(["house"]), seeds=[5], steps=8, guidance=3.0, record=True)
    np.testing.assert_allclose(path[:, 0].numpy(), np.stack(expected), atol=5e-4)  # float32 against float64


def test_without_guidance_it_does_nothing_and_with_a_target_it_goes_there() -> None:
    model = MixtureDenoiser(pipeline())
    cond = model.embed(["tiger"])
    edited = NegativePrompt().fit(model, Concept("tiger", "cat"))(model)
    plain, off = (m.sample(cond, seeds=SEEDS, steps=6, guidance=1.0) for m in (model, edited))
    torch.testing.assert_close(off, plain, atol=1e-4, rtol=0)
    tiger, cat = model.means(model.embed(["tiger", "cat"]))
    plain, on = (m.sample(cond, seeds=SEEDS, steps=6, guidance=3.0) for m in (model, edited))
    assert ((on - plain).mean(0) * (cat - tiger)).sum() > 0.1 * (cat - tiger).square().sum()
