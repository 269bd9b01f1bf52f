"""UCE: the four facts of its closed form, its pairing of rows, and what it does to a model."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from oracles import uce as oracle
from torch import Tensor
from toys import LENGTH, WIDTH, moved, tiny

from efface.core.concept import Concept
from efface.core.denoiser import Denoiser, load
from efface.core.edit import Delta, TextMap
from efface.core.linalg import gram
from efface.core.prompts import targets_in_names
from efface.core.rows import KeptRows, within
from efface.erasers.uce import UCE, keep_rows, pair_rows
from efface.metrics.detectors import detector

ABSOLUTE = {"ridge_unit": "absolute", "ridge": 0.5}


def matrix(edit: TextMap) -> np.ndarray:
    return np.eye(WIDTH) + edit.left.double().numpy() @ edit.right.double().numpy().T


def rows(base: Denoiser, prompt: str) -> np.ndarray:
    return base.embed([prompt]).tokens[0].double().numpy()


def constraints(base: Denoiser, tokens: str, erase: str, target: str, kept: list[str]) -> dict[str, np.ndarray]:
    """The columns, targets and weights of one erased prompt, written down from the definition of each way to pair."""
    erased, goal = rows(base, erase), rows(base, target)
    n, words = LENGTH, {p: int(base.embed([p]).mask.sum()) - 2 for p in (erase, target, *kept)}
    if tokens == "content":
        pairs = oracle.content_pairs(n, words[erase], words[target])
    elif tokens == "last":
        pairs = [(words[erase], words[target], 1.0)]
    else:
        pairs = [(words[erase] + i, words[target] + i, 1.0) for i in range(n - max(words[erase], words[target]))]
    p, b = [], []
    for prompt in kept:
        for i, row in enumerate(rows(base, prompt)):
            pads = n - 2 - words[prompt]
            weight = {
                "content": 1.0 if i <= words[prompt] + 1 else 1 / pads,
                "last": float(i == words[prompt]),
                "last_to_end": 1.0,
            }[tokens]
            p.append(row)
            b.append(weight)
    c = np.stack([erased[i] for i, _, _ in pairs], 1)
    g = np.stack([goal[j] for _, j, _ in pairs], 1)
    return {"c": c, "g": g, "a": np.array([w for _, _, w in pairs]), "p": np.stack(p, 1), "b": np.array(b)}


# -- the closed form -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", ["content", "last_to_end", "last"])
@pytest.mark.parametrize(
    ("erase", "target"), [("a tiger", "cat"), ("leopard", "a happy cat"), ("a red tiger", ""), ("cat", "leopard")]
)
def test_every_projection_is_the_papers_solution(base: Denoiser, tokens: str, erase: str, target: str) -> None:
    edit = UCE(tokens=tokens, erase_scale=1.5, preserve_scale=0.7, **ABSOLUTE).solve(
        base.embed([erase]), base.embed([target]), KeptRows.of(base, ["lion", "a dog"], tokens)
    )
    q = constraints(base, tokens, erase, target, ["lion", "a dog"])
    q["a"], q["b"] = 1.5 * q["a"], 0.7 * q["b"]
    for name, w in list(base.params("xattn.kv").items())[::5]:
        old = w.double().numpy()
        new = edit(base).params([name])[name].double().numpy()
        np.testing.assert_allclose(
            new, oracle.normal_equations(old, **q, ridge=0.5), atol=1e-5
        )  # the edit is kept in float32
        np.testing.assert_allclose(new, oracle.least_squares(old, **q, ridge=0.5), atol=1e-5)
        assert np.abs(new - old).max() > 0.01


def test_a_relative_ridge_is_in_units_of_the_mean_eigenvalue(base: Denoiser) -> None:
    words = base.embed(["a tiger"]), base.embed(["cat"]), KeptRows.of(base, ["lion", ""], "content")
    q = constraints(base, "content", "a tiger", "cat", ["lion", ""])
    gram = (q["c"] * q["a"]) @ q["c"].T + (q["p"] * q["b"]) @ q["p"].T
    unit = float(np.linalg.eigvalsh(gram).mean())
    relative = UCE(ridge=0.01).solve(*words)
    absolute = UCE(ridge=0.01 * unit, ridge_unit="absolute").solve(*words)
    np.testing.assert_allclose(matrix(relative), matrix(absolute), atol=1e-5)


def test_everyday_words_shape_the_ridge_as_preserved_rows_would(base: Denoiser) -> None:
    """λ |(W' - W) R^½|² with R = 0.9 d M / tr M + 0.1 I is λ/10 and every row preserved with weight 0.9 λ d w / tr M."""
    q = constraints(base, "content", "a tiger", "cat", ["lion"])
    calm = constraints(base, "content", "tiger", "cat", ["moon", "a river"])
    trace = float((calm["b"] * (calm["p"] ** 2).sum(0)).sum())
    q["p"] = np.concatenate([q["p"], calm["p"]], 1)
    q["b"] = np.concatenate([q["b"], 0.9 * 0.5 * WIDTH / trace * calm["b"]])
    edit = UCE(**ABSOLUTE).solve(
        base.embed(["a tiger"]),
        base.embed(["cat"]),
        KeptRows.of(base, ["lion"], "content"),
        everyday=base.embed(["moon", "a river"]),
    )
    for name, w in list(base.params("xattn.kv").items())[::5]:
        new = edit(base).params([name])[name].double().numpy()
        np.testing.assert_allclose(new, oracle.least_squares(w.double().numpy(), **q, ridge=0.05), atol=1e-5)


def test_everyday_words_stay_and_the_erased_is_none_of_them(base: Denoiser) -> None:
    assert base.words(4) == ["picture", "style", "tiger", "lion"]  # the order in which the tokenizer learnt them
    assert "café" not in base.words(1000)
    pulled, free = (UCE(everyday=n, templates=False).fit(base, Concept("tiger", "cat"))(base) for n in (1000, 0))
    assert moved(base, pulled, "tiger") > 0.8 * moved(base, free, "tiger")
    calm = [w for w in base.words(1000) if w not in ("tiger", "cat")]
    assert sum(moved(base, pulled, w) for w in calm) < sum(moved(base, free, w) for w in calm)


def test_a_target_equal_to_the_concept_changes_nothing(base: Denoiser) -> None:
    for tokens in ("content", "last_to_end", "last"):
        words = base.embed(["a tiger", "leopard"])
        edit = UCE(tokens=tokens).solve(words, words, KeptRows.of(base, ["lion"], tokens))
        assert np.array_equal(matrix(edit), np.eye(WIDTH)), tokens


def test_the_order_of_concepts_is_irrelevant(base: Denoiser) -> None:
    some = [Concept("tiger", "cat"), Concept("car", ""), Concept("leopard", "a dog")]
    one = UCE().fit(base, some, ["lion", "boat"])
    two = UCE().fit(base, some[::-1], ["boat", "lion"])
    np.testing.assert_allclose(matrix(one), matrix(two), atol=1e-5)


def test_one_map_serves_every_key_and_value(base: Denoiser) -> None:
    edit = UCE().fit(base, Concept("tiger", "cat"))
    edited = edit(base)
    assert edit.changes(base).keys() == base.params("xattn.kv").keys()
    for name, w in edited.params("xattn.kv").items():
        np.testing.assert_allclose(w.numpy(), base.params([name])[name].double().numpy() @ matrix(edit), atol=1e-5)


# -- the technique "tensor" -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", ["content", "last_to_end"])
def test_tensor_takes_what_a_projection_makes_of_the_concept_out_of_the_target(base: Denoiser, tokens: str) -> None:
    erase = [("a tiger", "a cat"), ("leopard", "")]  # each prompt has its own u
    words = [base.embed([p[side] for p in erase]) for side in (0, 1)]
    eraser = UCE(tokens=tokens, erase_scale=1.5, preserve_scale=0.7, technique="tensor", **ABSOLUTE)
    edit = eraser.subtract(
        base, *words, KeptRows.of(base, ["lion"], tokens), [[1], [0]] if tokens == "content" else [[0], [0]], None
    )
    both = [constraints(base, tokens, c, g, ["lion"]) for c, g in erase]
    stays = 1 if tokens == "content" else 0  # the row of "a" does not move, and is no part of the concept
    for name, w in list(base.params("xattn.kv").items())[::5]:
        old = w.double().numpy()
        first = np.hstack(
            [old @ both[0]["c"][:, :stays], oracle.tensor(old, both[0]["c"][:, stays:], both[0]["g"][:, stays:])]
        )
        v = np.hstack([first, oracle.tensor(old, both[1]["c"], both[1]["g"])])
        c, a = np.hstack([q["c"] for q in both]), 1.5 * np.hstack([q["a"] for q in both])
        expected = oracle.fit(old, v, c, a, both[0]["p"], 0.7 * both[0]["b"], 0.5)
        np.testing.assert_allclose(edit(base).params([name])[name].double().numpy(), expected, atol=1e-5)


def test_tensor_is_a_technique_of_the_same_method(base: Denoiser) -> None:
    made = [UCE.preset(preset).fit(base, Concept("tiger", "cat"), ["lion"]) for preset in ("2023", "2023-tensor")]
    assert [type(edit) for edit in made] == [TextMap, Delta]
    name = next(iter(base.params("xattn.kv")))
    one, two = (edit(base).params([name])[name] for edit in made)
    # what the target shares with the concept is gone as well: less is left of the word
    word = base.embed(["tiger"]).tokens[0, 1]
    assert (two @ word).norm() < (one @ word).norm()


# -- editing, and an attribute taken from one thing ------------------------------------------------------------------


def test_what_is_said_has_met_the_goal_word_by_word() -> None:
    assert within([5, 1, 6, 2, 2], [1, 2]) == [0, 1, 1, 2, 2]
    assert within([2, 1], [1, 2]) == [0, 1]  # in their order
    assert within([1, 2], []) == [0, 0]
    assert within([], [1]) == []


@pytest.mark.parametrize(
    ("source", "target", "lead", "own"),
    [
        ("a red tiger", "a tiger", 1, [(2, None), (3, 2)]),  # "red" alone has no target, and weight 0
        ("tiger of red river", "tiger", 0, [(1, 1), (2, 1), (3, 1), (4, 1)]),  # all of these know of the tiger
        ("red tiger happy king moon", "tiger king", 0, [(1, None), (2, 1), (3, 1), (4, 2), (5, 2)]),
        ("a tiger", "a red tiger", 1, [(2, 3)]),
        ("tiger king", "tiger happy king style", 0, [(1, 1), (2, 3)]),
        ("a king tiger", "a tiger king", 1, [(2, 2), (3, 3)]),  # neither is part of the other: place by place
    ],
)
def test_words_that_source_and_target_share_go_to_themselves(
    base: Denoiser, source: str, target: str, lead: int, own: list[tuple[int, int | None]]
) -> None:
    c, g, weights = pair_rows(base.embed([source]), base.embed([target]), "content", lead)
    goal, end = base.embed([target]).tokens[0], int(base.embed([target]).mask.sum()) - 1
    for i, place in [*own, (own[-1][0] + 1, end)]:
        assert torch.equal(g[i - 1], c[i - 1] if place is None else goal[place]), i
    assert len(c) == len(g) == len(weights)
    assert [i for i, w in enumerate(weights.tolist(), 1) if w == 0] == [i for i, place in own if place is None]


def test_a_target_inside_the_name_stays_and_what_comes_before_it_is_free(base: Denoiser) -> None:
    none, red = TextMap(torch.zeros(WIDTH, 1), torch.zeros(WIDTH, 1)), slice(1, 3)
    edit, told = (UCE().fit(base, Concept("red car", "car"), kept) for kept in ([], ["red house"]))
    assert end_drift(base, none, "a red car", "a car") > 0.5
    assert end_drift(base, edit, "a red car", "a car") < 0.15
    assert end_drift(base, edit, "a car", "a car") < 0.15
    # "red" said of a house is the row that it is of a car: the edit may change it, unless it is told to keep it
    one, other = (base.embed([p]).tokens[0, 2] for p in ("a red car", "a red house"))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)  # what comes later weighs 0 in a sum that rounds
    assert drift(base, edit, "a red house", "a red house", red) > 0.3
    assert drift(base, told, "a red house", "a red house", red) < 0.1
    assert end_drift(base, told, "a red car", "a car") < 0.3


