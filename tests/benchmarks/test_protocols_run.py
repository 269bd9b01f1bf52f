"""Every published protocol from end to end on a tiny untrained Stable Diffusion with three prompts: the wiring, not the numbers."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from tiny_prompts import prompt_files
from toys import classifier

from efface.benchmarks import TABLE, find
from efface.benchmarks.run import bench
from efface.benchmarks.spec import Benchmark, Task
from efface.core.denoiser import Denoiser
from efface.core.errors import UsageError
from efface.report.html import write_report


def three(benchmark: Benchmark) -> Benchmark:
    """The first task with three prompts of each role, two steps, and measures that need no download."""

    def tasks(files: Mapping[str, Path]) -> Iterable[Task]:
        task = next(iter(benchmark.tasks(files)))
        kept = [
            c
            for role in dict.fromkeys(c.role for c in task.cells)
            for c in [c for c in task.cells if c.role == role][:3]
        ]
        yield dataclasses.replace(task, cells=tuple(kept))

    measures = {m.partition(":")[0] for m in benchmark.measures}
    known = {"clip": "clip:moji", "kernel": "kernel:moji-concept", "frechet": "frechet:moji-concept"}
    return dataclasses.replace(
        benchmark, tasks=tasks, sampler=dataclasses.replace(benchmark.sampler, steps=2),
        measures=tuple(known[m] for m in sorted(measures)),
    )  # fmt: skip


@pytest.mark.usefixtures("untyped")  # thousands of cells
@pytest.mark.parametrize("name", [n for n in TABLE if n != "moji"])
def test_a_protocol_runs(base: Denoiser, name: str, tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    declared = three(find(name))
    files = prompt_files(declared, tmp_path / "prompts")
    (task,) = declared.made(files)
    labels = sorted({c.concept for c in task.cells} | {"something", "else"})
    drawn = {key: classifier(tmp_path / key, labels) for key in declared.judges}
    judges = {
        key: judge if judge.detector == "nudenet" else dataclasses.replace(judge, detector=f"classifier:{drawn[key]}")
        for key, judge in declared.judges.items()
    }
    if "nudenet" in [j.detector for j in judges.values()]:
        pytest.importorskip("nudenet")
    rows = bench(
        base, ["uce"], dataclasses.replace(declared, judges=judges), tmp_path / "out", model="tiny", files=files
    )
    asked = {(r["edit"], r["prompt"], r["seed"], r["score"]) for r in rows if r["prompt"]}
    judged = [c for c in task.cells if c.judge]
    scores = {s for c in judged for s in judges[c.judge].scores}
    assert {r["edit"] for r in rows} == {"base", "uce"}
    assert {r["role"] for r in rows} >= {c.role for c in task.cells}
    assert all(r["value"] is not None for r in rows if r["score"] in scores)
    for c in judged:
        assert all((edit, c.prompt, c.seed, s) in asked for edit in ("base", "uce") for s in judges[c.judge].scores)
    for measure in declared.measures:
        assert any(measure.partition(":")[0] in r["score"].lower().replace("é", "e") for r in rows), measure
    about = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert set(about["files"]) == set(files)
    assert write_report(tmp_path / "out").stat().st_size > 1000
    assert (tmp_path / "out" / task.name / "report.html").is_file()


@pytest.mark.usefixtures("untyped")
def test_a_detector_that_only_the_user_has_is_asked_for(base: Denoiser, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="this protocol's detector is not shipped; give one with --judge NAME=DETECTOR"
    ):
        bench(base, ["uce"], three(find("unlearncanvas")), tmp_path / "out", model="tiny")
