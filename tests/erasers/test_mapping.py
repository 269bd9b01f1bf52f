"""Text mapping: eq. 2 against NumPy, a training that arrives, and how anyone undoes it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import mapping as oracle
from toys import LENGTH, differing, moved, probe, snapshot
from watch import Watch, killed_and_resumed

from efface.core.concept import Concept
from efface.core.denoiser import Cond, Denoiser
from efface.core.edit import LowRank
from efface.erasers.mapping import TextMapping, aligned, unchanged

LEARN = {"steps": 30, "lr": 2e-3, "templates": False, "everyday": 6}


def rows(base: Denoiser, prompt: str) -> np.ndarray:
    return base.embed([prompt]).tokens[0].double().numpy()


# -- the objective -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "lead"),
    [
        ("tiger", "cat", 0),
        ("tiger", "", 0),
        ("red tiger", "cat", 0),
        ("tiger", "happy blue cat", 0),
        ("a picture of a tiger", "a picture of a cat", 4),
        ("a picture of a tiger", "", 4),
    ],
)
def test_rows_are_paired_in_order_and_the_rest_stays(base: Denoiser, source: str, target: str, lead: int) -> None:
    goal, weights, pooled = aligned(base.embed(["lion", source]), base.embed(["", target]), [0, lead])
    before, aim = rows(base, source), rows(base, target)
    expected, heavy = before.copy(), np.zeros(LENGTH)
    for row, place, own, weight in oracle.pairs(len(source.split()), len(target.split()), LENGTH, lead):
        expected[row], heavy[row] = before[row] if own else aim[place], weight
    counted = heavy > 0
    assert pooled is None  # of Stable Diffusion 1 and 2
    np.testing.assert_allclose(weights[1].numpy(), heavy, atol=1e-6)
    np.testing.assert_allclose(goal[1].double().numpy()[counted], expected[counted], atol=1e-6)
    assert heavy.sum() == pytest.approx(len(source.split()) + 3)  # start, words, end, and padding as one


def test_what_stays_aims_at_itself(base: Denoiser) -> None:
    goal, weights, pooled = unchanged(base, ["", "a lion"])
    assert torch.equal(goal, base.embed(["", "a lion"]).tokens)
    assert pooled is None
    assert weights.sum(1).tolist() == pytest.approx([3, 5])
    assert weights[1].tolist() == pytest.approx([1] * 4 + [1 / 12] * 12)


@pytest.mark.parametrize(("scale", "trust"), [(0.0, 0.0), (2.0, 0.0), (2.0, 30.0)])
def test_the_loss_is_equation_2_with_what_stays(
    base: Denoiser, monkeypatch: pytest.MonkeyPatch, scale: float, trust: float
) -> None:
    seen: list[tuple[list[str], np.ndarray, list[np.ndarray]]] = []
    embed = Denoiser.embed

    def noted(self: Denoiser, prompts: list[str], grad: bool = False) -> Cond:
        cond = embed(self, prompts, grad)
        if grad:
            weights = [w.detach().double().numpy().copy() for w in self.params("text").values()]
            seen.append((prompts, cond.tokens.detach().double().numpy(), weights))
        return cond

    monkeypatch.setattr(Denoiser, "embed", noted)
    log, kept = Watch(), ["", "lion"]
    method = TextMapping(
        where="text", steps=3, lr=1e-2, preserve_scale=scale, trust=trust, templates=False, everyday=2, batch=9
    )
    method.fit(base, [Concept("tiger", "cat"), Concept("red car", "boat")], ["lion"], log=log)
    words = base.words(6)
    everyday = [w for w in words if w not in ("tiger", "cat", "red", "car", "boat")][:2]
    before = [w.double().numpy() for w in base.params("text").values()]
    aims = {"tiger": "cat", "red car": "boat"}
    for step, value in enumerate(log.losses):
        erased, named, common = seen[3 * step : 3 * step + 3]
        assert set(erased[0]) == set(aims)
        assert set(named[0]) == set(kept)
        assert set(common[0]) == {text for w in everyday for text in (w, f"{'an' if w[0] in 'aeiou' else 'a'} {w}")}
        parts = [
            [
                oracle.erasing(r, rows(base, p), rows(base, aims[p]), oracle.pairs(len(p.split()), 1, LENGTH))
                for p, r in zip(*erased[:2], strict=True)
            ]
        ]
        parts += [
            [oracle.keeping(r, rows(base, p), len(p.split())) for p, r in zip(*pool[:2], strict=True)]
            for pool in (named, common)
        ]
        missed = [sum(total for total, _ in part) / sum(weight for _, weight in part) for part in parts]
        expected = missed[0] + scale * (missed[1] + missed[2]) + trust * oracle.drift(erased[2], before)
        assert value == pytest.approx(expected, rel=1e-4)
    assert len(log.losses) == 3
    assert missed[1] > 1e-4  # by then the encoder has moved
    assert oracle.drift(erased[2], before) > 1e-5


# -- training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{}, {"where": "text"}, {"where": "text.embeddings", "lr": 0.1}, {"rank": 4, "lr": 2e-2}]
)
def test_the_concept_is_read_and_drawn_as_its_target(base: Denoiser, settings: dict[str, object]) -> None:
    edit = TextMapping(**{**LEARN, **settings}).fit(base, Concept("tiger", "cat"), ["lion"])
    edited = edit(base)
    assert isinstance(edit, LowRank) is ("rank" in settings)
    far, near = (np.abs(rows(m, "tiger") - rows(base, "cat")).mean() for m in (base, edited))
    assert near < 0.6 * far
    cat, before, after = probe(base, "cat"), probe(base, "tiger"), probe(edited, "tiger")
    assert (after - cat).norm() < 0.7 * (before - cat).norm()
    assert moved(base, edited, "lion") < 0.5 * moved(base, edited, "tiger")


def test_what_is_preserved_and_the_pull_home_hold(base: Denoiser) -> None:
    free, kept, home = (
        TextMapping(**{**LEARN, "everyday": 0}, preserve_scale=scale, trust=trust).fit(base, "tiger", ["lion"])
        for scale, trust in ((0.0, 0.0), (10.0, 0.0), (0.0, 1e4))
    )
    for prompt in ("lion", ""):
        assert moved(base, kept(base), prompt) < 0.7 * moved(base, free(base), prompt)
    size = [sum(float(d.square().sum()) for d in e.tensors().values()) for e in (free, home)]
    assert size[1] < 0.3 * size[0]


def test_the_stock_encoder_undoes_it(base: Denoiser) -> None:
    edited = TextMapping(**LEARN).fit(base, Concept("tiger", "cat"))(base)
    assert {name.partition(".")[0] for name in differing(snapshot(base), snapshot(edited))} == {"text"}
    assert moved(base, edited, "tiger") > 0.1
    edited.pipeline.text_encoder = base.pipeline.text_encoder
    assert torch.equal(probe(edited, "tiger"), probe(base, "tiger"))


def test_no_steps_no_change(base: Denoiser) -> None:
    assert not differing(snapshot(base), snapshot(TextMapping(steps=0).fit(base, "tiger")(base)))


def test_killed_and_run_again_is_as_if_nothing_had_happened(base: Denoiser, tmp_path: Path) -> None:
    some = {"steps": 27, "batch": 2, "everyday": 6, "lr": 1e-3}
    straight, resumed, _ = killed_and_resumed(
        lambda log: TextMapping(**some).fit(base, "tiger", ["lion"], log=log),
        tmp_path / "c.safetensors",
        stop=26,
        start=25,
    )
    assert all(torch.equal(t, resumed.tensors()[k]) for k, t in straight.tensors().items())
