"""Receler: its losses against NumPy, an adversary that is heard, masks where the attention is, and a training that arrives."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import receler as oracle
from torch import Generator, Tensor
from toys import differing, moved, snapshot

from efface.core.branches.bottlenecks import PARTS, Bottlenecks
from efface.core.concept import Concept
from efface.core.cond import Cond
from efface.core.denoiser import Denoiser
from efface.core.edit import Adapter
from efface.core.log import Log
from efface.erasers import receler
from efface.erasers.receler import Receler, after, outside

SMALL = {
    "steps": 1, "batch": 4, "sampler_steps": 3, "templates": False, "reuse": 1, "width": 8, "everyday": 3, "adversarial_steps": 2,
}  # fmt: skip
STEP = (
    1 + 1 + 2 + 1 + 2
)  # predictions of one such step: base on "", on c, two of the adversary, student on c, both on another prompt


@dataclass
class Call:
    model: Denoiser
    x: Tensor
    t: Tensor
    cond: Cond
    out: np.ndarray


@dataclass
class Step:
    """One step of training: its predictions, what the nets added to the student's on the concept, and the masks."""

    calls: list[Call]
    added: dict[str, np.ndarray]
    masks: np.ndarray
    value: float
    loss: float


@dataclass
class Watch(Log):
    """Writes down what each step was made of."""

    calls: list[Call] = field(default_factory=list)
    regs: list[tuple[dict[str, np.ndarray], np.ndarray, float]] = field(default_factory=list)
    checkpoint: Path | None = None
    recipe: str = ""
    steps_: list[Step] = field(default_factory=list)
    advanced: list[int] = field(default_factory=list)  # the first is the step that training started from

    def stage(self, name: str, total: int) -> Callable[[int], None]:
        return self.advanced.append

    def loss(self, value: Tensor) -> None:
        if self.regs:
            self.steps_.append(Step(list(self.calls), *self.regs[-1], float(value)))
        self.calls.clear()


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    log = Watch()
    predict, measure, sample = Denoiser.predict, receler.outside, Denoiser.sample

    def noted(self: Denoiser, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        out = predict(self, x, t, cond)
        log.calls.append(Call(self, x, t, cond.expand(len(x)), out.detach().double().numpy()))
        return out

    def measured(added: dict[str, Tensor], masks: Tensor, shape: tuple[int, int]) -> Tensor:
        value = measure(added, masks, shape)
        arrays = {site: o.detach().double().numpy() for site, o in added.items()}
        log.regs.append((arrays, masks.double().numpy(), float(value.detach())))
        return value

    def sampled(self: Denoiser, *args: object, **settings: object) -> Tensor:
        before = len(log.calls)
        out = sample(self, *args, **settings)
        del log.calls[before:]  # only the predictions of training
        return out

    monkeypatch.setattr(Denoiser, "predict", noted)
    monkeypatch.setattr(Denoiser, "sample", sampled)
    monkeypatch.setattr(receler, "outside", measured)
    return log


def fitted(
    log: Watch, base: Denoiser, erase: object = "tiger", preserve: tuple[str, ...] = (), **changes: object
) -> list[Step]:
    Receler(**{**SMALL, **changes}).fit(base, erase, preserve, log=log)
    return log.steps_


@pytest.fixture(params=["epsilon", "v_prediction"])
def model(request: pytest.FixtureRequest, shared: Denoiser, velocity: Denoiser) -> Denoiser:
    return shared if request.param == "epsilon" else velocity


# -- the objective -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 2.0])
def test_the_loss_is_the_papers_and_what_keeps_other_prompts(model: Denoiser, watch: Watch, eta: float) -> None:
    steps = fitted(watch, model, preserve=("lion",), eta=eta, steps=3, lr=1e-2, localise=0.7, keep=0.4)
    assert len(steps) == 3
    for step in steps:
        concept, null, _, _, student, was, now = step.calls
        assert null.model is concept.model is was.model is model
        assert student.model is now.model is not model
        erase = oracle.mse(student.out, oracle.goal(null.out, concept.out, eta))
        kept = oracle.mse(now.out, was.out)
        assert step.loss == pytest.approx(erase + 0.7 * step.value + 0.4 * kept, rel=1e-4)  # float32
    assert steps[0].value == 0
    assert steps[2].value > 1e-4
    assert oracle.mse(steps[2].calls[6].out, steps[2].calls[5].out) > 1e-4


def test_a_target_takes_the_place_of_the_empty_prompt(base: Denoiser, watch: Watch) -> None:
    (step,) = fitted(watch, base, Concept("tiger", "cat"))
    concept, null, target, _, _, student, *_ = step.calls
    rows = base.embed(["cat"] * 4).tokens  # four at once, where training embeds one
    torch.testing.assert_close(target.cond.tokens, rows, atol=1e-5, rtol=0)
    assert step.loss == pytest.approx(oracle.mse(student.out, target.out - (concept.out - null.out)), rel=1e-4)


def test_a_style_is_taken_off_a_thing_that_stays(base: Denoiser, watch: Watch) -> None:
    (step,) = fitted(watch, base, Concept("noto", kind="style"), templates=True, batch=24, adversarial_steps=0)
    styled, rest, student = step.calls[:3]
    said = {"noto": "", "noto style": "", "a picture in noto style": ""}
    said |= {f"a {thing} in noto style": f"a {thing}" for thing in ("dog", "house", "flower", "car")}
    ids = {tuple(base.embed([p]).ids[0].tolist()): base.embed([r]).ids[0] for p, r in said.items()}
    assert all(torch.equal(b, ids[tuple(a.tolist())]) for a, b in zip(styled.cond.ids, rest.cond.ids, strict=True))
    assert step.loss == pytest.approx(oracle.mse(student.out, oracle.goal(rest.out, styled.out, 1.0)), rel=1e-4)


def test_what_is_added_outside_the_masks_is_the_papers() -> None:
    rng = np.random.default_rng(0)
    masks = (rng.uniform(size=(2, 4, 4)) < 0.5).astype(float)
    masks[1] = 1  # a concept that fills the picture leaves nothing outside
    added = {str(side): rng.normal(size=(2, side * side, 5)) for side in (8, 4, 2)}
    got = float(outside({k: torch.from_numpy(o) for k, o in added.items()}, torch.from_numpy(masks), (8, 8)))
    each = [
        oracle.outside([o[i] for o in added.values()], [oracle.resized(masks[i], int(k)) for k in added])
        for i in range(2)
    ]
    assert each[0] > 0.5
    assert each[1] == 0
    assert got == pytest.approx(sum(each) / 2, rel=1e-6)


def test_the_nets_are_held_to_where_the_base_attends_to_the_concept(base: Denoiser, watch: Watch) -> None:
    heard: list[dict[str, np.ndarray]] = []
    step = None

    def listen(attention: torch.nn.Module, args: tuple[Tensor, ...], settings: dict[str, Tensor], name: str) -> None:
        rows = settings["encoder_hidden_states"]
        q, k = (part.double() for part in (args[0] @ attention.to_q.weight.T, rows @ attention.to_k.weight.T))
        q, k = (part.unflatten(2, (attention.heads, -1)).transpose(1, 2) for part in (q, k))
        scores = (q @ k.transpose(2, 3)).numpy(force=True) * attention.scale
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        heard.append({name: weights / weights.sum(-1, keepdims=True)})

    unet = base.modules()["unet"]
    sites = {name: m for name, m in unet.named_modules() if name.endswith("attn2")}
    handles = [
        m.register_forward_pre_hook(lambda m, a, s, name=name: listen(m, a, s, name), with_kwargs=True)
        for name, m in sites.items()
    ]
    try:
        (step,) = fitted(watch, base, Concept("a car"), threshold=0.4, keep=0.0)
    finally:
        for handle in handles:
            handle.remove()
    calls = [heard[i : i + len(sites)] for i in range(0, len(heard), len(sites))]
    concept = {
        k: v for one in calls[2 - STEP] for k, v in one.items()
    }  # nothing is kept: two predictions fewer, and the first of them
    for i, mask in enumerate(step.masks):
        least, most = (oracle.mask([layer[i] for layer in concept.values()], [1, 2], 8, 0.4 + d) for d in (1e-4, -1e-4))
        assert 0.05 < least.mean() <= most.mean() < 0.95
        assert ((least <= mask) & (mask <= most)).all()  # a place on the threshold may round either way
        assert (most - least).sum() <= 1


def test_the_nets_answer_the_cross_attentions(base: Denoiser, watch: Watch) -> None:
    steps = fitted(watch, base, steps=2, lr=1e-2)
    assert all(not o.any() for o in steps[0].added.values())
    assert all(abs(o).max() > 1e-3 for o in steps[1].added.values())
    assert all(o.shape[0] == 4 for o in steps[1].added.values())


# -- the adversary -------------------------------------------------------------------------------------------------


def test_the_rows_after_the_words_are_overwritten(base: Denoiser) -> None:
    prompts = base.embed(["tiger", "a picture of a tiger", "", "leopard boat"])  # leopard is letters
    vectors = torch.randn(4, 6, prompts.tokens.shape[2], generator=Generator().manual_seed(0))
    got = after(prompts, vectors)
    assert torch.equal(got.ids, prompts.ids)
    assert torch.equal(got.mask, prompts.mask)
    for i, words in enumerate([1, 5, 0, 8]):
        expected = oracle.overwritten(prompts.tokens[i].numpy(), words, vectors[i].numpy())
        np.testing.assert_array_equal(got.tokens[i].numpy(), expected)
        changed = (got.tokens[i] != prompts.tokens[i]).any(1).nonzero().flatten().tolist()
        assert changed == list(range(1 + words, min(7 + words, 16)))  # 1 + words: the end token is the first


def test_its_gradient_reaches_the_vectors(base: Denoiser) -> None:
    prompts = base.embed(["tiger", "happy boat"])
    vectors = torch.randn(2, 16, prompts.tokens.shape[2], generator=Generator().manual_seed(0)).requires_grad_(True)
    x = torch.randn(2, *base.latent_shape, generator=Generator().manual_seed(1))

    def loss(v: Tensor) -> Tensor:
        return base.predict(x, torch.tensor([900, 300]), after(prompts, v)).square().mean()

    (grad,) = torch.autograd.grad(loss(vectors), [vectors])
    assert grad[0, :14].any(1).all()  # sixteen places less the start and one word
    assert not grad[0, 14:].any()
    for at in ((0, 0, 3), (1, 5, 20)):
        step = torch.zeros_like(vectors)
        step[at] = 1e-2
        with torch.no_grad():
            slope = (loss(vectors + step) - loss(vectors - step)) / 2e-2
        assert float(slope) == pytest.approx(float(grad[at]), rel=0.05, abs=2e-5)


def test_the_inner_loop_lowers_its_loss(base: Denoiser, watch: Watch) -> None:
    (step,) = fitted(watch, base, adversarial_steps=12)
    concept, tries = step.calls[0], step.calls[2:14]
    losses = [oracle.mse(call.out, concept.out[:2]) for call in tries]
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(call.x, concept.x[:2]) and torch.equal(call.t, concept.t[:2]) for call in tries)


