"""Naive: eq. 7 against NumPy, whose latents each term sees, and a training that arrives."""

from pathlib import Path

import pytest
import torch
from oracles import naive as oracle
from torch import Tensor
from toys import differing, moved, snapshot
from watch import Watch, killed_and_resumed, texts, watch

from efface.core.concept import Concept
from efface.core.denoiser import Cond, Denoiser
from efface.erasers.naive import Naive

SMALL = {"steps": 1, "batch": 3, "sampler_steps": 4, "templates": False, "reuse": 1}
KNOWN = ["tiger", "lion", "cat", "car", "boat", "leopard", "", "noto"]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return watch(monkeypatch)


@pytest.fixture(params=["epsilon", "v_prediction"])
def model(request: pytest.FixtureRequest, shared: Denoiser, velocity: Denoiser) -> Denoiser:
    return shared if request.param == "epsilon" else velocity


@pytest.mark.parametrize("weight", [0.0, 2.5])
def test_the_loss_is_equation_7(model: Denoiser, log: Watch, weight: float) -> None:
    Naive(preserve_scale=weight, **{**SMALL, "steps": 2, "lr": 1e-2}).fit(
        model, Concept("tiger", "cat"), ["lion"], log=log
    )
    assert len(log.losses) == 2
    for value, calls in zip(log.losses, log.used, strict=True):
        base, student = calls[-2:]
        assert base.model is model
        assert student.model is not model
        assert student.learns
        assert not base.learns
        assert value == pytest.approx(
            oracle.loss(student.out[:3], base.out[:3], student.out[3:], base.out[3:], weight), rel=1e-4
        )
    kept = oracle.mean_square(student.out[3:], base.out[3:])
    assert kept > 1e-4  # by then the student has moved, and the second term counts


def test_the_released_loss_goes_past_the_target_on_the_concepts_own_latents(model: Denoiser, log: Watch) -> None:
    """Beside the latents of its own, the released baseline has ESD's goal around the target, and a tenth of what stays."""
    few = {"steps": 2, "batch": 3, "lr": 1e-2, "sampler_steps": 3}
    Naive.preset("released", **few).fit(model, Concept("tiger", "cat"), ["lion"], log=log)
    assert len(log.losses) == 2
    for value, calls in zip(log.losses, log.used, strict=True):
        goal, concept, student = calls[-3:]
        assert goal.model is concept.model is model
        assert student.model is not model
        assert torch.equal(student.x, goal.x)
        assert torch.equal(student.t, goal.t)
        assert torch.equal(student.x[3:], student.x[:3])
        assert torch.equal(concept.x, student.x[:3])
        assert torch.equal(concept.t, student.t[:3])
        asked, aimed = (texts(model, KNOWN, call.ids) for call in (student, goal))
        assert asked[:3] == texts(model, KNOWN, concept.ids) == ["tiger"] * 3
        assert aimed[:3] == ["cat"] * 3
        assert asked[3:] == aimed[3:]
        assert set(asked[3:]) <= {"", "lion"}
        past = oracle.past(goal.out[:3], concept.out, 1.0)
        assert value == pytest.approx(oracle.loss(student.out[:3], past, student.out[3:], goal.out[3:], 0.1), rel=1e-4)
    assert oracle.mean_square(student.out[3:], goal.out[3:]) > 1e-4


