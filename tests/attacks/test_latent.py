"""Latents: inversion against the sampler it undoes, noise that follows, and where a latent lies among ordinary noise."""

import pytest
import torch
from attacks.goals import erased, goal
from toys import tiny

from efface.attacks.latent import Latent, correlation, inverted, percentile


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_sampler_leads_from_the_inverted_noise_back_to_the_picture(prediction: str) -> None:
    base = tiny(prediction=prediction)
    cond = base.embed(["a tiger", "a red cat"])
    z = base.noise([3, 4])
    x = base.sample(cond, seeds=[0, 0], steps=6, guidance=1.0, latents=z)
    errors = []
    for rounds in (1, 30):
        start = inverted(base, x, cond, 6, rounds)
        again = base.sample(cond, seeds=[0, 0], steps=6, guidance=1.0, latents=start)
        errors.append(float((again - x).norm() / x.norm()))
    assert errors[1] < 1e-3
    assert errors[1] < errors[0]


@pytest.mark.parametrize("preset", ["", "empty", "control"])
def test_inversion_costs_what_it_says_and_redraws_through_the_edited_model(preset: str) -> None:
    base = tiny()
    edit = erased(base)
    own = goal(base, edit=edit)
    attack = Latent.preset(preset) if preset else Latent()
    found = attack.find(edit(base), own, 1000)
    assert found.calls == 2 * 2 * own.drawing.steps * attack.rounds  # prompts, pictures, steps, rounds
    assert set(found.attempts) == {"picture 1", "picture 2"}
    for marks in found.attempts.values():
        for attempt, prompt in zip(marks[max(marks)], own.prompts, strict=True):
            assert attempt.prompt == ("" if preset == "empty" else prompt)
            assert attempt.turned == (preset == "control")
            assert attempt.settings["guidance"] == 1
            assert 0 <= attempt.about["percentile"] <= 100


def test_followed_noise_brings_the_predictions_nearer_and_keeps_the_norm_of_noise() -> None:
    base = tiny()
    edit = erased(base)
    found = Latent(by="gradient", every=1).find(edit(base), goal(base, edit=edit), 400).attempts[""]
    first, last = found[min(found)], found[max(found)]
    assert first[0].latent is not None
    for attempt in last:
        assert attempt.latent is not None
        assert float(attempt.latent.norm()) == pytest.approx(attempt.latent.numel() ** 0.5, rel=1e-4)
    starts = [torch.stack([a.latent for a in attempts if a.latent is not None]) for attempts in (first, last)]
    assert not torch.equal(*starts)


def test_the_percentile_and_the_correlation_of_ordinary_noise_are_ordinary() -> None:
    draws = torch.randn(2000, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    places = torch.tensor([percentile(z) for z in draws])
    assert abs(float((places < 50).float().mean()) - 0.5) < 0.05  # uniform
    assert abs(float((places < 10).float().mean()) - 0.1) < 0.03
    deviations = torch.tensor([correlation(z) for z in draws[:500]])
    assert abs(float(deviations.std()) - 1) < 0.15
    assert percentile(2 * draws[0]) == 100
    smooth = torch.nn.functional.avg_pool2d(draws[:1], 3, stride=1, padding=1)[0]
    assert correlation(smooth) > 8
