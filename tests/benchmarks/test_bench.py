"""A sweep: everything once, the same bytes however it was interrupted, sequences, several training seeds, and a page for each task."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles.sheet import sheet
from toys import classifier

from efface.benchmarks.plan import Fit, plan
from efface.benchmarks.row import FIELDS
from efface.benchmarks.run import bench, evaluate
from efface.benchmarks.spec import Benchmark, Cell, Judge, PromptFile, Sampler, Task
from efface.benchmarks.store import Store
from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.edit import Stack, load_edit
from efface.core.errors import UsageError
from efface.core.log import Log
from efface.erasers import make, split
from efface.erasers.esd import ESD
from efface.erasers.uce import UCE
from efface.metrics.clip import ClipScorer
from efface.metrics.trunks import ClassifierTrunk
from efface.report.html import write_report

LABELS = ["tiger", "lion", "boat", "cat"]
TIGER, LION = Concept("tiger", "cat"), Concept("lion")


def cells(*erased: str) -> tuple[Cell, ...]:
    """Two pictures of each label."""
    roles = {
        name: "erase" if name in erased else "neighbour" if name in ("tiger", "lion", "cat") else "distant"
        for name in LABELS
    }
    return tuple(Cell(roles[n], n, f"a {n}", seed) for n in LABELS for seed in range(2))  # pyright: ignore[reportArgumentType]


@pytest.fixture
def declared(tmp_path: Path) -> Benchmark:
    """Three tasks, the last after the first: an untrained classifier judges them."""
    tasks = [
        Task("tiger", (TIGER,), (Concept("boat"),), cells("tiger")),
        Task("both", (TIGER, LION), (), cells("tiger", "lion")),
        Task("sequence-2", (LION,), (Concept("boat"),), cells("tiger", "lion"), ((TIGER,),)),
    ]
    return Benchmark(
        name="toy", about="a toy", source="nobody", tasks=lambda files: tasks,
        judges={"concept": Judge(f"classifier:{classifier(tmp_path / 'judge', LABELS)}", ("top1", "top2"))},
        sampler=Sampler(steps=2, guidance=2.0), model="tiny", measures=("perceptual", "kernel:moji-concept"),
    )  # fmt: skip


def test_a_fit_is_named_by_what_it_is(base: Denoiser) -> None:
    one = Fit("esd-x", (TIGER,), (LION,))
    assert one.name(base) == Fit("esd", (TIGER,), (LION,)).name(base)  # the preset is the default
    others = [
        Fit("esd-u", (TIGER,), (LION,)), Fit("esd-x", (LION,), (LION,)), Fit("esd-x", (TIGER,), (LION,), seed=1),
        Fit("esd-x", (TIGER,)), Fit("uce", (TIGER,), (LION,)), Fit("esd-x", (TIGER,), (LION,), ((LION,),)),
    ]  # fmt: skip
    assert len({f.name(base) for f in (one, *others)}) == 7
    assert others[-1].before == Fit("esd-x", (LION,), (LION,))


def test_a_sweep_draws_nothing_twice_and_goes_on_where_it_stopped(
    base: Denoiser, declared: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, put = [], Store.put_picture
    monkeypatch.setattr(Store, "put_picture", lambda self, r, p: (drawn.append(r["edit"]), put(self, r, p)))
    rows = bench(base, ["uce"], declared, tmp_path / "out", model="tiny", log=Log())
    assert drawn.count("") == 8  # the unedited model's pictures serve all three tasks
    assert len(drawn) == 8 + 3 * 8
    assert len([r for r in rows if r["score"] == "top1"]) == 3 * 2 * 8
    assert {(r["task"], r["role"]) for r in rows if r["score"] == "perceptual"} == {
        (t, r) for t in ("tiger", "both", "sequence-2") for r in ("erase", "neighbour", "distant")
    }
    again = bench(base, ["uce"], declared, tmp_path / "out", model="tiny")
    assert again == rows
    assert len(drawn) == 32
    bench(base, ["uce", "uce-2025"], declared, tmp_path / "out", model="tiny", tasks=1)
    assert len(drawn) == 40  # one new edit; all else serves again
    assert not list((tmp_path / "out").rglob("*.html"))  # pages are the report's
    write_report(tmp_path / "out")
    for task in ("tiger", "both", "sequence-2"):
        assert (tmp_path / "out" / task / "report.html").is_file()
    assert [json.loads(line) for line in (tmp_path / "out" / "both" / "scores.jsonl").read_text().splitlines()] == [
        r for r in rows if r["task"] == "both"
    ]


def test_methods_take_hyper_parameters(base: Denoiser, declared: Benchmark, tmp_path: Path) -> None:
    asked = ["uce", "uce:ridge=0.25:tokens=last"]
    bench(base, asked, declared, tmp_path / "out", model="tiny", tasks=1, prompts=1)
    about = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert [e["label"] for e in about["edits"]] == [e["method"] for e in about["edits"]] == asked
    assert [(e["settings"]["ridge"], e["settings"]["tokens"]) for e in about["edits"]][1] == (0.25, "last")
    assert about["edits"][0]["fingerprint"] != about["edits"][1]["fingerprint"]
    assert Fit("uce:ridge=0.25", (TIGER,)).name(base) == Fit("uce:ridge=2.5e-1", (TIGER,)).name(base)
    assert Fit("uce:ridge=0.25", (TIGER,)).name(base) != Fit("uce", (TIGER,)).name(base)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("uce", {}),
        ("uce:ridge=0.25:tokens=last", {"ridge": 0.25, "tokens": "last"}),
        ("uce-2023:ridge=0.25", {**UCE.presets["2023"], "ridge": 0.25}),
        ("esd-x:sampler-steps=7", {**ESD.presets["x"], "sampler_steps": 7}),
    ],
)
def test_a_methods_text_is_its_settings(name: str, settings: dict[str, object]) -> None:
    cls, found = split(name)
    assert found == settings
    assert make(name) == cls(**settings)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("uce:ridge", "method: expected uce:NAME=VALUE, got 'ridge'"),
        ("uce:rigde=1", "UCE: unknown hyper-parameter 'rigde'; did you mean 'ridge'"),
        ("uce:ridge=x", "UCE.ridge: expected float, got 'x'"),
        ("uce:ridge=0", "UCE.ridge: expected above 0"),
        ("uce:ridge=1:ridge=2", "expected each hyper-parameter once, got 'ridge' twice"),
        ("uce-2022:ridge=1", "method: unknown 'uce-2022'"),
        ("ucee:ridge=1", "did you mean 'uce'"),
    ],
)
def test_a_methods_wrong_text_is_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        make(name)


def test_a_sequence_is_each_erasure_on_what_the_one_before_left(
    base: Denoiser, declared: Benchmark, tmp_path: Path
) -> None:
    bench(base, ["uce"], declared, tmp_path / "out", model="tiny")
    fit = Fit("uce", (LION,), (Concept("boat"),), ((TIGER,),))
    with Store(tmp_path / "out" / "store").edit_file(fit.name(base)) as path:
        both = load_edit(path)
    assert isinstance(both, Stack)
    assert [c.name for c in both.header.erase] == ["tiger", "lion"]
    first = make("uce").fit(base, TIGER, ["boat"])
    second = make("uce").fit(first(base), LION, ["boat"])
    expected = second(first(base)).params("xattn.kv")
    for name, weight in both(base).params("xattn.kv").items():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=1e-6)
    about = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert [(t["name"], t["kind"], t["after"]) for t in about["tasks"]] == [
        ("tiger", "object", []), ("both", "object", []), ("sequence-2", "sequence", [["tiger"]]),
    ]  # fmt: skip
    assert len({t["protocol"] for t in about["tasks"]}) == 3


def test_several_training_seeds_are_several_edits(base: Denoiser, declared: Benchmark, tmp_path: Path) -> None:
    rows = bench(base, ["uce"], declared, tmp_path / "out", model="tiny", seeds=[0, 5], tasks=1, prompts=1)
    assert {(r["edit"], r["fit"]) for r in rows} == {("base", 0), ("uce#0", 0), ("uce#5", 5)}
    assert (
        len({(r["concept"], r["prompt"], r["seed"]) for r in rows if r["prompt"]}) == 4
    )  # one prompt of each role and concept
    about = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert [(e["label"], e["method"], e["seed"]) for e in about["edits"]] == [("uce#0", "uce", 0), ("uce#5", "uce", 5)]


def test_rows_say_what_was_measured(base: Denoiser, declared: Benchmark, tmp_path: Path) -> None:
    (task, *_) = declared.made()
    edit = make("uce").fit(base, task.erase, task.preserve)
    rows = evaluate(base, {"e": edit}, task, declared, tmp_path / "run")
    plain = frozenset(FIELDS) - {"calls", "asked", "attempt", "about"}  # which rows of attacks have
    assert {frozenset(r) for r in rows} == {plain - {"n"}, plain}
    store = Store(tmp_path / "run" / "store")
    moved = {(r["concept"], r["seed"]): r["value"] for r in rows if r["score"] == "perceptual"}
    assert len(moved) == 8
    for r in rows:
        if r["score"] == "perceptual":  # 0 exactly where the edit changed no bit
            old = next(b for b in rows if b["edit"] == "base" and (b["prompt"], b["seed"]) == (r["prompt"], r["seed"]))
            same = np.array_equal(store.picture(old["cell"]), store.picture(r["cell"]))
            assert same == (r["value"] == 0)
    assert {(r["role"], r["n"]) for r in rows if r["seed"] == -1} == {("neighbour", 4), ("distant", 2)}
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (info["task"], info["benchmark"], info["sensitive"]) == ("tiger", "toy", False)
    assert info["detectors"]["concept"]["id"] == rows[0]["detector"]


def test_a_run_says_what_was_measured_and_what_each_edit_aimed_at(
    base: Denoiser, declared: Benchmark, tmp_path: Path
) -> None:
    (task, *_) = declared.made(prompts=1, tasks=1)
    asked = dataclasses.replace(task, erase=(Concept("tiger"),))  # an edit's own header knows its target
    to_cat = make("uce").fit(base, Concept("tiger", "cat", ("big cat",), "mark"), model="another name")
    to_nothing = make("uce").fit(base, Concept("tiger"))
    for edits, target in (
        ({"a": to_cat}, "cat"), ({"b": to_nothing}, ""), ({"a": to_cat, "b": to_nothing}, "cat (a), nothing (b)"),
    ):  # fmt: skip
        evaluate(base, edits, asked, declared, tmp_path / "-".join(edits), model="tiny", store=Store(tmp_path / "s"))
        info = json.loads((tmp_path / "-".join(edits) / "run.json").read_text())
        assert (info["model"], info["fingerprint"], info["concept"]["target"]) == ("tiny", base.fingerprint, target)
    assert info["edits"][0]["erase"] == [{"name": "tiger", "target": "cat", "prompts": ["big cat"], "kind": "mark"}]
    assert info["edits"][1]["erase"] == [{"name": "tiger", "target": "", "prompts": [], "kind": "object"}]


def test_an_edit_for_other_weights_is_refused_at_once_or_drawn(
    base: Denoiser, declared: Benchmark, tmp_path: Path
) -> None:
    (task, *_) = declared.made(prompts=1, tasks=1)
    own = make("uce").fit(base, TIGER)
    edit = own.stamped(dataclasses.replace(own.header, base="0" * 16, signature=""))
    with pytest.raises(UsageError, match="edit: made for base"):
        evaluate(base, {"e": edit}, task, declared, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    rows = evaluate(base, {"e": edit}, task, declared, tmp_path / "out", any_base=True)
    drawn = {r["cell"] for r in rows if r["edit"] == "e" and r["score"] == "top1"}
    assert len(drawn) == 4
    assert not [r for r in rows if r["value"] is None]


def test_a_text_score_is_of_its_own_text(base: Denoiser, declared: Benchmark, tmp_path: Path) -> None:
    """A picture that two cells share is asked about by the names of both."""
    (task, *_) = declared.made()
    shared = [Cell("erase", "tiger", "a tiger", 0), Cell("distant", "boat", "a tiger", 0)]
    store = Store(tmp_path / "s")
    for cells_ in ([shared[0]], [shared[1]], shared):  # the first two runs fill the store
        asked = dataclasses.replace(task, cells=tuple(cells_))
        measures = dataclasses.replace(declared, measures=("clip-name:moji", "clip:moji"))
        rows = evaluate(base, {}, asked, measures, tmp_path / "run", store=store)
    found = {(r["concept"], r["score"]): r["value"] for r in rows if r["score"].startswith("clip")}
    picture, scorer = store.picture(rows[0]["cell"]), ClipScorer("moji")
    for name in ("tiger", "boat"):
        assert found[name, "clip-name"] == pytest.approx(scorer.score([picture], [name])[0], abs=1e-5)
        assert found[name, "clip"] == pytest.approx(scorer.score([picture], ["a tiger"])[0], abs=1e-5)
    assert found["tiger", "clip-name"] != found["boat", "clip-name"]


def test_quality_is_measured_of_every_picture(base: Denoiser, declared: Benchmark, tmp_path: Path) -> None:
    (task, *_) = declared.made(prompts=1, tasks=1)
    asked = dataclasses.replace(declared, measures=("quality",))
    drawn = iter([picture for _, _, picture in sheet()])
    store = Store(tmp_path / "s")
    for recipe in plan(base, {}, task, asked).recipes["base"]:
        store.put_picture(recipe, next(drawn))  # as if the unedited model had drawn them
    rows = evaluate(base, {}, task, asked, tmp_path / "run", store=store)
    values = [r["value"] for r in rows if r["score"] == "quality"]
    assert len(values) == len(task.cells)
    assert all(v is not None and 0.5 < v <= 1 for v in values)
    assert {r["detector"] for r in rows if r["score"] == "quality"} == {ClassifierTrunk("moji-concept").id}
    small = Store(tmp_path / "small")
    for recipe in plan(base, {}, task, asked).recipes["base"]:
        small.put_picture(recipe, np.zeros((32, 32, 3), dtype=np.uint8))
    with pytest.raises(UsageError, match="detector moji-concept: expected pictures of 64 x 64 pixels, got 32 x 32"):
        evaluate(base, {}, task, asked, tmp_path / "run", store=small)


def test_a_missing_prompt_file_and_an_unknown_measure_are_one_sentence(
    base: Denoiser, declared: Benchmark, tmp_path: Path
) -> None:

    needy = dataclasses.replace(declared, files={"captions": PromptFile({"prompt": ("prompt",)}, "its authors")})
    with pytest.raises(UsageError, match="benchmark toy: needs the prompts 'captions'.* give --file captions=PATH"):
        bench(base, ["uce"], needy, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    odd = dataclasses.replace(declared, measures=("perceptuall",))
    with pytest.raises(UsageError, match="measure: unknown 'perceptuall'; did you mean 'perceptual'"):
        bench(base, ["uce"], odd, tmp_path / "out", tasks=1, prompts=1)
