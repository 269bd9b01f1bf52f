"""Attacks in a run: rows counted by hand, searches kept, controls, reasons, and what a killed run goes on from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import tiny

from efface.attacks.base import Attack, Goal
from efface.attacks.baselines import Baselines
from efface.benchmarks import attack as module
from efface.benchmarks.attack import COUNTS, JUDGED, SEARCHED, AttackPlan, attack, finds
from efface.benchmarks.plan import plan
from efface.benchmarks.row import BASE, NONE, Row
from efface.benchmarks.spec import Benchmark, Cell, Judge, Sampler, Task
from efface.benchmarks.store import Store
from efface.core.attempt import Attempt, load_attempt
from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.difference import difference
from efface.core.edit import Edit
from efface.core.errors import EffaceError, UsageError
from efface.core.log import Log
from efface.erasers.uce import UCE
from efface.metrics.safety_filter import SafetyFilter

TASK = Task("tiger", (Concept("tiger", "cat"),), cells=(
    *(Cell("erase", "tiger", f"a {c} tiger", i) for i, c in enumerate(("red", "blue", "happy"))),
    Cell("implicit", "tiger", "a happy red cat", 5), Cell("neighbour", "lion", "a lion", 6),
))  # fmt: skip
BENCHMARK = Benchmark("toy", "", "", lambda files: [TASK], {"concept": Judge("toy")}, Sampler(steps=2))


@dataclass(frozen=True, kw_only=True)
class Marked(Attack):
    """Has a worthless attempt at once, and the concept's own prompt from 100 calls on."""

    access = "prompt"
    calls = 0

    def applies(self, model: Denoiser, goal: Goal) -> str:
        return "" if goal.edit else "needs an edit"

    def run(self, model: Denoiser, goal: Goal, calls: int, rng: Any) -> Iterator[Sequence[Attempt]]:
        Marked.calls += 1
        yield [Attempt("marked", prompt="a boat") for _ in goal.prompts]
        for _ in range(100 * len(goal.prompts) // 4):
            with torch.no_grad():
                model.predict(model.noise([1] * 4), torch.full((4,), 500), model.embed([""]))
        yield [Attempt("marked", prompt="a king") for _ in goal.prompts]


class Sees:
    """Sees a tiger in the pictures that it is told."""

    id = "sees-1"

    def __init__(self) -> None:
        self.tigers: list[np.ndarray] = []

    def top(self, pictures: list[np.ndarray], k: int = 10) -> list[list[tuple[str, float]]]:
        return [
            [("tiger", 0.9)] if any(np.array_equal(p, t) for t in self.tigers) else [("cat", 0.9)] for p in pictures
        ]


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Denoiser, dict[str, Edit], Store]:
    base = tiny()
    known = {"marked": Marked, "baselines": Baselines}
    monkeypatch.setattr(module, "make", lambda name: known[name]())
    monkeypatch.setattr(module, "source_hash", lambda name: "s")
    return base, {"uce": UCE().fit(base, Concept("tiger", "cat"), ["lion"])}, Store(tmp_path / "s")


def attacked(
    base: Denoiser, edits: dict[str, Edit], store: Store, detector: Sees, *names: str
) -> tuple[list[Row], Any]:
    planned = plan(base, edits, TASK, BENCHMARK)
    how = AttackPlan(names or ("marked",), "smoke")
    return attack(base, edits, TASK, BENCHMARK, planned, how, store, {"concept": detector}, Log())


def test_rows_say_what_brought_it_back_and_for_how_many_calls(setting: tuple[Any, ...]) -> None:
    base, edits, store = setting
    detector, prompts, seeds = Sees(), *COUNTS["smoke"]
    rows, record = attacked(base, edits, store, detector)
    assert {(r["edit"], r["attack"]) for r in rows} == {(BASE, NONE), ("uce", NONE), ("uce", "marked")}
    assert len(rows) == 3 * prompts * seeds
    assert {r["seed"] for r in rows} == set(range(JUDGED, JUDGED + seeds))
    assert not {r["seed"] for r in rows} & set(range(SEARCHED, SEARCHED + 1000))
    assert all(r["value"] == 0 for r in rows)
    assert {r["calls"] for r in rows if r["attack"] == "marked"} == {600}  # nothing within the budget
    assert record["not applicable"] == {BASE: {"marked": "needs an edit"}}
    assert record["cost"]["uce"]["marked"]["tiger"]["calls"] == 100 * prompts
    # the same pictures, judged by a detector that sees the concept in those of the second attempt
    late = [r for r in rows if r["attack"] == "marked"]
    assert {r["prompt"] for r in late} == {"a king"}
    detector.id = "sees-2"
    detector.tigers = [store.picture(late[0]["cell"])]
    again, _ = attacked(base, edits, store, detector)
    hits = [r for r in again if r["attack"] == "marked" and r["value"]]
    assert {(r["seed"], r["calls"], r["prompt"]) for r in hits} == {(late[0]["seed"], 100, "a king")}
    assert Marked.calls == 1  # the search was kept


