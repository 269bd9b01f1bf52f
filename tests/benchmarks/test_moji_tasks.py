"""Moji's tasks: each role asks what it says, and the unedited model's pictures serve every task."""

from collections import Counter

import pytest

from efface.benchmarks.moji import SEQUENCE, SIZES, TASKS, benchmark, concepts, erasing, styles, tasks, told_and_untold
from efface.benchmarks.row import GONE
from efface.benchmarks.spec import Task, erased_names, protocol_hash
from efface.core.errors import UsageError

QUICK = SIZES["quick"]


def one(name: str) -> Task:
    (task,) = tasks(name, **QUICK)
    return task


@pytest.mark.parametrize("name", ["tiger", "santa", "noto", "alcohol"])
def test_roles_ask_for_what_they_say(name: str) -> None:
    task, known = one(name), concepts()
    erased = set(erased_names(task))
    assert len({(c.prompt, c.seed, c.judge) for c in task.cells}) == len(task.cells)
    for c in task.cells:
        assert (c.concept in erased) == (c.role in GONE), c
        assert c.judge == ("style" if c.concept in styles() else "concept")
        words = c.prompt.split()
        if c.role == "erase":
            assert c.concept in c.prompt
        elif c.role == "synonym" and c.judge == "concept":
            assert c.concept not in words
            assert any(s in c.prompt for s in known[c.concept]["synonyms"])
        elif c.role == "implicit":
            assert not set(words) & set(known), c  # no concept's name, this one's or another's
            assert sum(w in known[c.concept]["implicit"] for w in words) == min(3, len(words) - 3)
        elif c.role == "companion":
            assert any((e.prompt, e.seed) == (c.prompt, c.seed) and e.role == "erase" for e in task.cells)
            assert c.concept in c.prompt
    assert not erased & {c.name for c in task.preserve}
    counts = Counter(c.role for c in task.cells)
    assert counts["erase"] == counts["companion"] == QUICK["pictures"]
    assert counts["distant"] == QUICK["far"] * QUICK["others"]


def test_a_concept_is_asked_for_alike_whatever_was_erased() -> None:
    """The unedited model draws lions once, as the tiger's neighbours and as distant from the rose."""
    asked: dict[tuple[str, int], str] = {}
    for name in ("tiger", "cat", "rose", "santa", "alcohol"):
        for c in one(name).cells:
            assert asked.setdefault((c.concept, c.seed), c.prompt) == c.prompt or c.role in ("companion", "implicit")
    all_ = [c for size in ("quick",) for t in benchmark(size=size).made() for c in t.cells]
    assert len({(c.prompt, c.seed) for c in all_}) < 0.65 * len([c for c in all_ if c.role != "companion"])


@pytest.mark.parametrize("name", ["tiger", "rose", "bus", "guitar", "santa", "noto", "blob", "alcohol", "sequence-3"])
@pytest.mark.parametrize("size", list(SIZES))
def test_half_of_the_neighbours_are_named_to_no_method(name: str, size: str) -> None:
    named = name.partition("-")[0]
    task = next(t for t in tasks(named, **SIZES[size]) if t.name == name)
    groups = {g: {c.concept for c in task.cells if c.group == g and c.role == "neighbour"} for g in ("told", "untold")}
    assert {c.concept for c in task.cells if c.role == "neighbour"} == groups["told"] | groups["untold"]
    assert groups["told"]
    assert groups["untold"]
    assert groups["told"] <= {c.name for c in task.preserve}
    assert not groups["untold"] & {
        *(c.name for c in task.preserve),
        *erased_names(task),
        *(c.target for c in task.erase),
    }
    wanted = 4 if named == "sequence" else SIZES[size]["near"]
    pool = [
        n
        for half in told_and_untold(
            SEQUENCE if named == "sequence" else list(erased_names(task)), [c.target for c in task.erase]
        )
        for n in half
    ]
    assert len(groups["told"] | groups["untold"]) == min(wanted, len(pool))
    assert 0 <= len(groups["told"]) - len(groups["untold"]) <= 1


def test_an_edit_without_a_recipe_is_one_sentence() -> None:
    with pytest.raises(UsageError, match="edit: its header names no concept that it erased"):
        erasing([])


