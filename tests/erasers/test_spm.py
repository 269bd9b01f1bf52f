"""SPM: its losses against NumPy, its anchors, whose membrane is open when, and a training that arrives."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import spm as oracle
from torch import Tensor
from toys import moved
from watch import killed_and_resumed

from efface.core.branches.membranes import Membranes, gate
from efface.core.concept import Concept, article
from efface.core.denoiser import Cond, Denoiser
from efface.core.edit import Adapter
from efface.core.log import Log
from efface.erasers.spm import SPM, white

SMALL = {"steps": 1, "batch": 3, "sampler_steps": 3, "templates": False, "reuse": 1, "everyday": 10}


@dataclass
class Call:
    model: Denoiser
    x: Tensor
    t: Tensor
    cond: Cond
    out: np.ndarray


class Watch(Log):
    """Losses of a training, and the predictions each was made of."""

    def __init__(self, calls: list[Call]) -> None:
        super().__init__()
        self.calls, self.count = calls, 4
        self.losses: list[float] = []
        self.used: list[list[Call]] = []

    def loss(self, value: Tensor) -> None:
        self.losses.append(float(value))
        # base on ∅, base on c, base on the target if there is one, base on the anchors, student on c and the anchors
        self.used.append(self.calls[-self.count :])
        self.calls.clear()


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    calls: list[Call] = []
    predict = Denoiser.predict

    def noted(self: Denoiser, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        out = predict(self, x, t, cond)
        calls.append(Call(self, x, t, cond.expand(len(x)), out.detach().double().numpy()))
        return out

    monkeypatch.setattr(Denoiser, "predict", noted)
    return Watch(calls)


@pytest.fixture
def openings(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """How far training opened the membranes at each step."""
    noted: list[Tensor] = []
    added = Membranes._added
    monkeypatch.setattr(
        Membranes, "_added", lambda self, layers, gamma: (noted.append(gamma), added(self, layers, gamma))[1]
    )
    return noted


def said(base: Denoiser, *texts: str) -> dict[tuple[int, ...], str]:
    """Prompts by their ids."""
    return {tuple(ids.tolist()): text for text, ids in zip(texts, base.embed(texts).ids, strict=True)}


# -- the objective -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_loss_is_the_papers(shared: Denoiser, velocity: Denoiser, watch: Watch, kind: str) -> None:
    model = shared if kind == "epsilon" else velocity
    some = {**SMALL, "steps": 2, "lr": 2e-2, "anchors": 2, "eta": 2.0, "anchoring": 7.0}
    SPM(**some).fit(model, "tiger", log=watch)
    assert len(watch.losses) == 2
    for value, (concept, rest, anchors, student) in zip(watch.losses, watch.used, strict=True):
        assert rest.model is concept.model is anchors.model is model
        goal = oracle.goal(rest.out, concept.out, rest.out, 2.0)
        assert value == pytest.approx(
            oracle.loss(student.out[:3], goal, student.out[3:], anchors.out, 7.0), rel=1e-4
        )  # float32
        assert torch.equal(rest.cond.ids, model.embed([""] * 3).ids)
        assert torch.equal(student.cond.ids, (concept.cond + anchors.cond).ids)
        for call, times in ((concept, 1), (anchors, 2), (student, 3)):  # all at the same latents
            assert torch.equal(call.x, rest.x.repeat(times, 1, 1, 1))
            assert torch.equal(call.t, rest.t.repeat(times))
    concept, rest, anchors, student = watch.used[1]
    assert abs(student.out[3:] - anchors.out).max() > 1e-3  # by then the student has moved, where it should not


def test_a_target_takes_the_place_of_the_empty_prompt(base: Denoiser, watch: Watch) -> None:
    watch.count = 5
    SPM(anchoring=0.0, eta=0.5, **SMALL).fit(base, Concept("tiger", "cat"), log=watch)
    concept, rest, target, _, student = watch.used[0]
    for call, prompt in ((rest, ""), (concept, "tiger"), (target, "cat")):
        assert torch.equal(call.cond.ids, base.embed([prompt] * 3).ids)
    goal = oracle.goal(rest.out, concept.out, target.out, 0.5)
    assert watch.losses[0] == pytest.approx(oracle.loss(student.out[:3], goal, goal, goal, 0.0), rel=1e-4)


def test_a_style_is_taken_off_a_thing_that_stays(base: Denoiser, watch: Watch) -> None:
    SPM(**{**SMALL, "templates": True, "batch": 24, "sampler_steps": 2}).fit(
        base, Concept("noto", kind="style"), log=watch
    )
    rests = {"noto": "", "noto style": "", "a picture in noto style": ""}
    rests |= {f"a {thing} in noto style": f"a {thing}" for thing in ("dog", "house", "flower", "car")}
    known = said(base, *rests, *rests.values())
    styled, rest, *_ = watch.used[0]
    seen = [
        (known[tuple(a.tolist())], known[tuple(b.tolist())])
        for a, b in zip(styled.cond.ids, rest.cond.ids, strict=True)
    ]
    assert all(rests[prompt] == other for prompt, other in seen)
    assert any(other for _, other in seen)


def test_each_concept_trains_its_own_membrane(base: Denoiser, watch: Watch, openings: list[Tensor]) -> None:
    watch.count = 5
    erase = [Concept("tiger", prompts=("lion",)), Concept("car", "boat")]
    SPM(**{**SMALL, "batch": 8, "anchors": 2, "steps": 2}).fit(base, erase, log=watch)
    assert len(watch.losses) == 4  # steps for each concept
    names = said(base, "tiger", "lion", "car")
    for gamma, (concept, *_) in zip(openings, watch.used, strict=True):
        own = [["tiger", "lion"].count(names[tuple(ids.tolist())]) for ids in concept.cond.ids]
        assert (
            gamma.tolist() == [[float(tiger), float(1 - tiger)] for tiger in own] * 3
        )  # an anchor stands beside its latent
        assert 0 < sum(own) < 8


# -- anchors -------------------------------------------------------------------------------------------------------


def test_anchors_are_everyday_words_the_rarer_the_likelier_to_open_and_what_is_preserved(base: Denoiser) -> None:
    erase = (Concept("tiger", prompts=("king",)), Concept("car", "boat"))
    anchors, odds = SPM(everyday=12, alpha=3.0, templates=False).pool(base, erase, (Concept("house"), Concept("moon")))
    everyday = [w for w in base.words(40) if w not in ("tiger", "king", "car", "boat")][:12]
    texts = [text for w in everyday for text in (w, article(w))]
    assert torch.equal(anchors.ids, base.embed([*texts, "house", "moon"]).ids)
    shares = (1 - gate(base, [["tiger", "king"], ["car"]], "centred")(base.embed(texts)).double().numpy()) ** 3
    for i, row in enumerate(odds.double().numpy()):
        np.testing.assert_allclose(row[:24], shares[:, i] / shares[:, i].sum(), rtol=1e-4)
        np.testing.assert_allclose(row[24:], 0.5)  # half of the anchors
    alone = SPM(everyday=12, templates=False).pool(base, erase, ())[1]
    np.testing.assert_allclose(alone.sum(1), 1, rtol=1e-5)


def test_training_draws_anchors_by_their_odds(base: Denoiser, watch: Watch) -> None:
    SPM(**{**SMALL, "anchors": 100, "sampler_steps": 2}).fit(base, "tiger", ["house"], log=watch)
    drawn = said(base, "house", *(text for w in base.words(20) for text in (w, article(w))))
    names = [drawn[tuple(ids.tolist())] for ids in watch.used[0][2].cond.ids]
    assert len(names) == 300
    assert 110 < names.count("house") < 190  # 150, six standard errors around it
    assert not any("tiger" in name for name in names)


def test_white_noise_is_as_long_as_the_prompt_and_seldom_like_it() -> None:
    rng = torch.Generator().manual_seed(0)
    real = torch.tensor([[[3.0, 4.0]]]).expand(4000, 1, 2)
    ids = torch.zeros(4000, 1, dtype=torch.long)
    null = Cond(torch.zeros(1, 1, 2), ids[:1], ids[:1], ids[:1] > 0)
    rows = white(Cond(real, ids, ids, ids > 0), null, rng).tokens[:, 0].double().numpy()
    assert not rows[::2].any()  # every second is ""
    noise = rows[1::2]
    lengths = np.linalg.norm(noise, axis=1) / 5
    assert 0.8 <= lengths.min() < 0.81
    assert 1.19 < lengths.max() <= 1.2
    cosines = noise @ np.array([0.6, 0.8]) / (5 * lengths)
    # around the circle ∫ cos min(1, 1 - cos) / ∫ min(1, 1 - cos)
    assert cosines.mean() == pytest.approx(-(np.pi / 2) / (2 * np.pi - 2), abs=0.05)


def test_as_released_two_of_four_anchors_are_noise(base: Denoiser, watch: Watch) -> None:
    SPM.preset("released", steps=1, sampler_steps=3).fit(base, "tiger", log=watch)
    concept, rest, anchors, student = watch.used[0]
    assert len(concept.x) == 1
    null = base.embed([""]).tokens[0]
    assert [torch.equal(rows, null) for rows in anchors.cond.tokens] == [True, False, True, False]
    lengths = anchors.cond.tokens[1::2].flatten(1).norm(dim=1) / concept.cond.tokens.norm()
    assert ((lengths > 0.79) & (lengths < 1.21)).all()
    goal = oracle.goal(rest.out, concept.out, rest.out, 1.0)
    expected = oracle.loss(student.out[:1], goal, student.out[1:], anchors.out, 1000.0)
    assert watch.losses[0] == pytest.approx(expected, rel=1e-4)


# -- training ------------------------------------------------------------------------------------------------------

LEARN = {
    "eta": 1.0,
    "steps": 8,
    "batch": 3,
    "sampler_steps": 3,
    "reuse": 4,
    "lr": 1e-2,
    "everyday": 20,
    "templates": False,
}


@pytest.fixture(scope="module")
def learnt(shared: Denoiser) -> Adapter:
    edit = SPM(**LEARN).fit(shared, "tiger")
    assert isinstance(edit, Adapter)
    return edit


def test_training_arrives_and_the_gate_keeps_the_rest(base: Denoiser, learnt: Adapter) -> None:
    edited = learnt(base)
    assert moved(base, edited, "a tiger") > 0.3
    assert moved(base, edited, "") < 1e-5
    assert moved(base, edited, "house") < 0.2 * moved(base, edited, "a tiger")
    x, t = base.sample(base.embed(["tiger"]), seeds=range(900, 904), steps=4, until=2), base.timesteps(4)[2].expand(4)
    with torch.no_grad():
        null, concept, now = (
            m.predict(x, t, base.embed([p])).double().numpy()
            for m, p in ((base, ""), (base, "tiger"), (edited, "tiger"))
        )
    goal = oracle.goal(null, concept, null, 1.0)
    assert np.square(now - goal).mean() < 0.6 * np.square(concept - goal).mean()


def test_anchors_hold_what_an_open_membrane_would_move(base: Denoiser, learnt: Adapter) -> None:
    free = SPM(**LEARN, anchoring=0.0).fit(base, "tiger")
    assert isinstance(free, Adapter)

    def wide(edit: Adapter) -> Denoiser:
        twin = base.fork(())
        twin.branches = (edit.branch.opener(base)(torch.ones(3, 1)),)  # type: ignore[attr-defined]
        return twin

    held, loose = (sum(moved(base, wide(e), w) for w in ("house", "king", "moon")) for e in (learnt, free))
    assert held < 0.7 * loose


def test_what_was_learnt_goes_to_a_model_of_nearly_the_same_weights(base: Denoiser, learnt: Adapter) -> None:
    other, rng = base.fork("denoiser"), torch.Generator().manual_seed(1)
    for w in other.params("denoiser").values():
        w += 0.1 * w.std(correction=0) * torch.randn(w.shape, generator=rng)
    carried = learnt(other, any_base=True)
    assert moved(other, carried, "a tiger") > 0.2
    assert moved(other, carried, "house") < 0.3 * moved(other, carried, "a tiger")


@pytest.mark.parametrize("source", ["base", "edited"])
def test_latents_come_from_the_source_as_it_is_by_then(
    base: Denoiser, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    models: list[Denoiser] = []
    sample = Denoiser.sample
    monkeypatch.setattr(Denoiser, "sample", lambda self, cond, **kw: (models.append(self), sample(self, cond, **kw))[1])
    SPM(**{**SMALL, "steps": 3, "source": source}).fit(base, "tiger")
    assert len(models) == 3
    assert {m is base for m in models} == {source == "base"}
    assert {len(m.branches) for m in models} == {0 if source == "base" else 1}
    if source == "edited":
        assert moved(base, models[0], "tiger") > 1e-3  # the branch is the one that learns
        assert moved(base, models[0], "") < 1e-5  # and the gate is at work


def test_killed_and_run_again_is_as_if_nothing_had_happened(base: Denoiser, tmp_path: Path) -> None:
    some = {**SMALL, "steps": 27, "batch": 1, "sampler_steps": 2, "reuse": 5, "source": "edited", "everyday": 2}
    straight, resumed, _ = killed_and_resumed(
        lambda log: SPM(**some).fit(base, "tiger", log=log), tmp_path / "c.safetensors", stop=26, start=25
    )
    assert all(torch.equal(t, resumed.tensors()[k]) for k, t in straight.tensors().items())


def test_the_released_preset_is_the_released_recipe() -> None:
    eraser = SPM.preset("released")
    assert isinstance(eraser, SPM)
    assert (eraser.steps, eraser.lr, eraser.batch, eraser.sampler_steps, eraser.guidance) == (3000, 1e-4, 1, 30, 3.0)
    assert (eraser.eta, eraser.anchoring, eraser.anchors, eraser.around, eraser.gate) == (
        1.0,
        1000,
        4,
        "noise",
        "released",
    )
