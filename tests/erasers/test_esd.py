"""ESD: its objective against NumPy, its latents against the sampler, and a training that arrives."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import esd as oracle
from torch import Tensor
from toys import differing, snapshot
from watch import killed_and_resumed

from efface.core.concept import Concept
from efface.core.denoiser import Cond, Denoiser
from efface.core.log import Log
from efface.core.prompts import ConceptPrompts
from efface.erasers.esd import ESD

SMALL = {"steps": 1, "batch": 3, "sampler_steps": 4, "templates": False, "reuse": 1}


@dataclass
class Call:
    model: Denoiser
    x: Tensor
    t: Tensor
    ids: Tensor
    out: np.ndarray


class Watch(Log):
    """Losses of a training, and the predictions each was made of."""

    def __init__(self, calls: list[Call], checkpoint: Path | None = None, stop: int | None = None) -> None:
        super().__init__(checkpoint)
        self.calls, self.stop, self.count = calls, stop, 3
        self.losses: list[float] = []
        self.used: list[list[Call]] = []
        self.advanced: list[int] = []  # the first is the step that training started from

    def stage(self, name: str, total: int) -> Callable[[int], None]:
        return self.advanced.append

    def loss(self, value: Tensor) -> None:
        self.losses.append(float(value))
        self.used.append(
            self.calls[-self.count :]
        )  # base on "", base on c, base on the target if there is one, student on c
        self.calls.clear()
        if len(self.losses) == self.stop:
            raise KeyboardInterrupt


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    calls: list[Call] = []
    predict = Denoiser.predict

    def noted(self: Denoiser, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        out = predict(self, x, t, cond)
        calls.append(Call(self, x, t, cond.expand(len(x)).ids, out.detach().double().numpy()))
        return out

    monkeypatch.setattr(Denoiser, "predict", noted)
    return Watch(calls)


@pytest.fixture(params=["epsilon", "v_prediction"])
def model(request: pytest.FixtureRequest, shared: Denoiser, velocity: Denoiser) -> Denoiser:
    return shared if request.param == "epsilon" else velocity


# -- the objective -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 3.0])
def test_the_loss_is_the_papers(model: Denoiser, watch: Watch, eta: float) -> None:
    ESD(eta=eta, **{**SMALL, "steps": 2, "lr": 1e-2}).fit(model, "tiger", log=watch)
    assert len(watch.losses) == 2
    for value, (concept, null, student) in zip(watch.losses, watch.used, strict=True):
        assert null.model is concept.model is model
        assert student.model is not model
        goal = oracle.goal(null.out, concept.out, eta)
        np.testing.assert_allclose(goal, oracle.goal_2025(null.out, concept.out, eta + 1), atol=1e-12)
        assert value == pytest.approx(oracle.loss(student.out, goal), rel=1e-4)  # float32
    assert abs(watch.used[1][2].out - watch.used[1][0].out).max() > 1e-3  # by then the student has moved


def test_eta_is_the_papers(base: Denoiser, watch: Watch) -> None:
    # before the first step the student is the base, so the loss is (1 + η)² |ε(c) - ε(∅)|²: η = 0 aims at the empty prompt
    for eta in (0.0, 1.0, 3.0):
        ESD(eta=eta, **SMALL).fit(base, "tiger", log=watch)
    concept, null = watch.used[0][:2]
    unit = oracle.loss(concept.out, null.out)
    assert watch.losses == pytest.approx([unit, 4 * unit, 16 * unit], rel=1e-4)


def test_a_target_takes_the_place_of_the_empty_prompt(base: Denoiser, watch: Watch) -> None:
    watch.count = 4
    ESD(eta=1.0, **SMALL).fit(base, Concept("tiger", "cat"), log=watch)
    concept, null, target, student = watch.used[0]
    for call, prompt in ((null, ""), (concept, "tiger"), (target, "cat"), (student, "tiger")):
        assert torch.equal(call.ids, base.embed([prompt] * 3).ids)
    goal = target.out - (concept.out - null.out)
    assert watch.losses[0] == pytest.approx(oracle.loss(student.out, goal), rel=1e-4)


def test_a_style_is_taken_off_a_thing_that_stays(base: Denoiser, watch: Watch) -> None:
    ESD(eta=2.0, **{**SMALL, "templates": True, "batch": 40}).fit(base, Concept("noto", kind="style"), log=watch)
    styled, rest, student = watch.used[0]
    said = {"noto": "", "noto style": "", "a picture in noto style": ""}
    said |= {f"a {thing} in noto style": f"a {thing}" for thing in ("dog", "house", "flower", "car")}
    besides = {tuple(base.embed([p]).ids[0].tolist()): base.embed([r]).ids[0] for p, r in said.items()}
    assert {tuple(row.tolist()) for row in styled.ids} == set(besides)  # forty draws meet all seven
    for row, other in zip(styled.ids, rest.ids, strict=True):
        assert torch.equal(other, besides[tuple(row.tolist())])
    assert watch.losses[0] == pytest.approx(oracle.loss(student.out, oracle.goal(rest.out, styled.out, 2.0)), rel=1e-4)


def test_aiming_in_v_is_aiming_in_noise(velocity: Denoiser, watch: Watch) -> None:
    ESD(eta=2.0, **SMALL).fit(velocity, "tiger", log=watch)
    concept, null, *_ = watch.used[0]

    def eps(out: np.ndarray) -> np.ndarray:
        return velocity.to_eps(null.x.double(), null.t, torch.from_numpy(out)).numpy()

    np.testing.assert_allclose(
        eps(oracle.goal(null.out, concept.out, 2.0)), oracle.goal(eps(null.out), eps(concept.out), 2.0), atol=1e-12
    )


# -- the latents ---------------------------------------------------------------------------------------------------


def test_all_predictions_see_one_latent_at_its_own_level(
    base: Denoiser, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[dict[str, object]] = []
    sample = Denoiser.sample
    monkeypatch.setattr(
        Denoiser, "sample", lambda self, cond, **kw: (drawn.append({"model": self, **kw}), sample(self, cond, **kw))[1]
    )
    ESD(guidance=2.0, **{**SMALL, "batch": 8}).fit(base, "tiger", log=watch)
    calls = watch.used[0]
    assert all(torch.equal(c.x, calls[0].x) and torch.equal(c.t, calls[0].t) for c in calls)
    levels = base.timesteps(4).tolist()
    assert len(set(calls[0].t.tolist())) > 1
    seeds, cond = drawn[0]["seeds"], base.embed(["tiger"])
    for i, (x, t) in enumerate(zip(calls[0].x, calls[0].t.tolist(), strict=True)):
        alone = sample(base, cond, seeds=[seeds[i]], steps=4, guidance=2.0, until=levels.index(t))[0]
        torch.testing.assert_close(x, alone, atol=1e-4, rtol=0)  # batch of eight against one


@pytest.mark.parametrize(("reuse", "times"), [(1, 3), (2, 2), (9, 1)])
@pytest.mark.parametrize("source", ["base", "edited"])
def test_latents_come_from_the_source_and_are_shared_by_steps(
    base: Denoiser, monkeypatch: pytest.MonkeyPatch, source: str, reuse: int, times: int
) -> None:
    models: list[Denoiser] = []
    sample = Denoiser.sample
    monkeypatch.setattr(Denoiser, "sample", lambda self, cond, **kw: (models.append(self), sample(self, cond, **kw))[1])
    ESD(source=source, **{**SMALL, "steps": 3, "reuse": reuse}).fit(base, "tiger")
    assert len(models) == times
    assert {m is base for m in models} == {source == "base"}


def test_latents_of_the_edited_model_change_what_is_learnt(base: Denoiser) -> None:
    some = {**SMALL, "steps": 4, "lr": 1e-2}
    one, two = (ESD(source=s, **some).fit(base, "tiger") for s in ("base", "edited"))
    assert any(not torch.equal(d, two.deltas[k]) for k, d in one.deltas.items())


@pytest.mark.parametrize("phrases", [True, False])
def test_every_concept_is_said_in_every_phrase(base: Denoiser, watch: Watch, phrases: bool) -> None:
    erase, watch.count = [Concept("tiger", prompts=("leopard",)), Concept("car", "boat")], 4
    ESD(**{**SMALL, "batch": 64, "templates": phrases, "sampler_steps": 2}).fit(base, erase, log=watch)
    prompts = ConceptPrompts.of(erase, phrases)
    pairs = set(zip(prompts.prompts, prompts.targets, strict=True))
    assert len(pairs) == (3 if phrases else 1) * sum(len(c.phrases) for c in erase)
    known = {
        tuple(ids.tolist()): text for text in {t for pair in pairs for t in pair} for ids in base.embed([text]).ids
    }
    concept, _, target, student = watch.used[0]
    seen = {(known[tuple(a.tolist())], known[tuple(b.tolist())]) for a, b in zip(concept.ids, target.ids, strict=True)}
    assert seen == pairs
    assert torch.equal(concept.ids, student.ids)


# -- training ------------------------------------------------------------------------------------------------------


def distance(base: Denoiser, student: Denoiser, eta: float = 1.0) -> float:
    """Mean square distance to the goal on latents that training has not seen."""
    x = base.sample(base.embed(["tiger"]), seeds=range(900, 904), steps=4, until=2)
    t = base.timesteps(4)[2].expand(4)
    with torch.no_grad():
        null, concept, now = (
            base.predict(x, t, base.embed([""])),
            base.predict(x, t, base.embed(["tiger"])),
            student.predict(x, t, base.embed(["tiger"])),
        )
    return oracle.loss(now.double().numpy(), oracle.goal(null.double().numpy(), concept.double().numpy(), eta))


LEARN = {"steps": 16, "batch": 3, "sampler_steps": 4, "lr": 2e-3, "reuse": 8, "templates": False}


@pytest.mark.parametrize("settings", [{"where": "noxattn"}, {"where": "xattn", "rank": 4, "lr": 1e-2}])
def test_training_arrives_at_the_goal(base: Denoiser, settings: dict[str, object]) -> None:
    edit = ESD(**{**LEARN, **settings}).fit(base, "tiger")
    assert distance(base, edit(base)) < 0.7 * distance(base, base)


def test_training_arrives_in_v_as_well(velocity: Denoiser) -> None:
    edit = ESD(**LEARN).fit(velocity, "tiger")
    assert distance(velocity, edit(velocity)) < 0.7 * distance(velocity, velocity)


def test_almost_every_weight_moves(base: Denoiser) -> None:
    edit = ESD.preset("2023", steps=3, sampler_steps=2, batch=2).fit(base, "tiger")
    moved = torch.cat([d.flatten() != 0 for d in edit.deltas.values()])
    assert moved.float().mean() > 0.99


def test_killed_and_run_again_is_as_if_nothing_had_happened(base: Denoiser, tmp_path: Path) -> None:
    some = {**SMALL, "steps": 27, "batch": 1, "sampler_steps": 2, "reuse": 5, "lr": 1e-3, "rank": 2, "source": "edited"}
    straight, resumed, path = killed_and_resumed(
        lambda log: ESD(**some).fit(base, "tiger", log=log), tmp_path / "c.safetensors", stop=26, start=25
    )
    # another call does not continue it
    for other, name in (({"lr": 2e-3}, "tiger"), ({"seed": 1}, "tiger"), ({}, "lion")):
        log = Watch([], path, stop=1)
        with pytest.raises(KeyboardInterrupt):
            ESD(**{**some, **other}).fit(base, name, log=log)
        assert log.advanced[0] == 0
    assert all(torch.equal(t, resumed.tensors()[k]) for k, t in straight.tensors().items())


def test_a_checkpoint_is_not_written_at_every_step(base: Denoiser, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(KeyboardInterrupt):
        ESD(**{**SMALL, "steps": 9, "batch": 1, "sampler_steps": 2}).fit(base, "tiger", log=Watch([], path, stop=4))
    assert not path.exists()  # with `reuse` = 1 and Stable Diffusion each would be half a gigabyte


def test_no_steps_no_change(base: Denoiser) -> None:
    for rank in (0, 2):
        assert not differing(snapshot(base), snapshot(ESD(steps=0, rank=rank).fit(base, "tiger")(base)))