def test_only_a_target_inside_its_name_is_kept() -> None:
    given = [
        Concept("police car", "car"),
        Concept("tiger", "cat"),
        Concept("carpet", "car"),
        Concept("tea cup", "cup tea"),
        Concept("owl"),
    ]
    assert [c.name for c in targets_in_names(given)] == ["car"]


def end_drift(base: Denoiser, edit: TextMap, prompt: str, other: str) -> float:
    """How far keys and values of a prompt's last word and end are from those of another's, relative to their size."""
    (i, j), edited = (int(base.embed([p]).mask.sum()) - 2 for p in (prompt, other)), edit(base)
    pairs = []
    for name, w in base.params("xattn.kv").items():
        new, old = edited.params([name])[name].double().numpy(), w.double().numpy()
        pairs.append((rows(base, prompt)[i : i + 2] @ new.T, rows(base, other)[j : j + 2] @ old.T))
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)


# -- what is constrained -------------------------------------------------------------------------------------------


def index_of(base: Denoiser, prompt: str, found: Tensor) -> list[int]:
    """Which rows of a prompt `found` are; rows of a prompt are all different."""
    own = base.embed([prompt]).tokens[0]
    return [int((own - row).abs().sum(1).argmin()) for row in found]


@pytest.mark.parametrize("pad", [None, "!"])
@pytest.mark.parametrize(
    ("tokens", "source", "target", "pairs"),
    [
        ("last", "a tiger", "cat", [(2, 1)]),
        ("last", "a tiger", "", [(2, 0)]),  # the start token, as in the later code
        ("last", "a picture of a happy zebra zebra", "cat", [(14, 1)]),  # truncated
        ("last_to_end", "a tiger", "cat", [(2 + i, 1 + i) for i in range(14)]),
        ("last_to_end", "cat", "a tiger", [(1 + i, 2 + i) for i in range(14)]),
        ("last_to_end", "a tiger", "", [(2 + i, 0 + i) for i in range(14)]),
        ("content", "a tiger", "cat", [(1, 1), (2, 1), *((3 + i, 2 + i) for i in range(13))]),
        ("content", "cat", "a tiger", [(1, 2), *((2 + i, 3 + i) for i in range(13))]),
        ("content", "a red tiger", "a cat", [(1, 1), (2, 2), (3, 2), *((4 + i, 3 + i) for i in range(12))]),
        ("content", "a tiger", "", [(1, 1), (2, 1), *((3 + i, 1 + i) for i in range(13))]),
        ("content", "a tiger", "a cat", [(1 + i, 1 + i) for i in range(15)]),
        ("content", "a picture of a happy zebra zebra", "cat", [*((i, 1) for i in range(1, 15)), (15, 2)]),
    ],
)
def test_rows_are_paired_as_documented(
    pad: str | None, tokens: str, source: str, target: str, pairs: list[tuple[int, int]]
) -> None:
    base = tiny(pad=pad)
    c, g, weights = pair_rows(base.embed([source]), base.embed([target]), tokens)
    assert list(zip(index_of(base, source, c), index_of(base, target, g), strict=True)) == pairs
    assert len(weights) == len(pairs)


