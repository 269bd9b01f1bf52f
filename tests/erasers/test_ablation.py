"""Concept Ablation: its objectives against NumPy, on whose pictures, which weights, and a memorised picture that goes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import ablation as oracle
from PIL import Image
from torch import Tensor
from toys import differing, moved, snapshot
from watch import Watch, killed_and_resumed, texts, watch

from efface.core.concept import Concept
from efface.core.denoiser import Cond, Denoiser
from efface.core.edit import LowRank
from efface.core.errors import UsageError
from efface.core.train import Tuner
from efface.erasers.ablation import ConceptAblation, hold_start

SMALL = {"steps": 2, "batch": 3, "drawn": 4, "sampler_steps": 2, "templates": False, "lr": 1e-2}
KNOWN = ["tiger", "lion", "cat", "car", "boat", "", "noto"]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return watch(monkeypatch)


@pytest.fixture(params=["epsilon", "v_prediction"])
def model(request: pytest.FixtureRequest, shared: Denoiser, velocity: Denoiser) -> Denoiser:
    return shared if request.param == "epsilon" else velocity


Drawn = list[tuple[Denoiser, list[str], Tensor]]
Noised = list[tuple[np.ndarray, np.ndarray, np.ndarray]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Who drew, the prompts, and the latents."""
    out: Drawn = []
    sample = Denoiser.sample

    def noted(self: Denoiser, cond: Cond, **kw) -> Tensor:  # noqa: ANN003
        out.append((self, texts(self, KNOWN, cond.ids), sample(self, cond, **kw)))
        return out[-1][2]

    monkeypatch.setattr(Denoiser, "sample", noted)
    return out


