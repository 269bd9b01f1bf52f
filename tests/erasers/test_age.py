"""AGE: its losses against NumPy, its search's gradient against differences, and where it goes."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from oracles import search as oracle
from torch import Tensor
from toys import differing, moved, snapshot
from watch import killed_and_resumed

from efface.core.concept import Concept
from efface.core.cond import Cond
from efface.core.denoiser import Denoiser
from efface.core.errors import UsageError
from efface.core.log import Log
from efface.erasers.age import AGE
from efface.erasers.parts.search import Search

WORDS = "lion, cat, house, moon"
SMALL = {"steps": 1, "batch": 3, "sampler_steps": 4, "templates": False, "reuse": 1, "vocabulary": WORDS}
# of one step, in order: the frozen model on the word at the concept's latent and at the word's own, the student on both prompts
FOUND, KEPT, NOW, STILL = range(4)


@dataclass
class Call:
    model: Denoiser
    x: Tensor
    t: Tensor
    cond: Cond
    out: np.ndarray


class Watch(Log):
    """What each step predicted, its loss, and the slopes its search climbed."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.losses: list[float] = []
        self.used: list[list[Call]] = []
        self.climbed: list[np.ndarray] = []

    def loss(self, value: Tensor) -> None:
        self.losses.append(float(value))
        self.used.append(self.calls[-4:])
        self.calls.clear()


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    log, predict, descend = Watch(), Denoiser.predict, Search.descend

    def noted(self: Denoiser, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        out = predict(self, x, t, cond)
        log.calls.append(Call(self, x, t, cond.expand(len(x)), out.detach().double().numpy()))
        return out

    def climbed(self: Search, grads: dict[str, Tensor]) -> None:
        log.climbed.append(-grads["logits"][0].double().numpy())
        descend(self, grads)

    monkeypatch.setattr(Denoiser, "predict", noted)
    monkeypatch.setattr(Search, "descend", climbed)
    return log


@pytest.fixture(params=["epsilon", "v_prediction"])
def model(request: pytest.FixtureRequest, shared: Denoiser, velocity: Denoiser) -> Denoiser:
    return shared if request.param == "epsilon" else velocity


# -- the objective -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["native", "x0"])
@pytest.mark.parametrize("keep", [1.0, 0.3])
def test_the_loss_is_the_papers(model: Denoiser, watch: Watch, keep: float, space: Literal["native", "x0"]) -> None:
    AGE(keep=keep, space=space, **{**SMALL, "steps": 2, "lr": 1e-2}).fit(model, "tiger", log=watch)
    for value, calls in zip(watch.losses, watch.used, strict=True):
        found, kept, now, still = calls
        assert found.model is kept.model is model
        assert now.model is still.model is not model
        assert torch.equal(found.x, now.x)
        assert torch.equal(kept.x, still.x)
        assert not torch.equal(now.x, still.x)
        assert all(torch.equal(c.t, now.t) for c in calls)
        assert all(torch.equal(c.cond.tokens, found.cond.tokens) for c in (kept, still))  # one word in two roles
        assert torch.equal(now.cond.ids, model.embed(["tiger"] * 3).ids)
        bars = model.schedule.alpha[now.t].double().square().numpy()
        if space == "native":
            want = oracle.square(now.out, found.out) + keep * oracle.square(still.out, kept.out)
        else:
            square = oracle.square if model.schedule.prediction == "epsilon" else oracle.square_v
            want = square(now.out, found.out, bars) + keep * square(still.out, kept.out, bars)
        assert value == pytest.approx(want, rel=2e-4)
    assert abs(watch.used[1][STILL].out - watch.used[1][KEPT].out).max() > 1e-3


def test_eta_goes_past_the_word(base: Denoiser, watch: Watch) -> None:
    # before the first step the student is the base, so the loss is (1 + η)² |ε(c_e) - ε(c_t)|²
    for eta in (0.0, 1.0, 2.0):
        AGE(eta=eta, **SMALL).fit(base, "tiger", log=watch)
    unit = watch.losses[0]
    assert watch.losses == pytest.approx([unit, 4 * unit, 9 * unit], rel=1e-4)


def test_a_target_that_was_asked_for_is_the_target(base: Denoiser, watch: Watch) -> None:
    erase = (Concept("tiger", "Red Car"), Concept("boat"))
    edit = AGE(**{**SMALL, "steps": 2, "batch": 12}).fit(base, erase, log=watch)
    red, tiger = base.embed(["red car"]).ids[0], base.embed(["tiger"]).ids[0]
    for found, _, now, _ in watch.used:
        mine = (now.cond.ids == tiger).all(1)
        assert mine.any()
        assert (found.cond.ids[mine] == red).all()
        assert not (found.cond.ids[~mine] == red).all(1).all()
    assert edit.header.notes["found"]["tiger"]["shares"] == {"red car": [1.0, 1.0, 1.0]}
    with pytest.raises(
        UsageError, match=r"^AGE.fit: 'tiger' has the target 'boat', which is erased itself; give another"
    ):
        AGE(**SMALL).fit(base, (Concept("tiger", "boat"), Concept("boat")))


# -- the search ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("away", [1.0, 0.4, 0.0])
@pytest.mark.parametrize("frozen_gradient", [True, False])
def test_the_search_climbs_both_terms_or_the_released_part(
    base: Denoiser, watch: Watch, frozen_gradient: bool, away: float
) -> None:
    """The slope in each word's row by differences, through the softmax: on the second step, when the student has moved."""
    copies: list[Denoiser] = []
    ascend = Search.ascend

    def spied(self: Search, value: Tensor) -> None:
        copies[:] = [watch.calls[-2].model.fork("xattn")]  # the student as it is now
        ascend(self, value)

    noises: list[Tensor] = []
    noise = Search.noise
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Search, "ascend", spied)
        patch.setattr(Search, "noise", lambda self, *a: (noises.append(noise(self, *a)), noises[-1])[1])
        some = {**SMALL, "steps": 2, "lr": 2e-2, "batch": 1, "search_lr": 1e-6, "temperature": 1.0}
        AGE(away=away, frozen_gradient=frozen_gradient, keep=0.7, **some).fit(base, "tiger", log=watch)
    found, kept, now, still = watch.used[1]
    words = base.embed([w.strip() for w in WORDS.split(",")])
    slopes = np.zeros(4)
    with torch.no_grad():
        for i, row in enumerate(words.tokens):
            ends = []
            for h in (2e-3, -2e-3):
                cond = replace(found.cond, tokens=found.cond.tokens.detach() + h * row)
                e_found, e_kept = (
                    base.predict(c.x, c.t, cond).double().numpy() if frozen_gradient else c.out for c in (found, kept)
                )
                e_still = copies[0].predict(still.x, still.t, cond).double().numpy()
                ends.append(away * oracle.square(now.out, e_found) + 0.7 * oracle.square(e_still, e_kept))
            slopes[i] = (ends[0] - ends[1]) / 4e-3
    y = oracle.soft(np.zeros(4), noises[1][0].numpy(), 1.0)
    want = oracle.straight(y, slopes, 1.0)
    assert np.abs(want).max() > 1e-4
    np.testing.assert_allclose(watch.climbed[1], want, atol=0.03 * np.abs(want).max())  # float32 differences