@pytest.mark.parametrize(
    ("source", "target", "lead", "own"),
    [
        ("a picture of a tiger", "", 4, [(5, 1)]),
        ("a picture of a leopard", "a picture of a cat", 4, [(i, 5) for i in range(5, 12)]),
        ("a cat", "a red tiger", 1, [(2, 3)]),
        ("a red happy tiger cat", "a red tiger", 1, [(2, 2), (3, 2), (4, 3), (5, 3)]),
    ],
)
def test_the_words_before_a_concept_stay_as_they_are(
    base: Denoiser, source: str, target: str, lead: int, own: list[tuple[int, int]]
) -> None:
    c, g, weights = pair_rows(base.embed([source]), base.embed([target]), "content", lead)
    assert torch.equal(c[:lead], g[:lead])
    assert torch.equal(c[:lead], base.embed([source]).tokens[0, 1 : lead + 1])
    found = zip(index_of(base, source, c[lead:]), index_of(base, target, g[lead:]), strict=True)
    assert list(found)[: len(own) + 1] == [*own, (own[-1][0] + 1, int(base.embed([target]).mask.sum()) - 1)]
    assert weights[: lead + len(own) + 1].tolist() == [1.0] * (lead + len(own) + 1)


def test_erasing_a_thing_to_nothing_keeps_what_is_said_before_it(base: Denoiser) -> None:
    edited = UCE(ridge=1e-3).fit(base, "tiger", ["lion"])(base)
    assert moved(base, edited, "a picture of a lion") < 0.4 * moved(base, edited, "a picture of a tiger")


