"""Words that learn: their rows of the token embedding, and nothing else."""

import pytest
import torch
from toys import differing, snapshot, tiny

from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.erasers.parts.embeddings import WordTuner, own_words


def ids(base: Denoiser, prompt: str) -> list[int]:
    cond = base.embed([prompt])
    return cond.ids[0, 1 : int(cond.mask.sum()) - 1].tolist()


@pytest.mark.parametrize("pad", [None, "!"])
def test_rows_of_these_words_learn_and_no_others(pad: str | None) -> None:
    base = tiny(pad=pad)
    before = snapshot(base)
    tuner = WordTuner(base, ids(base, "red tiger"), lr=0.1)
    aim = base.embed(["blue cat"]).tokens
    losses = []
    for _ in range(12):
        loss = (tuner.student.embed(["red tiger"], grad=True).tokens - aim).square().mean()
        losses.append(float(loss.detach()))
        tuner.step(loss)
    assert losses[-1] < 0.5 * losses[0]
    edit = tuner.edit()
    edited = edit(base)
    assert len(differing(snapshot(base), snapshot(edited))) == 1
    (old,), (new,) = base.params("text.embeddings").values(), edited.params("text.embeddings").values()
    assert sorted((old != new).any(1).nonzero().flatten().tolist()) == sorted(ids(base, "red tiger"))
    torch.testing.assert_close(edited.embed(["a red tiger"]).tokens, tuner.student.embed(["a red tiger"]).tokens)
    assert torch.equal(edited.embed(["a blue cat"]).tokens, base.embed(["a blue cat"]).tokens)
    assert sum(t.numel() for t in edit.tensors().values()) == 2 * sum(old.shape)  # not the whole table
    assert not differing(before, snapshot(base))


def test_the_gradient_is_that_of_the_rows(base: Denoiser) -> None:
    tuner = WordTuner(base, ids(base, "tiger"), lr=0.1)
    aim = torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(0))

    def loss() -> torch.Tensor:
        return (tuner.student.embed(["tiger cat"], grad=True).tokens.double() * aim).sum()

    (rows,) = tuner.leaves.values()
    (gradient,) = torch.autograd.grad(loss(), [rows])
    for k in (0, 7, 40):
        with torch.no_grad():
            rows[0, k] += 1e-2
            up = float(loss())
            rows[0, k] -= 2e-2
            down = float(loss())
            rows[0, k] += 1e-2
        assert float(gradient[0, k]) == pytest.approx((up - down) / 2e-2, rel=0.05, abs=0.02)


def test_state_and_restore(base: Denoiser) -> None:
    def step(tuner: WordTuner) -> None:
        tuner.step(tuner.student.embed(["tiger"], grad=True).tokens[..., 0].square().sum())

    one, two = (WordTuner(base, ids(base, "tiger"), lr=0.1) for _ in range(2))
    step(one)
    two.restore({k: v.clone() for k, v in one.state().items()})
    step(one)
    step(two)
    ((name, rows),) = one.leaves.items()
    assert torch.equal(rows, two.leaves[name])
    assert rows.abs().min() > 0


@pytest.mark.parametrize(
    ("concept", "own"),
    [
        (Concept("tiger"), "tiger"),
        (Concept("tiger", "cat"), "tiger"),
        (Concept("red cat", "cat"), "red"),
        (Concept("tiger", "cat", prompts=("happy cat", "lion")), "tiger happy lion"),
        (Concept("cat cat", "cat"), "cat"),  # no word of its own: all of them
    ],
)
def test_a_concepts_own_words_are_those_its_target_does_not_say(base: Denoiser, concept: Concept, own: str) -> None:
    assert own_words(base, [concept]) == sorted(ids(base, own))
    both = own_words(base, [concept, Concept("boat")])
    assert both == sorted({*ids(base, own), *ids(base, "boat")})