def test_the_nets_learn_on_what_the_adversary_found(base: Denoiser, watch: Watch) -> None:
    (step,) = fitted(watch, base, vectors=5)
    plain, (first, second, student) = base.embed(["tiger"]).tokens[0], step.calls[2:5]
    for rows in student.cond.tokens[:2]:
        assert (rows != plain).any(1).nonzero().flatten().tolist() == [2, 3, 4, 5, 6]
    assert torch.equal(student.cond.tokens[2:], plain.expand(2, -1, -1))  # the other half hears the plain prompt
    assert not torch.equal(second.cond.tokens, first.cond.tokens)
    assert not torch.equal(student.cond.tokens[:2], second.cond.tokens)  # the adversary's last step came after it
    assert not torch.equal(student.cond.tokens[0], student.cond.tokens[1])
    assert not student.cond.tokens.requires_grad


def test_without_an_adversary_all_hear_the_plain_prompt(base: Denoiser, watch: Watch) -> None:
    (step,) = fitted(watch, base, adversarial_steps=0)
    assert len(step.calls) == STEP - 2
    plain = base.embed(["tiger"] * 4).tokens  # four at once, where training embeds one
    torch.testing.assert_close(step.calls[2].cond.tokens, plain, atol=1e-5, rtol=0)
    one, two = (Receler(**{**SMALL, "steps": 2, "adversarial_steps": k}).fit(base, "tiger") for k in (0, 1))
    assert any(not torch.equal(t, two.tensors()[k]) for k, t in one.tensors().items())