def test_padding_weighs_as_much_as_one_row(base: Denoiser) -> None:
    for source, target in (("a tiger", "cat"), ("a tiger", ""), ("cat", "leopard")):
        cond = base.embed([source, target])
        *_, weights = pair_rows(cond[:1], cond[1:], "content")
        words = int(cond.mask[0].sum()) - 2
        assert weights[: words + 1].tolist() == [1.0] * (words + 1)
        assert float(weights[words + 1 :].sum()) == pytest.approx(1.0)


def test_kept_rows_and_their_weights(base: Denoiser) -> None:
    cond = base.embed(["a tiger", "", "leopard leopard leopard"])
    found, weights = keep_rows(cond, "content")
    assert len(found) == 3 * LENGTH
    per_prompt = weights.view(3, LENGTH)
    assert per_prompt.sum(1).tolist() == pytest.approx([5.0, 3.0, LENGTH])  # start, words, end, and padding as one
    assert per_prompt[0, :4].tolist() == [1.0] * 4
    found, weights = keep_rows(cond, "last")
    assert torch.equal(found, torch.stack([cond.tokens[0, 2], cond.tokens[1, 0], cond.tokens[2, LENGTH - 2]]))
    assert weights.tolist() == [1.0] * 3
    assert keep_rows(cond, "last_to_end")[1].tolist() == [1.0] * 3 * LENGTH
    assert len(keep_rows(cond[:0], "last")[0]) == 0