@pytest.mark.parametrize("source", ["base", "edited"])
def test_latents_are_the_source_models(base: Denoiser, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    who: list[Denoiser] = []
    sample = Denoiser.sample
    monkeypatch.setattr(Denoiser, "sample", lambda self, c, **k: (who.append(self), sample(self, c, **k))[1])
    Naive(source=source, kept_latents="concept", **SMALL).fit(base, "tiger")
    assert [model is base for model in who] == [source == "base"]


def test_at_first_nothing_is_missed_but_the_target(base: Denoiser, log: Watch) -> None:
    for weight in (0.0, 5.0):
        Naive(preserve_scale=weight, **SMALL).fit(base, "tiger", ["lion"], log=log)
    assert log.losses[0] == pytest.approx(log.losses[1], rel=1e-5)
    assert log.losses[0] > 0.01


def test_the_concept_is_asked_for_its_target_and_what_stays_for_itself(base: Denoiser, log: Watch) -> None:
    erase = [Concept("tiger", "cat", prompts=("leopard",)), Concept("car", "boat")]
    Naive(**{**SMALL, "batch": 40, "sampler_steps": 2}).fit(base, erase, ["lion"], log=log)
    goal, student = log.used[0][-2:]
    assert torch.equal(goal.x, student.x)
    assert torch.equal(goal.t, student.t)
    asked, aimed = (texts(base, KNOWN, call.ids) for call in (student, goal))
    assert set(zip(asked[:40], aimed[:40], strict=True)) == {("tiger", "cat"), ("leopard", "cat"), ("car", "boat")}
    assert asked[40:] == aimed[40:]
    assert set(asked[40:]) == {"", "lion"}


def test_a_style_becomes_the_thing_it_was_said_of(base: Denoiser, log: Watch) -> None:
    Naive(**{**SMALL, "templates": True, "batch": 60, "sampler_steps": 2}).fit(
        base, Concept("noto", kind="style"), log=log
    )
    things = [f"a {thing}" for thing in ("dog", "house", "flower", "car")]
    said = {f"{thing} in noto style": thing for thing in things}
    said |= {"noto": "", "noto style": "", "a picture in noto style": ""}
    goal, student = log.used[0][-2:]
    asked, aimed = (texts(base, [*said, *things, ""], call.ids[:60]) for call in (student, goal))
    assert set(zip(asked, aimed, strict=True)) == set(said.items())


def test_each_term_has_latents_on_their_way_to_its_own_prompt(
    base: Denoiser, log: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[list[str], list[int]]] = []
    sample = Denoiser.sample

    def noted(self: Denoiser, cond: Cond, **kw) -> Tensor:  # noqa: ANN003
        assert self is base
        drawn.append((texts(base, KNOWN, cond.ids), list(kw["seeds"])))
        return sample(self, cond, **kw)

    monkeypatch.setattr(Denoiser, "sample", noted)
    Naive(guidance=2.0, **SMALL).fit(base, "tiger", ["lion"], log=log)
    (erased, seeds), (kept, others) = drawn
    assert erased == ["tiger"] * 3
    assert set(kept) <= {"", "lion"}
    student, levels = log.used[0][-1], base.timesteps(4).tolist()
    assert texts(base, KNOWN, student.ids) == erased + kept
    for i, (x, t) in enumerate(zip(student.x, student.t.tolist(), strict=True)):
        cond = base.embed([(erased + kept)[i]])
        alone = sample(base, cond, seeds=[(seeds + others)[i]], steps=4, guidance=2.0, until=levels.index(t))[0]
        torch.testing.assert_close(x, alone, atol=1e-4, rtol=0)


LEARN = {"steps": 10, "batch": 3, "sampler_steps": 3, "lr": 2e-3, "reuse": 10, "templates": False}


def test_training_arrives_and_keeps_what_is_named(base: Denoiser) -> None:
    edits = [
        Naive(where="xattn.kv", preserve_scale=scale, **LEARN).fit(base, Concept("tiger", "cat"), ["lion"])(base)
        for scale in (0.0, 8.0)
    ]
    assert missed(base, edits[0]) < 0.7 * missed(base, base)
    assert missed(base, edits[1]) < 0.95 * missed(base, base)
    assert moved(base, edits[1], "lion") < 0.8 * moved(base, edits[0], "lion")
    assert moved(base, edits[1], "") < 0.9 * moved(base, edits[0], "")


def test_low_rank_factors_arrive_as_well(base: Denoiser) -> None:
    edit = Naive(rank=4, preserve_scale=0.0, **{**LEARN, "lr": 2e-2}).fit(base, Concept("tiger", "cat"))
    assert missed(base, edit(base)) < 0.7 * missed(base, base)


def missed(base: Denoiser, student: Denoiser) -> float:
    """How far the student asked for the tiger is from the base asked for the cat, on latents that training has not seen."""
    x = base.sample(base.embed(["tiger"]), seeds=range(900, 904), steps=4, until=2)
    t = base.timesteps(4)[2].expand(4)
    with torch.no_grad():
        now, goal = student.predict(x, t, base.embed(["tiger"])), base.predict(x, t, base.embed(["cat"]))
    return oracle.mean_square(now.double().numpy(), goal.double().numpy())


def test_killed_and_run_again_is_as_if_nothing_had_happened(base: Denoiser, tmp_path: Path) -> None:
    some = {**SMALL, "steps": 27, "batch": 1, "sampler_steps": 2, "reuse": 25, "lr": 1e-3, "where": "xattn.kv"}
    straight, resumed, _ = killed_and_resumed(
        lambda log: Naive(**some).fit(base, "tiger", log=log), tmp_path / "c.safetensors", stop=26, start=25
    )
    assert all(torch.equal(t, resumed.tensors()[k]) for k, t in straight.tensors().items())


def test_no_steps_no_change(base: Denoiser) -> None:
    for rank in (0, 2):
        assert not differing(snapshot(base), snapshot(Naive(steps=0, rank=rank).fit(base, "tiger")(base)))