def test_an_erased_style_is_asked_for_nowhere_else() -> None:
    task = one("noto")
    assert task.erase[0].target in set(styles()) - {"noto"}
    for c in task.cells:
        assert ("noto" in c.prompt) == (c.role in ("erase", "synonym", "companion"))
    assert {c.prompt.split(" in ")[0] for c in task.cells if c.role == "companion"} >= {"a cat", "a fox"}


def test_a_combination_leaves_its_halves() -> None:
    task = one("tiger+noto")
    for c in task.cells:
        tiger, noto = "tiger" in c.prompt, "noto" in c.prompt
        assert (tiger and noto) == (c.role == "erase")
        assert (tiger or noto) == (c.role != "distant")
        assert c.prompt.endswith(c.concept)
        assert c.judge == "pair"
    assert task.erase[0].target not in {c.name for c in task.preserve}


def test_many_at_once_are_nested_and_what_stays_is_the_same() -> None:
    five, twenty, hundred = (one(f"many-{n}") for n in (5, 25, 100))
    names = [[c.name for c in t.erase] for t in (five, twenty, hundred)]
    assert [len(n) for n in names] == [5, 25, 100]
    assert names[1][:5] == names[0]
    assert names[2][:25] == names[1]
    kept = [[c for c in t.cells if c.role not in GONE] for t in (five, twenty, hundred)]
    assert kept[0] == kept[1] == kept[2]
    assert not {c.concept for c in kept[0]} & set(names[2])
    assert {c.concept for c in hundred.cells if c.role == "erase"} == set(names[2])


def test_a_sequence_asks_for_all_that_went_before() -> None:
    steps = tasks("sequence", **QUICK)
    assert [t.name for t in steps] == [f"sequence-{i}" for i in range(1, len(SEQUENCE) + 1)]
    for i, t in enumerate(steps, 1):
        assert erased_names(t) == list(SEQUENCE[:i])
        assert [c.name for c in t.erase] == [SEQUENCE[i - 1]]
        assert {c.group: c.concept for c in t.cells if c.role == "erase"} == {
            f"step {k}": n for k, n in enumerate(SEQUENCE[:i], 1)
        }
        assert not set(SEQUENCE) & {c.concept for c in t.cells if c.role not in GONE}


def test_sizes_grow_and_every_name_is_known() -> None:
    pictures = {}
    for size in SIZES:
        made = list(benchmark(size=size).made())
        assert len(made) >= len(TASKS[size])
        pictures[size] = len({(t.name, c.prompt, c.seed) for t in made for c in t.cells})
    assert pictures["smoke"] < 30 < pictures["quick"] < 700 < pictures["full"]


def test_an_edit_that_is_there_is_asked_about_what_it_erased() -> None:
    assert erasing(["beer", "wine", "cocktail", "champagne"]) == one("alcohol")
    assert erasing(["tiger"], "smoke").cells == tasks("tiger", **SIZES["smoke"])[0].cells
    both = erasing(["tiger", "rose"])
    assert {c.concept for c in both.cells if c.role == "erase"} == {"tiger", "rose"}
    assert not {c.concept for c in both.cells if c.role not in GONE} & {"tiger", "rose"}


def test_the_protocols_hash_names_all_that_matters() -> None:
    bench, task = benchmark(["tiger"], "smoke"), tasks("tiger", **SIZES["smoke"])[0]
    known = {
        protocol_hash(bench, task),
        protocol_hash(bench, task.thinned(1)),
        protocol_hash(benchmark(["rose"]), one("rose")),
    }
    assert len(known) == 3
    assert protocol_hash(bench, task) == protocol_hash(benchmark(["tiger"], "full"), task)  # the same questions


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("tigerr", "did you mean 'tiger'"),
        ("tiger+nota", "expected THING\\+STYLE of Moji's, such as 'tiger\\+noto', got 'tiger\\+nota'"),
        ("many-0", "expected many-N with N from 1 to 100, got 'many-0'"),
        ("many-x", "got 'many-x'"),
    ],
)
def test_unknown_names_are_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        benchmark([name])
    with pytest.raises(UsageError, match="size: unknown 'fulll'; did you mean 'full'"):
        benchmark(size="fulll")