def test_fit_says_each_concept_in_every_phrase_and_keeps_the_empty_prompt(
    base: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[list[list[int]]]] = []
    solve, of = UCE.solve, KeptRows.of
    texts: list[list[str]] = []

    def noted(self: UCE, *given: Any) -> TextMap:
        seen.append([*(cond.ids.tolist() for cond in given[:2]), *ids(texts.pop())])
        return solve(self, *given)

    def kept_of(base: Denoiser, given: list[str], tokens: str) -> KeptRows:
        texts.append(given)
        return of(base, given, tokens)

    def ids(*pools: list[str]) -> list[list[list[int]]]:
        return [base.embed(pool).ids.tolist() for pool in pools]

    monkeypatch.setattr(UCE, "solve", noted)
    monkeypatch.setattr(KeptRows, "of", kept_of)
    UCE().fit(base, Concept("tiger", "cat", ("leopard",)), ["lion"])
    said = ["tiger", "a tiger", "a picture of a tiger", "leopard", "a leopard", "a picture of a leopard"]
    targets, kept = ["cat", "a cat", "a picture of a cat"] * 2, ["lion", "a lion", "a picture of a lion", ""]
    assert seen.pop() == ids(said, targets, kept)
    UCE.preset("2025").fit(base, "tiger", ["lion"])
    assert seen.pop() == ids(["tiger"], [""], ["lion"])
    UCE.preset("2023").fit(base, "tiger", ["lion"])
    assert seen.pop() == ids(["tiger"], [""], ["lion", ""])


@pytest.mark.parametrize(("kept", "scale"), [(1, 1.0), (4, 0.25), (30, 0.1)])
def test_preserve_scale_zero_is_the_2023_rule(base: Denoiser, kept: int, scale: float) -> None:
    words = (
        base.embed(["tiger"]),
        base.embed(["cat"]),
        KeptRows.of(base, (["lion", "dog", "a car"] * 10)[:kept], "content"),
    )
    rule, by_hand = (UCE(preserve_scale=b, **ABSOLUTE).solve(*words) for b in (0.0, scale))
    assert np.array_equal(matrix(rule), matrix(by_hand))


# -- what it does --------------------------------------------------------------------------------------------------


def drift(base: Denoiser, edit: TextMap, prompt: str, other: str, places: slice) -> float:
    """How far the keys and values of a prompt are from those the base gives another, relative to their size."""
    worst, edited = 0.0, edit(base)
    for name, w in edited.params("xattn.kv").items():
        a = rows(base, prompt)[places] @ w.double().numpy().T
        b = rows(base, other)[places] @ base.params([name])[name].double().numpy().T
        worst = max(worst, float(np.linalg.norm(a - b) / np.linalg.norm(b)))
    return worst


