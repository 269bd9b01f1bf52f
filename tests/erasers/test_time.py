"""TIME: which row reads as which, the paper's solution in every layer, and what it does to a model."""

import itertools
from typing import Any

import numpy as np
import pytest
from oracles import time as oracle
from toys import LENGTH, moved, tiny

from efface.core.concept import Concept
from efface.core.denoiser import Cond, Denoiser
from efface.core.rows import keep_rows
from efface.erasers.time import TIME, forward, subsequence

AN_A = (100, 101)


def rows(base: Denoiser, prompt: str) -> np.ndarray:
    return base.embed([prompt]).tokens[0].double().numpy()


# -- which row reads as which --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "places"),
    [
        ("a tiger", "a cat", [1, 2]),
        ("tiger", "cat", [1]),
        ("tiger", "big happy cat", [3]),  # last to last
        ("big happy tiger", "cat", [1, 1, 1]),
        ("t i g e r", "c a", [1, 1, 2, 2, 2]),  # no word in common: the same relative place
        ("tiger", "", [1]),  # the end
        ("a tiger", "", [1, 1]),
        ("a tiger", "a", [1, 2]),
        ("red tiger", "tiger", [1, 1]),  # without a word in its place: what comes next
        ("pack of roses", "pack of blue roses", [1, 2, 4]),
        ("a tiger in noto style", "a cat in noto style", [1, 2, 3, 4, 5]),
        ("a big tiger in noto style", "a cat in flat style", [1, 2, 2, 3, 4, 5]),
        ("a dog and a cat", "a cat", [1, 2, 2, 2, 2]),  # the first partner for a word that is said twice
        ("x b c", "b c x", [1, 1, 2]),  # the longest, not the first, wins
        ("", "cat", []),
    ],
)
def test_words_go_to_their_partner_or_to_what_stands_in_its_place(source: str, target: str, places: list[int]) -> None:
    ids = {word: i for i, word in enumerate({*source.split(), *target.split()})}
    assert subsequence(*([ids[word] for word in text.split()] for text in (source, target))) == places


def test_partners_are_a_longest_common_subsequence() -> None:
    for m, k in itertools.product(range(5), repeat=2):
        for source, target in itertools.islice(
            itertools.product(itertools.product(range(3), repeat=m), itertools.product(range(3), repeat=k)), 0, None, 7
        ):
            places = subsequence(source, target)
            assert len(places) == m
            assert all(1 <= j <= k + 1 for j in places)
            assert places == sorted(places)
            # words that read as an equal one, each of the target's taken once
            hits = {j for i, j in enumerate(places) if j <= k and source[i] == target[j - 1]}
            assert len(hits) >= len(oracle.common(list(source), list(target)))


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("a pack of roses", "a pack of blue roses"),
        ("a a a", "a a blue a a"),
        ("a dog", "a dog"),
        ("", "happy"),
        ("a a", "b a b a b"),
    ],
)
def test_the_released_alignment_is_a_walk_forward(source: str, target: str) -> None:
    names = {name: i for i, name in enumerate({*source.split(), *target.split()})}
    here, there = ([names[w] for w in text.split()] for text in (source, target))
    found = forward(here, there)
    assert [0, *found] == oracle.released(source.split(), target.split(), LENGTH)[: len(here) + 1]


def test_where_the_released_alignment_crashes_a_word_reads_as_the_last() -> None:
    with pytest.raises(ValueError, match="not in list"):
        oracle.released(["x", "y"], ["z", "y"], LENGTH)
    assert forward([1, 2, 3], [9, 2, 8]) == [3, 2, 3]  # and the walk goes on from where it was
    assert forward([1], []) == [1]


def test_the_oracle_walks_as_the_released_code_does() -> None:
    """Of the released test set, whose "icy" is two tokens in Moji's tokenizer: the walk of the released code, by hand."""
    assert oracle.released(["a", "cow"], ["an", "ic", "y", "cow"], 8) == [0, 1, 4, 5, 6, 7, 7, 7]
    assert oracle.released(["an", "apple"], ["a", "blue", "apple"], 6) == [0, 1, 3, 4, 5, 5]
    assert oracle.released(["an", "egg"], ["an", "easter", "egg"], 6) == [0, 1, 3, 4, 5, 5]


@pytest.mark.parametrize("pad", [None, "!"])
@pytest.mark.parametrize("alignment", ["subsequence", "forward"])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("a tiger", "a red tiger"),
        ("a red tiger", "a red tiger"),
        ("an apple", "a red apple"),
        ("a cloud", "an apple cloud"),
        ("a cloud", "an cloud"),
        ("an apple", "an apple apple"),
    ],
)
def test_start_end_and_padding_follow_the_words(pad: str | None, alignment: str, source: str, target: str) -> None:
    base = tiny(pad=pad)
    an, a = base.embed(["an", "a"]).ids[:, 1].tolist()
    c, g, weights = TIME(alignment=alignment).rows(base.embed([source]), base.embed([target]), 0, (an, a))
    assert np.array_equal(c.double().numpy(), rows(base, source))
    expected = rows(base, target)[oracle.released(source.split(), target.split(), LENGTH)]
    assert np.array_equal(g.double().numpy(), expected)
    words = len(source.split())
    assert weights.tolist() == [1.0] * (words + 2) + [1 / (LENGTH - words - 2)] * (LENGTH - words - 2)
    assert TIME(padding="each").rows(base.embed([source]), base.embed([target]), 0, (an, a))[2].tolist() == [1] * LENGTH