@pytest.fixture
def noised(monkeypatch: pytest.MonkeyPatch) -> Noised:
    """Clean latents, their noise, and √ᾱ² of each."""
    out: Noised = []
    add = Denoiser.add_noise

    def noted(self: Denoiser, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        out.append((x0.double().numpy(), eps.double().numpy(), self.schedule.alpha[t].double().square().numpy()))
        return add(self, x0, t, eps)

    monkeypatch.setattr(Denoiser, "add_noise", noted)
    return out


# -- the objective -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("teacher", ["frozen", "live"])
@pytest.mark.parametrize(("objective", "prior"), [("model", 0.0), ("model", 2.5), ("noise", 1.0), ("reverse", 0.7)])
def test_the_loss_is_the_papers(
    model: Denoiser, log: Watch, drawn: Drawn, noised: Noised, objective: str, prior: float, teacher: str
) -> None:
    method = ConceptAblation(objective=objective, prior=prior, teacher=teacher, **SMALL)
    method.fit(model, Concept("tiger", "cat"), log=log)
    parts = 2 if prior else 1
    assert (len(log.losses), len(noised)) == (2, 2 * parts)
    for step, (value, calls) in enumerate(zip(log.losses, log.used, strict=True)):
        calls = [c for c in calls if c.x.shape[0] == 3][-5:]  # not those of the sampler, which draws four
        student = [c for c in calls if c.learns][-parts:]
        asked = [c for c in calls if not c.learns]
        goals = []
        for i, (x0, eps, bar) in enumerate(noised[step * parts : (step + 1) * parts]):
            x = np.stack([oracle.noised(*one) for one in zip(x0, eps, bar, strict=True)])
            np.testing.assert_allclose(student[i].x.double().numpy(), x, atol=1e-5)
            if (objective == "noise" and i == 0) or (teacher == "live" and i == 1):
                goals.append(
                    np.stack([oracle.native(*one, model.schedule.prediction) for one in zip(x0, eps, bar, strict=True)])
                )
                continue
            call = asked.pop(0)
            assert torch.equal(call.x, student[i].x)
            assert torch.equal(call.t, student[i].t)
            assert (call.model is model) is (teacher == "frozen")
            assert i or texts(model, KNOWN, call.ids) == ["cat"] * 3
            assert not i or torch.equal(call.ids, student[i].ids)
            goals.append(call.out)
        assert not asked
        assert texts(model, KNOWN, student[0].ids) == ["tiger"] * 3
        kept = (student[1].out, goals[1]) if prior else None
        assert value == pytest.approx(oracle.loss(student[0].out, goals[0], kept, prior), rel=1e-4)
    levels = [t for calls in log.used for c in calls if c.learns for t in c.t.tolist()]
    assert len(set(levels)) > 3  # any level, not the sampler's few
    assert max(levels) > 500 > min(levels)


@pytest.mark.parametrize("preset", ["object", "memorised"])
def test_priors_of_presets_are_the_released_one_which_is_beside_a_sum_over_channels(
    base: Denoiser, log: Watch, preset: str
) -> None:
    few = {**SMALL, "steps": 2, "where": "denoiser"}
    ConceptAblation.preset(preset, **few).fit(base, Concept("tiger", "cat"), log=log)
    goal, student, kept_goal, kept = [c for c in log.used[1] if len(c.x) == 3][-4:]
    assert [c.learns for c in (goal, student, kept_goal, kept)] == [False, True, False, True]
    mask = np.ones_like(goal.out[:, :1])  # the released one, where nothing is cropped
    want = oracle.released(student.out, goal.out, kept.out, kept_goal.out, mask, 1.0)
    without = oracle.released(student.out, goal.out, kept.out, kept_goal.out, mask, 0.0)
    assert log.losses[1] * base.latent_shape[0] == pytest.approx(want, rel=1e-4)
    assert want > 1.01 * without  # by the second step the prior counts


@pytest.mark.parametrize(
    ("objective", "of"), [("model", {"cat", "boat"}), ("noise", {"cat", "boat"}), ("reverse", {"tiger", "car"})]
)
def test_pictures_are_the_anchors_or_in_reverse_the_concepts(
    base: Denoiser, log: Watch, drawn: Drawn, noised: Noised, objective: str, of: set[str]
) -> None:
    method = ConceptAblation(objective=objective, **{**SMALL, "batch": 40, "drawn": 12})
    method.fit(base, [Concept("tiger", "cat"), Concept("car", "boat")], ["lion"], log=log)
    (who, learnt, latents), (_, kept, others) = drawn
    assert who is base
    assert set(learnt) == of
    assert set(kept) == {"cat", "boat", "", "lion"}
    student = [c for c in log.used[0] if c.learns]
    anchors = {"tiger": "cat", "car": "boat"}
    for call, (x0, _, _), names, pictures in zip(student, noised, (learnt, kept), (latents, others), strict=False):
        asked = texts(base, KNOWN, call.ids)
        assert len(set(asked)) > 1
        for prompt, clean in zip(asked, x0, strict=True):  # each latent is one of those drawn for what it is asked as
            wanted = prompt if call is student[1] or objective == "reverse" else anchors[prompt]
            assert any(
                np.array_equal(clean, p.double().numpy()) and name == wanted
                for p, name in zip(pictures, names, strict=True)
            )


def test_a_style_becomes_the_thing_it_was_said_of(base: Denoiser, log: Watch) -> None:
    ConceptAblation(**{**SMALL, "templates": True, "batch": 60, "drawn": 60, "prior": 0.0}).fit(
        base, Concept("noto", kind="style"), log=log
    )
    things = [f"a {thing}" for thing in ("dog", "house", "flower", "car")]
    said = {f"{thing} in noto style": thing for thing in things}
    said |= {"noto": "", "noto style": "", "a picture in noto style": ""}
    goal, student = log.used[1]
    asked, aimed = (texts(base, [*said, *things, ""], call.ids) for call in (student, goal))
    assert set(zip(asked, aimed, strict=True)) == set(said.items())


# -- which weights -------------------------------------------------------------------------------------------------


def test_the_start_rows_key_and_value_teach_nothing(base: Denoiser) -> None:
    layer, rows = torch.nn.Linear(5, 3, bias=False), torch.randn(2, 4, 5)
    layer.register_forward_hook(hold_start)
    out = layer(rows)
    torch.testing.assert_close(out, rows @ layer.weight.T)  # sums of five products, in another order maybe
    (gradient,) = torch.autograd.grad((out * torch.arange(24.0).view(2, 4, 3)).sum(), [layer.weight])
    expected = sum(
        np.outer(np.arange(24.0).reshape(2, 4, 3)[b, n], rows[b, n].numpy()) for b in range(2) for n in (1, 2, 3)
    )
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-5)
    student = ConceptAblation().tuner(base, torch.Generator()).student
    for model, held in ((student, True), (base, False)):
        modules = dict(model.pipeline.unet.named_modules())
        assert {n for n, m in modules.items() if hold_start in m._forward_hooks.values()} == {
            n for n in modules if held and n.endswith(("attn2.to_k", "attn2.to_v"))
        }


LEARN = {"steps": 12, "batch": 4, "drawn": 6, "sampler_steps": 3, "lr": 3e-3, "templates": False}