def test_the_erased_prompt_reads_as_its_target_and_the_others_as_themselves(base: Denoiser) -> None:
    edit = UCE(templates=False, ridge=1e-3).fit(base, Concept("tiger", "cat"), ["lion"])
    words = slice(1, 3)  # the word and the end
    assert drift(base, TextMap(torch.zeros(WIDTH, 1), torch.zeros(WIDTH, 1)), "tiger", "cat", words) > 0.5
    assert drift(base, edit, "tiger", "cat", words) < 0.05
    assert drift(base, edit, "", "", slice(None)) < 0.02
    assert drift(base, edit, "lion", "lion", slice(None)) < 0.05
    assert drift(base, edit, "tiger", "tiger", words) > 0.5


def test_pictures_of_the_erased_concept_become_pictures_of_its_target(base: Denoiser) -> None:
    edited = UCE(templates=False, ridge=1e-3).fit(base, Concept("tiger", "cat"), ["lion"])(base)
    seeds = range(4)
    before, goal = (base.sample(base.embed([p]), seeds=seeds, steps=5) for p in ("tiger", "cat"))
    after = edited.sample(edited.embed(["tiger"]), seeds=seeds, steps=5)
    assert (after - goal).norm() < 0.2 * (before - goal).norm()
    assert moved(base, edited, "tiger") > 5 * max(moved(base, edited, ""), moved(base, edited, "lion"))


def test_preserving_protects(base: Denoiser) -> None:
    alone, kept = (
        UCE(templates=False, ridge=1e-3).fit(base, Concept("tiger", "cat"), keep)(base)
        for keep in ((), ("leopard", "a happy lion"))
    )
    for prompt in ("leopard", "a happy lion"):
        assert moved(base, kept, prompt) < 0.5 * moved(base, alone, prompt)


def test_many_concepts_at_once(base: Denoiser) -> None:
    many = [Concept("tiger", "cat"), Concept("car", "boat"), Concept("moon", "stone")]
    edit = UCE(templates=False, ridge=1e-3).fit(base, many, ["lion"])
    for c in many:
        assert drift(base, edit, c.name, c.target, slice(1, 3)) < 0.1, c


def test_solve_takes_embeddings_of_any_precision_and_leaves_them_alone(base: Denoiser) -> None:
    words = base.embed(["tiger", "cat", "lion"])
    half = replace(words, tokens=words.tokens.bfloat16())
    before = words.tokens.clone()
    ours, theirs = (KeptRows(gram(*keep_rows(given[2:], "content")), 1) for given in (half, words))
    close = matrix(UCE(ridge=0.1).solve(half[:1], half[1:2], ours)) - matrix(
        UCE(ridge=0.1).solve(words[:1], words[1:2], theirs)
    )
    assert np.abs(close).max() < 0.02  # bfloat16 has eight bits
    assert torch.equal(words.tokens, before)


@pytest.mark.slow
def test_on_moji_a_police_car_goes_and_the_car_stays() -> None:
    """Positive control: the unedited model draws both; docs/targets-in-names.md has every pair."""
    base, judge = load("moji"), detector("moji-concept")
    edited = UCE().fit(base, Concept("police car", "car"))(base)

    def seen(model: Denoiser, name: str) -> int:
        pictures = model.images(
            [f"a {name} in {style} style" for style in ("noto", "blob", "fluent")], [1, 2, 3], steps=12
        )
        return sum(best[0][0] == name for best in judge.top(pictures, 1))

    assert [seen(base, name) for name in ("police car", "car")] == [3, 3]
    assert [seen(edited, name) for name in ("police car", "car")] == [0, 3]


def test_preserved_names_are_summed_part_by_part(base: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder is never given more than a part, and the sum is that of all at once."""
    names = [f"{word} {i}" for i in range(9) for word in ("lion", "boat", "moon")]
    whole, given = gram(*keep_rows(base.embed(names), "content")), []
    embed = type(base).embed
    monkeypatch.setattr(type(base), "embed", lambda self, texts: (given.append(len(texts)), embed(self, texts))[1])
    monkeypatch.setattr("efface.core.rows.PART", 10)
    kept = KeptRows.of(base, names, "content")
    assert given == [10, 10, 7]
    assert kept.prompts == 27
    torch.testing.assert_close(kept.moment, whole, rtol=1e-12, atol=1e-12)