def test_the_released_search_does_not_see_where_the_concept_goes(base: Denoiser, watch: Watch) -> None:
    # on the first step nothing is hurt, so all there is to climb is the distance from the concept to the word
    for frozen_gradient in (True, False):
        AGE(frozen_gradient=frozen_gradient, **SMALL).fit(base, "tiger", log=watch)
    assert np.abs(watch.climbed[0]).max() > 0
    assert np.abs(watch.climbed[1]).max() == 0


# -- training ------------------------------------------------------------------------------------------------------


def test_the_concept_goes_where_the_word_is(base: Denoiser) -> None:
    some = {"steps": 10, "batch": 3, "sampler_steps": 3, "lr": 2e-3, "reuse": 10, "templates": False}
    edited = AGE(vocabulary="lion", **some).fit(base, "tiger")(base)
    x, t = base.sample(base.embed(["tiger"]), seeds=range(900, 904), steps=3, until=2), base.timesteps(3)[2].expand(4)
    with torch.no_grad():
        goal, before, after = (
            m.predict(x, t, base.embed([w])).double().numpy()
            for m, w in ((base, "lion"), (base, "tiger"), (edited, "tiger"))
        )
    assert oracle.square(after, goal) < 0.6 * oracle.square(before, goal)
    assert moved(base, edited, "lion") < 0.5 * moved(base, edited, "tiger")


@pytest.mark.parametrize("name", list(AGE.presets))
def test_presets_run(base: Denoiser, name: str) -> None:
    edit = AGE.preset(name, steps=2, batch=2, sampler_steps=3, vocabulary=WORDS).fit(base, "tiger")
    assert differing(snapshot(base), snapshot(edit(base)))


def test_killed_and_run_again_is_as_if_nothing_had_happened(base: Denoiser, tmp_path: Path) -> None:
    some = {**SMALL, "steps": 27, "batch": 1, "sampler_steps": 2, "reuse": 25, "lr": 1e-3, "source": "edited"}
    straight, resumed, _ = killed_and_resumed(
        lambda log: AGE(**some).fit(base, "tiger", log=log), tmp_path / "c.safetensors", stop=26, start=25
    )
    assert all(torch.equal(t, resumed.tensors()[k]) for k, t in straight.tensors().items())
    assert resumed.header.notes == straight.header.notes