def missed(base: Denoiser, student: Denoiser, concept: str = "tiger", anchor: str = "cat") -> float:
    """How far predictions for a concept are from the base's for an anchor, on pictures that training has not seen."""
    rng = torch.Generator().manual_seed(77)
    x0 = base.sample(base.embed([anchor]), seeds=range(900, 906), steps=3)
    t = torch.tensor([950, 800, 650, 500, 350, 200])
    x = base.add_noise(x0, t, torch.randn(x0.shape, generator=rng))
    with torch.no_grad():
        return float(
            (student.predict(x, t, student.embed([concept])) - base.predict(x, t, base.embed([anchor]))).square().mean()
        )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"objective": "reverse"},
        {"where": "text.embeddings", "lr": 0.15},
    ],
)
def test_training_arrives_at_the_anchor(base: Denoiser, settings: dict[str, object]) -> None:
    edited = ConceptAblation(**{**LEARN, **settings}).fit(base, Concept("tiger", "cat"))(base)
    assert missed(base, edited) < 0.75 * missed(base, base)


def test_aiming_at_the_noise_learns_the_anchors_pictures(base: Denoiser) -> None:
    edited = ConceptAblation(objective="noise", **LEARN).fit(base, Concept("tiger", "cat"))(base)
    rng = torch.Generator().manual_seed(3)
    x0 = base.sample(base.embed(["cat"]), seeds=range(900, 906), steps=3)
    t, eps = torch.tensor([950, 800, 650, 500, 350, 200]), torch.randn(x0.shape, generator=rng)
    x = base.add_noise(x0, t, eps)
    with torch.no_grad():
        before, after = (float((m.predict(x, t, m.embed(["tiger"])) - eps).square().mean()) for m in (base, edited))
    assert after < 0.9 * before  # even one that knew all would be left with some of the noise


def test_the_prior_holds_what_is_named(base: Denoiser) -> None:
    free, held = (
        ConceptAblation(prior=prior, **LEARN).fit(base, Concept("tiger", "cat"), ["lion"])(base) for prior in (0.0, 8.0)
    )
    for prompt in ("lion", "cat", ""):
        assert moved(base, held, prompt) < 0.9 * moved(base, free, prompt)


def test_while_words_learn_goals_are_read_by_the_base(base: Denoiser, log: Watch) -> None:
    method = ConceptAblation(where="text.embeddings", **{**SMALL, "lr": 0.1, "batch": 8, "drawn": 8})
    method.fit(base, Concept("red cat", "cat"), ["red car"], log=log)
    known = ["red cat", "cat", "red car", ""]
    calls = [c for c in log.used[1] if len(c.x) == 8]
    assert [c.learns for c in calls] == [False, True, False, True]
    for call in calls:
        said = texts(base, known, call.ids)
        red = torch.tensor(["red" in prompt for prompt in said])
        moved_rows = (call.rows - base.embed(said).tokens).abs().flatten(1).amax(1) > 1e-3
        assert torch.equal(moved_rows, red & torch.tensor(call.learns))
    assert "red car" in texts(base, known, calls[3].ids)


def test_only_the_concepts_own_words_learn(base: Denoiser) -> None:
    method = ConceptAblation(where="text.embeddings", **{**SMALL, "templates": True, "lr": 0.1})
    edit = method.fit(base, Concept("red cat", "cat"), ["red car"])
    edited = edit(base)
    assert isinstance(edit, LowRank)
    assert len(differing(snapshot(base), snapshot(edited))) == 1
    (old,), (new,) = base.params("text.embeddings").values(), edited.params("text.embeddings").values()
    assert (old != new).any(1).nonzero().flatten().tolist() == [int(base.embed(["red"]).ids[0, 1])]
    assert torch.equal(edited.embed(["a picture of a cat"]).tokens, base.embed(["a picture of a cat"]).tokens)


# -- a memorised picture -------------------------------------------------------------------------------------------


def picture(folder: Path, seed: int = 0) -> Path:
    folder.mkdir()
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(folder / "x.png")
    return folder