# -- other prompts -------------------------------------------------------------------------------------------------


def test_what_stays_is_nothing_the_preserved_and_everyday_words(base: Denoiser, watch: Watch) -> None:
    erase = Concept("red tiger", "a cat", prompts=("big dog",))
    steps = fitted(
        watch, base, erase, ("lion",), everyday=40, steps=6, batch=24, adversarial_steps=0, sampler_steps=2, reuse=6
    )
    said = [*base.words(99), *(f"a {w}" for w in base.words(99)), *(f"an {w}" for w in base.words(99)), "", "lion"]
    texts = {tuple(ids.tolist()): text for ids, text in zip(base.embed(said).ids, said, strict=True)}
    seen = [{texts[tuple(ids.tolist())] for ids in step.calls[-1].cond.ids} for step in steps]
    assert seen[0] == seen[3] == {""}
    assert seen[1] == seen[4] == {"lion"}
    everyday = seen[2] | seen[5]
    assert len(everyday) > 8
    assert not {f"{a}{w}" for w in ("red", "tiger", "cat", "big", "dog") for a in ("", "a ", "an ")} & everyday
    for step in steps:
        was, now = step.calls[-2:]
        assert torch.equal(was.cond.tokens, now.cond.tokens)
        for call in (was, now):  # on the latents of the concept, where only the words tell them apart
            assert torch.equal(call.x, step.calls[0].x[:12])
            assert torch.equal(call.t, step.calls[0].t[:12])