def test_the_words_before_a_concept_stay(base: Denoiser) -> None:
    source, target = "a picture of a tiger", ""
    c, g, _ = TIME().rows(base.embed([source]), base.embed([target]), 4, AN_A)
    assert np.array_equal(g[:5], c[:5])
    assert np.array_equal(g[5].numpy(), base.embed([""]).tokens[0, 1].numpy())
    assert np.array_equal(g[6].numpy(), base.embed([""]).tokens[0, 1].numpy())


# -- the closed form -----------------------------------------------------------------------------------------------


def test_every_projection_is_the_papers_solution(base: Denoiser) -> None:
    edit = TIME.preset("released").fit(base, Concept("a tiger", "a red tiger"), ["lion"])
    c, g = rows(base, "a tiger"), rows(base, "a red tiger")[oracle.released(["a", "t"], ["a", "r", "t"], LENGTH)]
    edited = edit(base).params("xattn.kv")
    for name, w in list(base.params("xattn.kv").items())[::3]:
        new = edited[name].double().numpy()
        expected = oracle.solution(w.double().numpy(), c, g, np.ones(LENGTH), [], [], 0.1)
        np.testing.assert_allclose(new, expected, atol=1e-5)  # the edit is kept in float32
        assert np.abs(new - w.double().numpy()).max() > 0.01


def test_what_is_kept_and_every_concept_share_one_solve(base: Denoiser) -> None:
    erase = [Concept("tiger", "cat"), Concept("red car", "boat")]
    edit = TIME(templates=False, preserve_scale=0.7, ridge=0.3).fit(base, erase, ["lion"])
    cat, boat = rows(base, "cat"), rows(base, "boat")
    g = np.concatenate([cat, boat[[0, 1, 1, *range(2, LENGTH - 1)]]])
    c = np.concatenate([rows(base, "tiger"), rows(base, "red car")])
    w = [*[1.0] * 3, *[1 / 13] * 13, *[1.0] * 4, *[1 / 12] * 12]
    p, b = (
        np.concatenate([rows(base, ""), rows(base, "lion")]),
        [*[1.0] * 2, *[1 / 14] * 14, *[1.0] * 3, *[1 / 13] * 13],
    )
    b = 0.7 * np.array(b)
    gram = (c.T * w) @ c + (p.T * b) @ p
    ridge = 0.3 * np.linalg.eigvalsh(gram).mean()
    edited = edit(base).params("xattn.kv")
    for name, old in list(base.params("xattn.kv").items())[::5]:
        new = edited[name].double().numpy()
        np.testing.assert_allclose(new, oracle.solution(old.double().numpy(), c, g, w, p, b, ridge), atol=1e-5)


def test_phrases_and_synonyms_are_said(base: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    paired: list[tuple[list[int], list[int]]] = []
    kept: list[list[list[int]]] = []
    pair, keep = TIME.rows, keep_rows

    def ids(*texts: str) -> list[list[int]]:
        return base.embed(texts).ids.tolist()

    def noted(self: TIME, source: Cond, target: Cond, *given: Any) -> Any:
        paired.append((source.ids[0].tolist(), target.ids[0].tolist()))
        return pair(self, source, target, *given)

    def noted_kept(cond: Cond, tokens: str) -> Any:
        kept.append(cond.ids.tolist())
        return keep(cond, tokens)

    monkeypatch.setattr(TIME, "rows", noted)
    monkeypatch.setattr("efface.core.rows.keep_rows", noted_kept)
    TIME().fit(base, Concept("tiger", "cat", ("leopard",)), ["lion"])
    said = ["tiger", "a tiger", "a picture of a tiger", "leopard", "a leopard", "a picture of a leopard"]
    targets = ["cat", "a cat", "a picture of a cat"] * 2
    assert paired == list(zip(ids(*said), ids(*targets), strict=True))
    assert kept == [ids("", "lion", "a lion", "a picture of a lion")]
    paired.clear()
    TIME.preset("released").fit(base, "tiger")
    assert paired == [(ids("tiger")[0], ids("")[0])]
    assert kept[1:] == [ids("")]


# -- what it does --------------------------------------------------------------------------------------------------


def test_the_empty_prompt_is_protected_where_the_released_setting_lets_it_drift(base: Denoiser) -> None:
    edit = Concept("tiger", "cat")
    ours, bare = (TIME(preserve_scale=b, ridge=1e-3, templates=False).fit(base, edit)(base) for b in (1.0, 0.0))
    released = TIME.preset("released").fit(base, edit)(base)
    assert moved(base, ours, "") < 0.1 * min(moved(base, bare, ""), moved(base, released, ""))
    assert moved(base, ours, "tiger") > 10 * moved(base, ours, "")


def test_the_source_reads_as_its_destination(base: Denoiser) -> None:
    edited = TIME(ridge=1e-3, templates=False).fit(base, Concept("tiger", "cat"), ["lion"])(base)
    before_all = base.params("xattn.kv")
    for name, w in edited.params("xattn.kv").items():
        old = before_all[name].double().numpy()
        goal, before = rows(base, "cat")[1:3] @ old.T, rows(base, "tiger")[1:3] @ old.T
        after = rows(base, "tiger")[1:3] @ w.double().numpy().T
        assert np.linalg.norm(after - goal) < 0.05 * np.linalg.norm(before - goal)
    assert moved(base, edited, "lion") < 0.2 * moved(base, edited, "tiger")
