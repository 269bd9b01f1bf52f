"""MACE: its loss and its fusion against NumPy, where its pictures and masks come from, and a training that arrives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import mace as oracle
from PIL import Image
from torch import Tensor
from toys import differing, moved, snapshot

from efface.core.attention import recorded
from efface.core.concept import Concept
from efface.core.denoiser import Cond, Denoiser
from efface.core.edit import LowRank, TextMap
from efface.core.linalg import fuse
from efface.core.log import Log
from efface.erasers import mace
from efface.erasers.mace import MACE

SMALL: dict[str, Any] = {"steps": 2, "batch": 2, "sampler_steps": 2, "drawn": 2, "everyday": 20}


class Watch(Log):
    def __init__(self, checkpoint: Path | None = None, stop: int | None = None) -> None:
        super().__init__(checkpoint)
        self.stop, self.losses, self.advanced = stop, list[float](), list[int]()

    def stage(self, name: str, total: int) -> Callable[[int], None]:
        return self.advanced.append

    def loss(self, value: Tensor) -> None:
        self.losses.append(float(value))
        if len(self.losses) == self.stop:
            raise KeyboardInterrupt


# -- the fusion ----------------------------------------------------------------------------------------------------

D = 9


def problem(q: int, out: int, rank: int, refined: int, rows: int = 4) -> dict[str, Any]:
    rng = np.random.default_rng(q)
    half = rng.normal(size=(D, D))
    return {
        "old": rng.normal(size=(out, D)),
        "left": rng.normal(size=(D, refined)) / D,
        "right": rng.normal(size=(D, refined)),
        "loras": [(rng.normal(size=(out, rank)), rng.normal(size=(rank, D))) for _ in range(q)],
        "rows": [rng.normal(size=(rows, D)) for _ in range(q)],
        "weights": [rng.uniform(0.2, 2, rows) for _ in range(q)],
        "prior": half @ half.T / D + 0.1 * np.eye(D),
    }


def solved(p: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Up and down of ours."""
    loras = [{"w": tuple(map(torch.from_numpy, pair))} for pair in p["loras"]]
    grams = [torch.from_numpy((e.T * w) @ e) for e, w in zip(p["rows"], p["weights"], strict=True)]
    left, right, prior, old = (torch.from_numpy(p[k]) for k in ("left", "right", "prior", "old"))
    up, down = fuse({"w": old}, left, right, loras, grams, prior)["w"]
    return up.numpy(), down.numpy()


@pytest.mark.parametrize(
    ("q", "out", "rank", "refined"), [(1, 12, 1, 2), (3, 12, 1, 3), (20, 12, 1, 2), (2, 4, 2, 1), (2, 12, 1, D)]
)
def test_fusion_is_the_papers_normal_equations(q: int, out: int, rank: int, refined: int) -> None:
    p = problem(q, out, rank, refined)
    up, down = solved(p)
    mapped = p["old"] @ (np.eye(D) + p["left"] @ p["right"].T)
    args = p["old"], mapped, [a @ b for a, b in p["loras"]], p["rows"], p["weights"], p["prior"]
    np.testing.assert_allclose(p["old"] + up @ down, oracle.fused(*args), atol=1e-9)
    assert len(down) == min(refined + q * rank, out, D)  # exact, and never larger than it must be
    best, rng = oracle.objective(p["old"] + up @ down, *args), np.random.default_rng(5)
    for _ in range(20):
        assert oracle.objective(p["old"] + up @ down + 1e-3 * rng.normal(size=(out, D)), *args) > best


def test_one_concept_without_a_prior_is_its_lora_where_its_prompts_lie() -> None:
    p = problem(1, 7, 1, 2)
    up, down = solved({**p, "prior": 1e-8 * np.eye(D)})
    new, mapped = p["old"] + up @ down, p["old"] @ (np.eye(D) + p["left"] @ p["right"].T)
    a, b = p["loras"][0]
    e = p["rows"][0].T @ np.random.default_rng(0).normal(size=4)
    np.testing.assert_allclose(new @ e, (mapped + a @ b) @ e, atol=1e-5)
    u = np.linalg.svd(p["rows"][0])[2][-1]  # no prompt lies there
    np.testing.assert_allclose(new @ u, p["old"] @ u, atol=1e-5)