def test_nothing_is_kept_where_it_weighs_nothing(base: Denoiser, watch: Watch) -> None:
    (step,) = fitted(watch, base, keep=0.0)
    assert len(step.calls) == STEP - 2
    said = [step.calls[0], *step.calls[2:]]  # all but the empty prompt
    assert all(torch.equal(call.cond.ids, base.embed(["tiger"]).ids.expand(len(call.x), -1)) for call in said)


LEARN = {
    "steps": 10, "batch": 4, "sampler_steps": 3, "lr": 5e-3, "reuse": 10, "templates": False, "everyday": 3, "adversarial_steps": 0,
    "keep": 0.0,
}  # fmt: skip


def test_keeping_keeps(base: Denoiser) -> None:
    loose, tight = (Receler(**{**LEARN, "keep": k}).fit(base, "tiger", ["lion"])(base) for k in (0.0, 3.0))
    for other in ("lion", ""):
        assert moved(base, tight, other) < 0.8 * moved(base, loose, other)
    assert moved(base, tight, "tiger") > 1.5 * moved(base, tight, "lion")


def test_localising_keeps_what_is_added_inside(base: Denoiser, watch: Watch) -> None:
    last = [fitted(watch, base, **{**LEARN, "localise": w, "threshold": 0.5})[-1].value for w in (0.0, 3.0)]
    assert last[1] < 0.5 * last[0]


# -- training ------------------------------------------------------------------------------------------------------


def distance(base: Denoiser, student: Denoiser) -> float:
    """Mean square distance to the goal on latents that training has not seen."""
    x = base.sample(base.embed(["tiger"]), seeds=range(900, 904), steps=4, until=2)
    t = base.timesteps(4)[2].expand(4)
    with torch.no_grad():
        null, concept = (base.predict(x, t, base.embed([c])).double().numpy() for c in ("", "tiger"))
        now = student.predict(x, t, base.embed(["tiger"])).double().numpy()
    return oracle.mse(now, oracle.goal(null, concept, 1.0))


def test_training_arrives_at_the_goal(model: Denoiser) -> None:
    edit = Receler(**{**LEARN, "adversarial_steps": 1}).fit(model, "tiger")
    assert distance(model, edit(model)) < 0.7 * distance(model, model)


def test_latents_come_from_the_source(base: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[Denoiser] = []
    sample = Denoiser.sample
    monkeypatch.setattr(Denoiser, "sample", lambda self, cond, **kw: (models.append(self), sample(self, cond, **kw))[1])
    Receler(**{**SMALL, "steps": 3}).fit(base, "tiger")
    assert {m is base for m in models} == {True}
    assert len(models) == 3
    models.clear()
    edit = Receler.preset("released", steps=2, sampler_steps=2, width=4).fit(base, "tiger")
    assert {m is base for m in models} == {False}
    assert isinstance(edit, Adapter)


def test_the_edit_is_the_nets_alone(base: Denoiser) -> None:
    edit = Receler(**SMALL).fit(base, "tiger")
    assert isinstance(edit, Adapter)
    assert isinstance(edit.branch, Bottlenecks)
    assert {k.rpartition("/")[2] for k in edit.branch.tensors} == set(PARTS)
    assert not any(t.requires_grad for t in edit.branch.tensors.values())
    assert not differing(snapshot(base), snapshot(edit(base)))


def test_killed_and_run_again_is_as_if_nothing_had_happened(base: Denoiser, tmp_path: Path) -> None:
    path, kept = tmp_path / "c.safetensors", tmp_path / "kept.safetensors"
    some = {
        **SMALL,
        "steps": 27,
        "batch": 1,
        "sampler_steps": 2,
        "reuse": 5,
        "adversarial_steps": 1,
        "source": "edited",
    }

    class Keep(Watch):
        def loss(self, value: Tensor) -> None:
            if len(self.advanced) == 26:
                shutil.copy(path, kept)  # where a run that is killed now would have left off

    straight = Receler(**some).fit(base, "tiger", log=Keep(checkpoint=path))
    assert not path.exists()
    log = Watch(checkpoint=kept)
    resumed = Receler(**some).fit(base, "tiger", log=log)
    assert log.advanced[0] == 25
    assert all(torch.equal(t, resumed.tensors()[k]) for k, t in straight.tensors().items())
