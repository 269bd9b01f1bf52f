"""Methods side by side: fit each for each task of a benchmark, draw, judge, and put the numbers into one table.

Every fitted edit, picture and score is a cell of one store. A sweep that was killed goes on where it stopped, any number of processes
share one, and the unedited model's pictures serve every method.
"""

import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from efface import __version__
from efface.benchmarks.prompts import digest
from efface.benchmarks.run import Row, evaluate
from efface.benchmarks.spec import Benchmark, Task, erased_names, protocol_hash
from efface.benchmarks.store import Store, name_of
from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.edit import Edit, load_edit
from efface.core.files import write_text
from efface.core.log import Log
from efface.erasers import make
from efface.report.html import write_report


@dataclasses.dataclass(frozen=True)
class Fit:
    """A method that is to erase concepts at once, after others that it has erased before."""

    method: str
    erase: tuple[Concept, ...]
    preserve: tuple[str, ...] = ()
    after: tuple[tuple[Concept, ...], ...] = ()
    seed: int = 0

    @property
    def before(self) -> "Fit | None":
        """The erasure that this one builds on."""
        return dataclasses.replace(self, erase=self.after[-1], after=self.after[:-1]) if self.after else None

    def name(self, base: Denoiser) -> str:
        """Of the fitted edit in a store."""
        eraser = make(self.method, seed=self.seed)
        recipe = {
            "fit": type(eraser).__name__, "settings": dataclasses.asdict(eraser), "version": __version__, "model": base.fingerprint,
            "erase": [dataclasses.asdict(c) for c in self.erase], "preserve": self.preserve,
            "after": self.before.name(base) if self.before else "",
        }  # fmt: skip
        return name_of(recipe)


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
    commands: Sequence[str] = (),
    log: Log | None = None,
) -> list[Row]:
    """Rows of every (method, task), as `evaluate` writes them, and a report for each task in `folder`.

    Args:
        base: the unedited model.
        methods: names from `efface methods`, presets included.
        benchmark: what to erase, what to ask, who judges.
        folder: for bench.json, scores.jsonl and the reports.
        store: `folder`/store if not given.
        seeds: of the methods' training: each method is fitted once for each.
        model: what the user calls it.
        size: what the user calls it.
        files: third-party prompts, by the benchmark's names for them.
        prompts: at most so many cells of each role and concept.
        tasks: at most so many tasks.
        commands: that repeat this sweep.
        log: where progress goes.
    """
    made: dict[str, dict[str, Fit]] = {}
    for task in benchmark.made(files, prompts=prompts, tasks=tasks):
        made[task.name] = {
            f"{m}#{s}" if len(seeds) > 1 else m: Fit(m, task.erase, task.preserve, task.after, s)
            for m in methods for s in seeds
        }  # fmt: skip
    store, log = store or Store(folder / "store"), log or Log()
    store.share(
        [fit for one in made.values() for fit in one.values()],
        lambda f: f.name(base),
        lambda f: store.has_edit(f.name(base)),
        lambda f: _fit(f, base, store, folder, model, log),
    )
    rows: list[Row] = []
    about: list[Row] = []
    detectors: Row = {}
    for task in benchmark.made(files, prompts=prompts, tasks=tasks):
        fits = made[task.name]
        edits = {label: _load(fit, base, store) for label, fit in fits.items()}
        rows += evaluate(
            base, edits, task, benchmark, folder / task.name, fits={k: f.seed for k, f in fits.items()}, store=store, log=log,
            commands=commands, files={k: f"{f.name(base)}.safetensors" for k, f in fits.items()},
        )  # fmt: skip
        write_report(folder / task.name)
        detectors |= json.loads((folder / task.name / "run.json").read_text())["detectors"]
        about.append(_task(task, benchmark, fits, edits))
    write_text(folder / "scores.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    sweep = {
        "benchmark": benchmark.name, "about": benchmark.about, "source": benchmark.source, "model": model,
        "fingerprint": base.fingerprint, "version": __version__, "size": size, "prompts": prompts,
        "sampler": dataclasses.asdict(benchmark.sampler), "commands": list(commands),
        "files": {name: {"path": str(path), "sha256": digest(path)} for name, path in (files or {}).items()},
        "detectors": detectors, "tasks": [one["task"] for one in about], "edits": [edit for one in about for edit in one["edits"]],
    }  # fmt: skip
    write_text(folder / "bench.json", json.dumps(sweep, indent=1))
    return rows


def _fit(fit: Fit, base: Denoiser, store: Store, folder: Path, model: str, log: Log) -> None:
    """Fit an edit and keep it; training goes on from its checkpoint."""
    name, before = fit.name(base), None
    if fit.before:
        if not store.has_edit(fit.before.name(base)):
            _fit(fit.before, base, store, folder, model, log)
        before = _load(fit.before, base, store)
    log.checkpoint = folder / "training" / f"{name}.safetensors"
    start = before(base) if before else base
    edit = make(fit.method, seed=fit.seed).fit(start, fit.erase, fit.preserve, log=log, model=model)
    log.checkpoint = None
    if before:
        edit = _stacked(before, edit)
    with tempfile.TemporaryDirectory() as part:
        edit.save(Path(part) / "edit.safetensors")
        store.put_edit(name, Path(part) / "edit.safetensors")


def _stacked(before: Edit, edit: Edit) -> Edit:
    """An edit that was fitted on what another had left, together with that one: the last one's recipe, for the unedited model."""
    header = dataclasses.replace(
        edit.header, base=before.header.base, signature=before.header.signature, erase=(*before.header.erase, *edit.header.erase),
        seconds=before.header.seconds + edit.header.seconds,
    )  # fmt: skip
    both = before + edit.stamped(
        dataclasses.replace(edit.header, base=before.header.base, signature=before.header.signature)
    )
    return both.stamped(header)


def _load(fit: Fit, base: Denoiser, store: Store) -> Edit:
    with store.edit_file(fit.name(base)) as path:
        return load_edit(path)


def _task(task: Task, benchmark: Benchmark, fits: Mapping[str, Fit], edits: Mapping[str, Edit]) -> Row:
    """What bench.json says of a task and its edits."""
    kind = next((k for k in ("sequence", "many") if task.name.startswith(f"{k}-")), task.erase[0].kind)
    said: dict[str, Any] = {
        "name": task.name, "erased": list(erased_names(task)), "kind": kind, "protocol": protocol_hash(benchmark, task),
        "after": [[c.name for c in one] for one in task.after],
    }  # fmt: skip
    return {
        "task": said,
        "edits": [
            {
                "label": label, "method": fits[label].method, "task": task.name, "seed": fits[label].seed,
                "seconds": e.header.seconds, "memory": e.header.memory, "fingerprint": e.fingerprint, "settings": dict(e.header.settings),
                "bytes": sum(t.numel() * t.element_size() for t in e.tensors().values()),
            }
            for label, e in edits.items()
        ],
    }  # fmt: skip
