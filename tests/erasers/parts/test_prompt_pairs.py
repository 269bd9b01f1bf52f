"""Words that co-occur with a concept: which rows are paired, what the map does to them, what it leaves."""

import numpy as np
import pytest
import torch
from oracles import mace as oracle
from oracles import uce as oracle_uce

from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.errors import UsageError
from efface.erasers.parts.prompt_pairs import (
    MACE_TEMPLATES,
    PromptPairs,
    co_occurring,
    moment,
    prompt_pairs,
    refine,
)


def words(base: Denoiser, prompt: str) -> list[str]:
    ids = base.embed([prompt]).ids[0].tolist()
    return base.pipeline.tokenizer.convert_ids_to_tokens(ids)[: int(base.embed([prompt]).mask.sum())]


@pytest.mark.parametrize(
    ("source", "goal"),
    [
        ("a tiger of a house", "a cat of a house"),
        ("a tiger of a house", "a red cat of a house"),  # of other lengths
        ("a tiger of a house", "of a house"),  # nothing
        ("tiger", ""),
        ("a picture of a tiger", "a picture of a lion"),
        ("tiger tiger", "tiger"),  # what begins both does not end them as well
        ("tiger", "tiger"),
    ],
)
def test_words_beside_a_concept_are_what_both_prompts_begin_and_end_with(
    base: Denoiser, source: str, goal: str
) -> None:
    one, two = base.embed([source]), base.embed([goal])
    rows, goals, leads = co_occurring(one, two)
    pairs, before = oracle.beside(words(base, source), words(base, goal))
    for (i, j), row, to in zip(pairs, rows, goals, strict=False):
        assert torch.equal(row, one.tokens[0, i])
        assert torch.equal(to, two.tokens[0, j])
    assert len(rows) == len(goals) == len(pairs) + 1
    for cond, mean in ((one, rows[-1]), (two, goals[-1])):
        torch.testing.assert_close(mean, cond.tokens[0][cond.mask[0] == 0].mean(0))
    assert torch.equal(leads, one.tokens[0, :before])
    torch.testing.assert_close(leads, two.tokens[0, :before], atol=1e-5, rtol=0)  # they have not read what comes


def test_a_concept_is_said_in_every_template_with_its_target_in_the_same_words(base: Denoiser) -> None:
    pairs = prompt_pairs(base, Concept("tiger", "cat", prompts=("lion",)))
    assert pairs.plain == 4
    said = [" ".join(words(base, f.format("tiger", "a tiger"))) for f in MACE_TEMPLATES["object"]]
    read = [base.pipeline.tokenizer.convert_ids_to_tokens(ids.tolist()) for ids in pairs.prompts.ids]
    first = [" ".join(r[: int(m.sum())]) for r, m in zip(read, pairs.prompts.mask, strict=True)][::2]
    assert set(first) <= set(said)
    assert len(first) >= 5
    for ids, goal, own in zip(pairs.prompts.ids, pairs.targets.ids, pairs.own, strict=True):
        assert torch.equal(ids[~own], goal[~own])  # one word each: the rest is the same
        assert not torch.equal(ids[own], goal[own])
    assert torch.equal(pairs.ends.sum(1), 17 - pairs.prompts.mask.sum(1))
    assert not (pairs.ends & (torch.arange(16) < pairs.prompts.mask.sum(1, keepdim=True) - 1)).any()
    bare = prompt_pairs(base, Concept("tiger"))
    assert words(base, "") == ["<|startoftext|>", "<|endoftext|>"]
    assert int(bare.targets.mask[0].sum()) == 2
    with pytest.raises(UsageError, match=r"^concept: expected a name that fits the text encoder's length, got 'w{16}'"):
        prompt_pairs(base, Concept("w" * 16))


def refined(pairs: list[PromptPairs], base: Denoiser, weight: float) -> torch.Tensor:
    d = pairs[0].prompts.tokens.shape[2]
    left, right = refine(pairs, weight * moment(base.embed(["lion", ""])), weight * torch.eye(d, dtype=torch.float64))
    return torch.eye(d, dtype=torch.float64) + left @ right.T


def test_the_map_moves_words_beside_a_concept_and_no_others(base: Denoiser) -> None:
    pairs = prompt_pairs(base, Concept("tiger", "cat"))
    t = refined([pairs], base, 1e-6)
    rows, goals, leads = co_occurring(*(base.embed([p]) for p in ("a tiger on a table", "a cat on a table")))
    for row, goal in zip(rows.double(), goals.double(), strict=True):
        assert (t @ row - goal).norm() < 0.4 * (row - goal).norm()
    for lead in leads.double():
        assert (t @ lead - lead).norm() < 1e-2 * lead.norm()
    own = (
        base.embed(["a tiger on a table"]).tokens[0, 2].double()
    )  # no row asks it to move: it moves as its likeness does
    assert (t @ own - own).norm() < 0.5 * (own - base.embed(["a cat on a table"]).tokens[0, 2]).norm()


@pytest.mark.parametrize("weight", [1e-2, 1.0])
def test_the_map_is_the_papers_normal_equations(base: Denoiser, weight: float) -> None:
    pairs = [prompt_pairs(base, Concept("tiger", "cat")), prompt_pairs(base, Concept("car"))]
    old = np.random.default_rng(0).normal(size=(5, 64))
    rows, goals, ws, kept, bs = [], [], [], [], []
    for t in pairs:
        for i in range(len(t.prompts)):
            c, g, p = co_occurring(t.prompts[[i]], t.targets[[i]])
            rows, goals, kept = [*rows, *c], [*goals, *g], [*kept, *p]
            ws, bs = ws + [1 / len(t.prompts)] * len(c), bs + [1 / len(t.prompts)] * len(p)
    for cond in (base.embed(["lion", ""])[[i]] for i in range(2)):
        for row, real in zip(cond.tokens[0], cond.mask[0], strict=True):
            kept.append(row)
            bs.append(weight / 2 if real else weight / 2 / int((cond.mask == 0).sum()))
    c, g, p = (torch.stack(v).T.double().numpy() for v in (rows, goals, kept))
    want = oracle_uce.normal_equations(old, c, g, np.array(ws), p, np.array(bs), weight)
    np.testing.assert_allclose(old @ refined(pairs, base, weight).numpy(), want, atol=1e-5)