def test_an_edit_is_the_fusion_of_what_each_concept_learnt(base: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(mace, "fuse", lambda *a: (given.append(a), fuse(*a))[1])
    edit = MACE(**SMALL, lr=1e-2).fit(base, ["tiger", "car"], ["lion"])
    weights, left, right, loras, grams, prior = given[0]
    assert weights.keys() == base.params("xattn.kv").keys() == edit.factors.keys()
    assert len(loras) == len(grams) == 2
    ranks = [int(np.linalg.matrix_rank((up @ down).numpy())) for up, down in loras[0].values()]
    assert set(ranks) <= {0, 1}  # what comes after the last attention has no gradient
    assert sum(ranks) > len(ranks) / 2
    new = edit(base).params(weights)
    eye = torch.eye(len(left), dtype=torch.float64)
    for name, w in weights.items():
        old, bottom = w.double().numpy(), (sum(grams) + prior).numpy()
        mapped = old @ (eye + left @ right.T).numpy()
        pulled = [
            ((mapped + (up @ down).numpy()) @ k.numpy())
            for (up, down), k in ((m[name], k) for m, k in zip(loras, grams, strict=True))
        ]
        want = (sum(pulled) + old @ prior.numpy()) @ np.linalg.inv(bottom)
        np.testing.assert_allclose(new[name].numpy(), want, atol=1e-4)


def test_both_priors_are_in_units_of_what_the_concepts_weigh(base: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eq. 1 has λ1 and eq. 7 λ2, each times the mean eigenvalue of the concepts' second moment, where everyday words lie."""
    refined: list[tuple[Tensor, Tensor]] = []
    fused: list[Tensor] = []
    refine = mace.refine
    monkeypatch.setattr(mace, "refine", lambda pairs, *a: (refined.append(a), refine(pairs, *a))[1])
    monkeypatch.setattr(mace, "fuse", lambda *a: (fused.append(a[-1]), fuse(*a))[1])
    MACE(**{**SMALL, "steps": 1}, refine_prior=0.3, fuse_prior=0.7).fit(base, ["tiger", "car"], ["lion"])

    def read(cond: Cond) -> tuple[np.ndarray, list[int]]:
        return cond.tokens.double().numpy(), cond.mask.sum(1).tolist()

    tiger, car, lion = (
        oracle.moment(*read(mace.prompt_pairs(base, Concept(name)).prompts)) for name in ("tiger", "car", "lion")
    )
    kept = lion + oracle.moment(*read(base.embed([""])))
    unit = np.linalg.eigvalsh(tiger + car).mean()
    prior = unit * oracle.metric(*read(base.embed(base.everyday(SMALL["everyday"], ["tiger", "car", ""]))))
    assert unit > 2  # so that it shows
    np.testing.assert_allclose(refined[0][0].numpy(), kept, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(refined[0][1].numpy(), 0.3 * prior, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(fused[0].numpy(), kept + 0.7 * prior, rtol=1e-6, atol=1e-8)


# -- what a LoRA learns from ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["own", "ends"])
@pytest.mark.parametrize("loss", ["square", "norm"])
def test_the_loss_is_the_papers(base: Denoiser, monkeypatch: pytest.MonkeyPatch, words: str, loss: str) -> None:
    seen: list[tuple[Denoiser, Tensor, Tensor, Cond]] = []
    predict = Denoiser.predict

    def noted(self: Denoiser, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        seen.append((self, x, t, cond))
        return predict(self, x, t, cond)

    places: list[Tensor] = []
    draw = MACE.draw
    monkeypatch.setattr(MACE, "draw", lambda *a: (lambda out: (places.append(out[1]), out)[1])(draw(*a)))
    monkeypatch.setattr(Denoiser, "predict", noted)
    log = Watch()
    MACE(**{**SMALL, "drawn": 1, "steps": 1}, lr=1e-9, words=words, loss=loss).fit(base, "tiger", log=log)
    student, x, t, cond = seen[-1]
    assert student is not base
    tiger = int(base.embed(["tiger"]).ids[0, 1])
    said = cond.ids == tiger
    if words == "ends":
        said |= torch.arange(16) >= cond.mask.sum(1, keepdim=True) - 1
    with torch.no_grad(), recorded(student, torch.ones(1, 16, dtype=torch.bool)) as maps:
        predict(student, x, t, cond)
    grids = {name: int(m.shape[2] ** 0.5) for name, m in maps.items()}
    masks = [np.stack([oracle.shrunk(places[0][0].numpy(), n, n)] * 2) for n in grids.values()]
    picked = [(m * said[:, None, None]).numpy() for m in maps.values()]
    assert log.losses[0] == pytest.approx(oracle.loss(picked, masks, loss == "square"), rel=1e-4)
    assert 0 < places[0].mean() < 1


def test_it_starts_from_the_refined_model_and_pictures_of_the_base(
    base: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[Denoiser, Cond, dict[str, Any]]] = []
    sample = Denoiser.sample
    monkeypatch.setattr(Denoiser, "sample", lambda self, c, **k: (drawn.append((self, c, k)), sample(self, c, **k))[1])
    maps: list[tuple[Tensor, Tensor]] = []
    monkeypatch.setattr(mace, "TextMap", lambda *a: (maps.append(a), TextMap(*a))[1])
    students: list[Denoiser] = []
    monkeypatch.setattr(mace, "recorded", lambda model, own: (students.append(model), recorded(model, own))[1])
    MACE(**{**SMALL, "drawn": 5}).fit(base, Concept("tiger", "cat"))
    model, cond, how = drawn[0]
    assert model is base
    assert list(how["seeds"]) == [0, 1, 2, 3, 4]
    plain = base.embed(["a tiger", "a picture of a tiger"]).ids
    assert torch.equal(cond.ids, plain[[0, 1, 0, 1, 0]])
    before = TextMap(*maps[0])(base).params("xattn.kv")
    now = students[-1].params("xattn.kv")
    assert all(torch.equal(w, now[k]) for k, w in before.items())


def test_masks_come_from_attention_from_files_or_are_the_whole_picture(base: Denoiser, tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)

    def place(eraser: MACE, concept: Concept) -> Tensor:
        return eraser.draw(base, concept, mace.prompt_pairs(base, concept), rng)[1]

    tiger, size = Concept("tiger"), base.image_size
    warm = place(MACE(**SMALL, threshold=0.5), tiger)
    assert 0 < warm.mean() < place(MACE(**SMALL, threshold=0.2), tiger).mean() < 1
    assert place(MACE(**SMALL), Concept("red", kind="style")).mean() == 1
    half = np.zeros((size, size), np.uint8)
    half[: size // 2] = 255
    Image.fromarray(half).save(tmp_path / "all.png")
    filed = place(MACE(**SMALL, masks=str(tmp_path)), tiger)
    assert torch.equal(filed, torch.from_numpy(half / 255).float().expand(2, -1, -1))
    edits = [MACE(**SMALL, lr=1e-2, masks=m).fit(base, "tiger") for m in ("attention", str(tmp_path))]
    assert any(not torch.equal(t, edits[1].tensors()[k]) for k, t in edits[0].tensors().items())


@pytest.mark.parametrize("focus", [True, False])
def test_noise_levels_are_focal_unless_told_otherwise(
    base: Denoiser, monkeypatch: pytest.MonkeyPatch, focus: bool
) -> None:
    levels: list[int] = []
    noise = Denoiser.add_noise
    monkeypatch.setattr(
        Denoiser, "add_noise", lambda self, x, t, e: (levels.extend(t.tolist()), noise(self, x, t, e))[1]
    )
    MACE(**{**SMALL, "steps": 1, "batch": 40}, focus=focus).fit(base, Concept("red", kind="style"))
    assert len(levels) == 40
    inside = sum(100 < t < 500 for t in levels)
    assert inside == 40 if focus else 5 < inside < 30


# -- training ------------------------------------------------------------------------------------------------------


def attention(base: Denoiser, model: Denoiser, word: str) -> float:
    """What the base's pictures pay to a word under `model`."""
    cond = base.embed([f"a picture of a {word}"])
    own = cond.ids == base.embed([word]).ids[0, 1]
    x = torch.randn(4, *base.latent_shape, generator=torch.Generator().manual_seed(9))
    with torch.no_grad(), recorded(model, own) as maps:
        model.predict(x, torch.full((4,), 300), cond)
    return float(torch.stack([m.square().mean() for m in maps.values()]).sum())


def test_training_takes_attention_from_the_concept_and_leaves_it_to_others(base: Denoiser) -> None:
    erase = [Concept("tiger", "cat"), Concept("car", "boat")]
    edited = MACE(**{**SMALL, "steps": 10}, lr=3e-2, fuse_prior=0.1).fit(base, erase, ["lion"])(base)
    for name in ("tiger", "car"):
        assert attention(base, edited, name) < 0.5 * attention(base, base, name)
        assert moved(base, edited, name) > 2 * max(moved(base, edited, other) for other in ("lion", "house", ""))
    for name in ("lion", "house"):
        assert attention(base, edited, name) > 0.7 * attention(base, base, name)


def test_a_concept_learns_the_same_beside_others(base: Denoiser) -> None:
    few, many = (MACE(**SMALL, lr=1e-2).fit(base, e, ["house"])(base) for e in (["tiger"], ["tiger", "car"]))
    assert abs(attention(base, few, "tiger") - attention(base, many, "tiger")) < 0.3 * attention(base, base, "tiger")


def test_ctrl_c_and_again_is_as_if_nothing_had_happened(base: Denoiser, tmp_path: Path) -> None:
    path, some, erase = (
        tmp_path / "c.safetensors",
        {**SMALL, "steps": 1, "drawn": 1, "lr": 1e-2},
        ["tiger", "car", "dog"],
    )
    straight = MACE(**some).fit(base, erase)
    with pytest.raises(KeyboardInterrupt):
        MACE(**some).fit(base, erase, log=Watch(path, stop=3))
    for other, names in (({"lr": 2e-3}, erase), ({}, erase[:2])):
        log = Watch(path, stop=1)
        with pytest.raises(KeyboardInterrupt):
            MACE(**{**some, **other}).fit(base, names, log=log)
        assert log.advanced[0] == 0
    log = Watch(path)
    resumed = MACE(**some).fit(base, erase, log=log)
    assert (log.advanced[0], len(log.losses)) == (2, 1)  # two concepts were done
    assert all(torch.equal(t, resumed.tensors()[k]) for k, t in straight.tensors().items())
    assert not path.exists()


def test_no_steps_no_change(base: Denoiser) -> None:
    edit = MACE(steps=0).fit(base, "tiger")
    assert isinstance(edit, LowRank)
    assert not differing(snapshot(base), snapshot(edit(base)))