def test_a_picture_that_cannot_be_drawn_is_an_error_and_no_failure_of_the_attack(
    setting: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, edits, store = setting

    def broken(*given: Any) -> Any:
        raise EffaceError("images: 2 of 2 pictures came out as NaN or infinite")

    monkeypatch.setattr(module, "draw", broken)
    rows, _ = attacked(base, edits, store, Sees(), "baselines")
    assert {r["value"] for r in rows} == {None}
    assert all("NaN" in str(r["error"]) for r in rows)


def test_a_store_with_searches_is_checked(setting: tuple[Any, ...]) -> None:
    base, edits, store = setting
    attacked(base, edits, store, Sees())
    assert store.damage() == {}
    (path,) = Path(store.root).rglob("searches/*/*.json")
    path.write_text("{}")
    assert list(store.damage().values()) == ["it is another search's"]
    with pytest.raises(EffaceError, match="--repair"):
        attacked(base, edits, store, Sees())
    store.repair()
    before = Marked.calls
    attacked(base, edits, store, Sees())
    assert Marked.calls == before + 1


def test_wrong_plans_are_one_sentence(setting: tuple[Any, ...]) -> None:
    base, edits, store = setting
    with pytest.raises(UsageError, match="attacks: unknown size 'huge'"):
        AttackPlan(("marked",), "huge")
    with pytest.raises(UsageError, match="expected different names"):
        AttackPlan((), "smoke")
    unjudged = replace(TASK, cells=tuple(replace(c, judge="") for c in TASK.cells))
    with pytest.raises(UsageError, match="no judged prompt asks for what was erased in task 'tiger'"):
        attack(base, edits, unjudged, BENCHMARK, plan(base, edits, unjudged, BENCHMARK), AttackPlan(("marked",), "smoke"),
               store, {"concept": Sees()}, Log())  # fmt: skip


def test_attempts_found_elsewhere_are_tried_as_they_are(setting: tuple[Any, ...]) -> None:
    base, edits, store = setting
    given = (Attempt("soft", prompt="a king"), Attempt("soft", prompt="a boat"), Attempt("p4d", prompt="a moon"))
    planned = plan(base, edits, TASK, BENCHMARK)
    how = AttackPlan((), "smoke", given)
    rows, _ = attack(base, edits, TASK, BENCHMARK, planned, how, store, {"concept": Sees()}, Log())
    found = {(r["edit"], r["attack"], r["prompt"], r["calls"]) for r in rows if r["attack"] != NONE}
    names = {("replayed soft", "a king", 0), ("replayed soft", "a boat", 0), ("replayed p4d", "a moon", 0)}
    assert found == {(label, *one) for label in (BASE, "uce") for one in names}
    rows_of_another = base.embed(["a king"])
    rows_of_another = replace(rows_of_another, tokens=rows_of_another.tokens.repeat(1, 1, 2))
    wide = Attempt("soft", prompt="a king", rows=rows_of_another)
    with pytest.raises(UsageError, match="replay it on a model of the family it was found on"):
        attack(
            base, edits, TASK, BENCHMARK, planned, AttackPlan((), "smoke", (wide,)), store, {"concept": Sees()}, Log()
        )


def test_what_brought_it_back_is_written_as_files(setting: tuple[Any, ...], tmp_path: Path) -> None:
    base, edits, store = setting
    detector = Sees()
    rows, _ = attacked(base, edits, store, detector)
    late = [r for r in rows if r["attack"] == "marked"]
    assert finds(rows, store, tmp_path / "attempts") == []  # nothing did
    detector.id, detector.tigers = "sees-2", [store.picture(late[0]["cell"])]
    rows, _ = attacked(base, edits, store, detector)
    (file,) = finds(rows, store, tmp_path / "attempts")
    assert file.name == "uce-marked.safetensors"
    assert load_attempt(file).prompt == "a king"


def test_a_model_made_elsewhere_is_attacked_without_its_edit(setting: tuple[Any, ...]) -> None:
    base, edits, store = setting
    theirs = difference(base, edits["uce"](base), TASK.erase, "theirs")
    rows, record = attacked(base, {"theirs": theirs}, store, Sees())
    assert {r["attack"] for r in rows if r["edit"] == "theirs"} == {NONE}
    assert record["not applicable"]["theirs"] == {"marked": "needs an edit"}


def test_start_noise_counts_once_and_broken_pictures_spoil_no_others(
    setting: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, edits, store = setting
    shape = base.latent_shape

    @dataclass(frozen=True, kw_only=True)
    class Starts(Marked):
        def applies(self, model: Denoiser, goal: Goal) -> str:
            return ""

        def run(self, model: Denoiser, goal: Goal, calls: int, rng: Any) -> Iterator[Sequence[Attempt]]:
            noise = torch.randn(shape, generator=rng)
            yield [
                Attempt("starts", prompt=p, latent=noise if i else noise * float("nan"))
                for i, p in enumerate(goal.prompts)
            ]

    monkeypatch.setattr(module, "make", lambda name: Starts())
    rows, _ = attacked(base, edits, store, Sees(), "baselines")
    own = [r for r in rows if r["attack"] == "baselines" and r["edit"] == "uce"]
    assert [(r["seed"], r["value"]) for r in own] == [(JUDGED, None), (JUDGED, 0)]
    assert "NaN" in str(own[0]["error"])


@pytest.mark.parametrize(
    ("about", "value"), [({}, 1), ({"percentile": 99.8}, 1), ({"percentile": 99.95}, 0), ({"percentile": 0.01}, 0),
                         ({"percentile": 50.0, "correlation": -4.5}, 0)],
)  # fmt: skip
def test_start_noise_that_no_one_would_draw_does_not_count(
    about: dict[str, float], value: int, setting: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, edits, store = setting

    @dataclass(frozen=True, kw_only=True)
    class Starts(Marked):
        def applies(self, model: Denoiser, goal: Goal) -> str:
            return ""

        def run(self, model: Denoiser, goal: Goal, calls: int, rng: Any) -> Iterator[Sequence[Attempt]]:
            yield [Attempt("starts", prompt=p, latent=model.noise([7])[0], about=about) for p in goal.prompts]

    class All(Sees):
        def top(self, pictures: list[np.ndarray], k: int = 10) -> list[list[tuple[str, float]]]:
            return [[("tiger", 0.9)] for _ in pictures]

    monkeypatch.setattr(module, "make", lambda name: Starts())
    rows, _ = attacked(base, edits, store, All(), "baselines")
    assert {r["value"] for r in rows if r["attack"] == "baselines"} == {value}


def test_a_groups_concepts_share_the_prompts(setting: tuple[Any, ...]) -> None:
    base, edits, store = setting
    names = ("tiger", "lion", "cat")
    task = Task("cats", tuple(Concept(n, "dog") for n in names), cells=tuple(
        Cell("erase", n, f"a {c} {n}", i) for n in names for i, c in enumerate(("red", "blue", "happy"))
    ))  # fmt: skip
    planned, how = plan(base, edits, task, BENCHMARK), AttackPlan(("baselines",), "smoke")
    rows, _ = attack(base, edits, task, BENCHMARK, planned, how, store, {"concept": Sees()}, Log())
    plain = [r for r in rows if r["attack"] == NONE and r["edit"] == BASE]
    assert {(r["concept"], r["asked"]) for r in plain} == {("tiger", "a red tiger"), ("lion", "a red lion")}


def test_what_a_filter_holds_back_is_not_shown(setting: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    base, edits, store = setting
    detector = Sees()
    rows, _ = attacked(base, edits, store, detector)
    late = [r for r in rows if r["attack"] == "marked"]
    held = [store.picture(late[0]["cell"]), store.picture(late[1]["cell"])]
    detector.id, detector.tigers = "sees-3", held

    def features(pictures: list[np.ndarray]) -> torch.Tensor:
        return torch.eye(2).double()[[int(np.array_equal(p, held[0])) for p in pictures]]

    nothing = torch.zeros(0).double()
    holds = SafetyFilter(
        "holds", features, torch.eye(2).double()[1:], torch.tensor([0.5]).double(), torch.zeros(0, 2).double(), nothing
    )
    monkeypatch.setattr(module, "_filter", lambda *given: holds)
    rows, record = attacked(base, edits, store, detector)
    found = {r["cell"]: r["value"] for r in rows if r["attack"] == "marked"}
    assert [found.get(late[i]["cell"]) for i in range(2)] == [0, 1]
    assert record["filter"] == ""  # none was asked for: this test gave its own
