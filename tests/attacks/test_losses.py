"""The attacks' losses against closed forms."""

import pytest
import torch
from attacks.goals import goal
from toys import MixtureDenoiser, pipeline, tiny

from efface.attacks.parts.losses import Bank, denoising_error, noise_prediction, repeated
from efface.core.attempt import Attempt
from efface.core.concept import Concept
from efface.erasers.negative import NegativePrompt
from efface.erasers.sld import SLD


def bank(model: MixtureDenoiser, k: int = 8) -> Bank:
    return Bank.of(model, k, 2, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_error_of_the_exact_prediction_is_that_of_the_closed_form(prediction: str) -> None:
    """For a Gaussian the predicted noise is known: so is its error, picture by picture."""
    model = MixtureDenoiser(pipeline(prediction))
    cond, own = model.embed(["a tiger", "a cat"]), bank(model)
    targets = torch.randn(2, 2, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    expected = torch.zeros(2)
    for p in range(2):
        mean = model.means(cond[[p]])[0]
        for t, eps, which in zip(own.t, own.eps, own.which, strict=True):
            a, s = model.schedule.alpha[t], model.schedule.sigma[t]
            x = a * targets[p, which] + s * eps
            predicted = s * (x - a * mean) / (a**2 * model.spread**2 + s**2)
            expected[p] += (predicted - eps).square().mean() / len(own)
    found = denoising_error(model, targets, cond, own, 3.0)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_the_prompt_that_made_the_pictures_denoises_them_best() -> None:
    model = MixtureDenoiser(pipeline())
    texts = ["a tiger", "a cat", "a boat", "a stone"]
    means = model.means(model.embed(texts))
    targets = means[:1].expand(4, -1, -1, -1)[:, None].repeat(1, 2, 1, 1, 1)
    errors = denoising_error(model, targets, model.embed(texts), bank(model), 3.0)
    assert errors.argmin() == 0


def test_a_bank_has_a_level_of_each_part_of_the_schedule_and_all_pictures() -> None:
    own = bank(tiny(), 8)  # pyright: ignore[reportArgumentType]
    assert (own.t // 125).tolist() == list(range(8))
    assert own.which.tolist() == [0, 1] * 4
    assert own[[2, 5]].t.tolist() == own.t[[2, 5]].tolist()


@pytest.mark.parametrize("method", [NegativePrompt(), SLD(warmup=0, momentum=0.0)])
def test_guidance_alone_with_the_effective_prediction_is_the_corrected_prediction(method: NegativePrompt | SLD) -> None:
    """One step of the sampler is the oracle: its latent depends on the guided and corrected prediction alone."""
    base = tiny()
    edited = method.fit(base, [Concept("tiger")])(base)
    cond, scale = edited.embed(["a tiger"]), 4.0
    x, t = base.noise([7]), base.timesteps(4)[:1]
    with torch.no_grad():
        e, e_null = noise_prediction(edited, x, t, cond, scale), base.to_eps(x, t, base.predict(x, t, base.embed([""])))
        guided = e_null + scale * (e - e_null)
        plain = base.predict(x, t, cond)
    step = edited.sample(cond, seeds=[7], steps=4, guidance=scale, until=1)
    a, s = base.schedule.at(x, t)
    a2, s2 = base.schedule.at(x, base.timesteps(4)[1:2])
    assert torch.allclose(step, a2 * (x - s * guided) / a + s2 * guided, atol=1e-4)
    assert not torch.allclose(e, plain, atol=1e-3)


def test_prompts_are_repeated_prompt_after_prompt() -> None:
    base = tiny()
    cond = base.embed(["a", "tiger"])
    assert torch.equal(repeated(cond, 2).ids, cond.ids[[0, 0, 1, 1]])


def test_the_neighbours_pictures_are_drawn_with_the_neighbours_name() -> None:
    base = tiny()
    own = goal(base)
    expected = base.sample(base.embed(["a lion"]), seeds=[1000], steps=4, guidance=3.0)
    assert torch.allclose(own.neighbour_targets[0, 0], expected[0], atol=1e-5)
    assert own.targets.shape == (2, 2, *base.latent_shape)
    assert Attempt("x").fingerprint
