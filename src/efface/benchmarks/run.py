"""Runs: `evaluate` measures given edits on one task; `bench` compares methods on all tasks of a benchmark.

Every fitted edit, picture and score is kept in a store, so that a run that was killed goes on where it stopped, any number of
processes share one, and the unedited model's pictures serve every method. The engine writes rows; pages are the report's.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from efface.benchmarks.attack import AttackPlan, attack, finds
from efface.benchmarks.draw import BatchTooLarge, draw
from efface.benchmarks.fit import fit_all, load_fit
from efface.benchmarks.judge import judge, open_detector
from efface.benchmarks.measure import measured
from efface.benchmarks.plan import Plan, fits, plan
from efface.benchmarks.record import run_record, sweep_record, task_record
from efface.benchmarks.row import Row
from efface.benchmarks.spec import Benchmark, Task
from efface.benchmarks.store import Store
from efface.core.denoiser import Denoiser
from efface.core.edit import Edit
from efface.core.files import write_text
from efface.core.log import Log


def evaluate(
    base: Denoiser,
    edits: Mapping[str, Edit],
    task: Task,
    benchmark: Benchmark,
    folder: Path,
    *,
    model: str = "",
    any_base: bool = False,
    seeds: Mapping[str, int] | None = None,
    attack_plan: AttackPlan | None = None,
    files: Mapping[str, str] | None = None,
    commands: Sequence[str] = (),
    log: Log | None = None,
    store: Store | None = None,
) -> list[Row]:
    """Make and judge every cell with the unedited model and with each edit; write scores.jsonl and run.json to `folder`.

    Args:
        base: the unedited model.
        edits: by the name they are shown under.
        task: what was erased and what to ask.
        benchmark: how to draw, who judges, what to measure.
        folder: of the run.
        model: what the user calls the unedited model; its fingerprint if not given.
        any_base: apply edits that were made for other weights all the same.
        seeds: the edits' training seeds, 0 where not given.
        attack_plan: the attacks on every model; None tries none.
        files: the edits' file names.
        commands: that repeat this run.
        log: where progress goes.
        store: of pictures and scores: what it holds is not made again; `folder`/store if not given.

    Raises:
        UsageError: an edit was made for other weights, `folder` holds another store format or foreign files where the store goes,
            or a judge cannot be opened.
        EffaceError: a picture of the store is damaged.
    """
    for edit in edits.values():
        edit.require(base, any_base)
    log, started, store = log or Log(), time.perf_counter(), store or Store(folder / "store")
    detectors = {
        key: open_detector(benchmark.judges[key], base) for key in dict.fromkeys(c.judge for c in task.cells if c.judge)
    }
    planned = _drawn(base, edits, task, benchmark, store, log, seeds=seeds, any_base=any_base)
    rows = judge(store, planned, {key: (benchmark.judges[key], one) for key, one in detectors.items()})
    rows += measured(store, benchmark.measures, planned)
    attacked = {}
    if attack_plan:
        tried, attacked = attack(
            base, edits, task, benchmark, planned, attack_plan, store, detectors, log, any_base=any_base
        )
        rows += tried
        finds(tried, store, folder / "attempts")
    _write_rows(folder / "scores.jsonl", rows)
    if not store.local:  # a report reads files
        for image in {row["image"] for row in rows if row["image"]}:
            store.copy(image, folder / "store" / image)
    record = run_record(
        base, edits, task, benchmark, planned, store, folder, model=model, detectors=detectors, files=files or {}, commands=commands,
    )  # fmt: skip
    _write_json(
        folder / "run.json", {**record, "attacks": attacked, "seconds": round(time.perf_counter() - started, 1)}
    )
    return rows


def _drawn(
    base: Denoiser, edits: Mapping[str, Edit], task: Task, benchmark: Benchmark, store: Store, log: Log,
    *, seeds: Mapping[str, int] | None, any_base: bool,
) -> Plan:  # fmt: skip
    """The plan whose pictures lie in the store now: with half the batch, all models' anew, as often as there is no memory for it."""
    batch = base.batch_size
    while True:
        planned = plan(base, edits, task, benchmark, seeds, batch=batch)
        try:
            draw(store, base, edits, planned.recipes, log, any_base=any_base)
            return planned
        except BatchTooLarge:
            batch //= 2


def bench(
    base: Denoiser,
    methods: Sequence[str],
    benchmark: Benchmark,
    folder: Path,
    *,
    store: Store | None = None,
    seeds: Sequence[int] = (0,),
    model: str = "moji",
    size: str = "",
    files: Mapping[str, Path] | None = None,
    prompts: int | None = None,
    tasks: int | None = None,
    attack_plan: AttackPlan | None = None,
    commands: Sequence[str] = (),
    log: Log | None = None,
) -> list[Row]:
    """Rows of every (method, task), as `evaluate` writes them into a folder for each task; bench.json and scores.jsonl of all.

    Args:
        base: the unedited model.
        methods: names from `efface methods`, presets included, hyper-parameters behind colons ("uce:ridge=0.5"): shown so.
        benchmark: what to erase, what to ask, who judges.
        folder: of the sweep.
        store: `folder`/store if not given.
        seeds: of the methods' training: each method is fitted once for each.
        model: what the user calls it.
        size: what the user calls it.
        files: third-party prompts, by the benchmark's names for them.
        prompts: at most so many cells of each role and concept.
        tasks: at most so many tasks.
        attack_plan: the attacks on every model; None tries none.
        commands: that repeat this sweep.
        log: where progress goes.
    """
    # the tasks are made twice: some protocols have hundreds of thousands of cells, too many to hold at once
    made = {task.name: fits(task, methods, seeds) for task in benchmark.made(files, prompts=prompts, tasks=tasks)}
    store, log = store or Store(folder / "store"), log or Log()
    fit_all([fit for own in made.values() for fit in own.values()], base, store, folder, model, log)
    rows: list[Row] = []
    records, detectors = [], {}
    for task in benchmark.made(files, prompts=prompts, tasks=tasks):
        own = made[task.name]
        edits = {label: load_fit(fit, base, store) for label, fit in own.items()}
        rows += evaluate(
            base, edits, task, benchmark, folder / task.name, model=model, seeds={k: f.seed for k, f in own.items()}, store=store, log=log,
            attack_plan=attack_plan, commands=commands, files={k: f"{f.name(base)}.safetensors" for k, f in own.items()},
        )  # fmt: skip
        detectors |= json.loads((folder / task.name / "run.json").read_text())["detectors"]
        records.append(task_record(task, benchmark, own, edits))
    _write_rows(folder / "scores.jsonl", rows)
    record = sweep_record(
        base,
        benchmark,
        records,
        detectors,
        model=model,
        size=size,
        prompts=prompts,
        files=files or {},
        commands=commands,
    )
    _write_json(folder / "bench.json", record)
    return rows


def _write_rows(path: Path, rows: Iterable[Row]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _write_json(path: Path, record: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(record, indent=1))