def test_given_pictures_are_learnt_from_with_every_prompt(
    base: Denoiser, tmp_path: Path, log: Watch, drawn: Drawn, noised: Noised
) -> None:
    folder = picture(tmp_path / "p")
    method = ConceptAblation(objective="reverse", pictures=str(folder), **{**SMALL, "batch": 20, "steps": 1})
    method.fit(base, Concept("tiger", "cat", prompts=("car",)), log=log)
    assert len(drawn) == 1  # what stays is drawn, the concept is not
    pixels = np.asarray(Image.open(folder / "x.png")) / np.float32(255)
    expected = base.encode(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    np.testing.assert_allclose(noised[0][0], expected.double().numpy().repeat(20, 0), atol=1e-5)
    student = next(c for c in log.used[0] if c.learns)
    assert set(texts(base, KNOWN, student.ids)) == {"tiger", "car"}


def fits(model: Denoiser, latents: Tensor, prompt: str) -> float:
    """How badly noise on a picture is predicted when the model is told the prompt: low where it knows the picture."""
    rng = torch.Generator().manual_seed(9)
    x0, t = latents.expand(16, -1, -1, -1), torch.arange(16) * 55 + 100
    eps = torch.randn(x0.shape, generator=rng)
    x = model.add_noise(x0, t, eps)
    with torch.no_grad():
        return float((model.predict(x, t, model.embed([prompt])) - model.native(x0, t, eps)).square().mean())


def test_a_memorised_picture_is_forgotten_and_another_is_not(base: Denoiser, tmp_path: Path) -> None:
    latents = {
        "red tiger": torch.full((1, *base.latent_shape), 2.0),
        "blue car": torch.full((1, *base.latent_shape), -2.0),
    }
    tuner, rng = Tuner(base, "denoiser", lr=3e-3), torch.Generator().manual_seed(0)
    for _ in range(40):  # make it know two pictures by their captions
        x0 = torch.cat([latents[c] for c in latents for _ in range(3)])
        t, eps = torch.randint(1000, (6,), generator=rng), torch.randn(x0.shape, generator=rng)
        cond = base.embed([c for c in latents for _ in range(3)])
        tuner.step((tuner.student.predict(base.add_noise(x0, t, eps), t, cond) - eps).square().mean())
    knows = tuner.edit()(base)
    folder = picture(tmp_path / "p")
    with pytest.MonkeyPatch.context() as patch:  # what the tiny autoencoder makes of a picture is none of these
        patch.setattr(Denoiser, "encode", lambda self, images: latents["red tiger"])
        method = ConceptAblation.preset("memorised", pictures=str(folder), steps=12, lr=2e-3, drawn=4, sampler_steps=2)
        edited = method.fit(knows, Concept("red tiger"), ["blue car"])(knows)
    gap = {c: [fits(m, x, "") - fits(m, x, c) for m in (knows, edited)] for c, x in latents.items()}
    assert min(gap["red tiger"][0], gap["blue car"][0]) > 0.015  # the caption tells it something of the picture
    assert gap["red tiger"][1] < 0.4 * gap["red tiger"][0]
    assert gap["blue car"][1] > 0.6 * gap["blue car"][0]


def test_pictures_that_are_not_there_are_one_sentence(base: Denoiser, tmp_path: Path) -> None:
    method = ConceptAblation(objective="reverse", pictures=str(tmp_path), **SMALL)
    with pytest.raises(
        UsageError, match=r"^ConceptAblation\.pictures: expected a folder of pictures, .* has no pictures; give"
    ):
        method.fit(base, "tiger")
    with pytest.raises(
        UsageError, match=r"^ConceptAblation\.pictures: expected '' with objective 'model', got 'x'; folder with"
    ):
        ConceptAblation(pictures="x")


# -- going on ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["xattn.kv", "text.embeddings"])
def test_killed_and_run_again_is_as_if_nothing_had_happened(base: Denoiser, tmp_path: Path, where: str) -> None:
    method = ConceptAblation(where=where, **{**SMALL, "steps": 27, "batch": 1, "prior": 0.5, "lr": 1e-3})
    straight, resumed, _ = killed_and_resumed(
        lambda log: method.fit(base, "tiger", log=log), tmp_path / "c.safetensors", stop=26, start=25
    )
    assert all(torch.equal(t, resumed.tensors()[k]) for k, t in straight.tensors().items())


def test_other_pictures_are_another_training(base: Denoiser, tmp_path: Path) -> None:
    folder, path = picture(tmp_path / "p"), tmp_path / "c.safetensors"
    method = ConceptAblation(
        objective="reverse", pictures=str(folder), **{**SMALL, "steps": 27, "batch": 1, "prior": 0.0}
    )
    for seed, start in ((0, 0), (0, 25), (1, 0)):
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(
            folder / "x.png"
        )
        log = Watch(None, path, stop=1 if path.exists() else 26)
        with pytest.raises(KeyboardInterrupt):
            method.fit(base, "tiger", log=log)
        assert log.advanced[0] == start


def test_no_steps_no_change(base: Denoiser) -> None:
    for settings in ({}, {"rank": 2}, {"where": "text.embeddings"}):
        edit = ConceptAblation(**{**SMALL, "steps": 0, **settings}).fit(base, "tiger")
        assert not differing(snapshot(base), snapshot(edit(base)))
