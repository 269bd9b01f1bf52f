"""The contents of run.json and bench.json: what was measured, how, and with which judges."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from efface import __version__
from efface.benchmarks.plan import Fit, Plan
from efface.benchmarks.prompts import digest
from efface.benchmarks.spec import Benchmark, Task, erased_names, protocol_hash
from efface.benchmarks.store import Store
from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.edit import Edit
from efface.metrics.detectors import Detector

Record = dict[str, Any]


def run_record(
    base: Denoiser, edits: Mapping[str, Edit], task: Task, benchmark: Benchmark, plan: Plan, store: Store, folder: Path,
    *, model: str, detectors: Mapping[str, Detector], files: Mapping[str, str], commands: Sequence[str],
) -> Record:  # fmt: skip
    """run.json: one task with several edits."""
    names, sampler = list(erased_names(task)), benchmark.sampler
    pictures = store.root if store.local else folder / "store"
    return {
        "protocol": plan.protocol, "task": task.name, "benchmark": benchmark.name, "source": benchmark.source,
        "title": f"Erasing {_and(names)}", "pictures": os.path.relpath(pictures, folder),
        "model": model or base.fingerprint, "fingerprint": base.fingerprint,
        "created": datetime.now(UTC).isoformat(timespec="seconds"), "version": __version__,
        "concept": {
            "name": _and(names), "kind": task.erase[0].kind, "target": _target(task, edits),
            "count": len(names), "after": [_and([c.name for c in one]) for one in task.after],
        },
        "sensitive": any(c.kind == "unsafe" for c in (*task.erase, *(c for e in edits.values() for c in e.header.erase))),
        "sampler": sampler.name, "steps": sampler.steps,
        "guidance": sampler.guidance, "seeds": len({c.seed for c in task.cells}),
        "edits": [_edit(k, e, files.get(k, "")) for k, e in edits.items()], "failures": _failures(store, plan),
        "detectors": {
            key: {"name": benchmark.judges[key].detector, "id": one.id, **getattr(one, "card", {})} for key, one in detectors.items()
        },
        "commands": list(commands),
    }  # fmt: skip


def sweep_record(
    base: Denoiser, benchmark: Benchmark, tasks: Sequence[tuple[Record, Sequence[Record]]], detectors: Mapping[str, Any],
    *, model: str, size: str, prompts: int | None, files: Mapping[str, Path], commands: Sequence[str],
) -> Record:  # fmt: skip
    """bench.json: many tasks, each with its edits as `task_record` gives them."""
    return {
        "benchmark": benchmark.name, "about": benchmark.about, "source": benchmark.source, "model": model,
        "fingerprint": base.fingerprint, "version": __version__, "size": size, "prompts": prompts,
        "sampler": asdict(benchmark.sampler), "commands": list(commands),
        "files": {name: {"path": str(path), "sha256": digest(path)} for name, path in files.items()},
        "detectors": dict(detectors), "tasks": [task for task, _ in tasks], "edits": [edit for _, edits in tasks for edit in edits],
    }  # fmt: skip


def task_record(
    task: Task, benchmark: Benchmark, fits: Mapping[str, Fit], edits: Mapping[str, Edit]
) -> tuple[Record, list[Record]]:
    """A task and its edits in bench.json."""
    kind = next((k for k in ("sequence", "many") if task.name.startswith(f"{k}-")), task.erase[0].kind)
    said = {
        "name": task.name, "erased": list(erased_names(task)), "kind": kind, "protocol": protocol_hash(benchmark, task),
        "after": [[c.name for c in one] for one in task.after],
    }  # fmt: skip
    return said, [
        {"label": k, "method": fits[k].method, "task": task.name, "seed": fits[k].seed, **_cost(e)}
        for k, e in edits.items()
    ]


def _edit(label: str, edit: Edit, file: str) -> Record:
    return {
        "id": label, "method": edit.header.method, "file": file, "preserve": [c.name for c in edit.header.preserve],
        "erase": [asdict(c) for c in edit.header.erase], **_cost(edit),
    }  # fmt: skip


def _target(task: Task, edits: Mapping[str, Edit]) -> str:
    """What the concepts became: of the edits that were measured, each by its own header, or of the task where they do not say.

    One text where all edits agree; else every edit's with its label behind it.
    """
    told = {label: _targets(e.header.erase or task.erase) for label, e in edits.items()}
    if len(set(told.values())) <= 1:
        return next(iter(told.values()), _targets(task.erase))
    return ", ".join(f"{text or 'nothing'} ({label})" for label, text in told.items())


def _targets(concepts: Sequence[Concept]) -> str:
    return " / ".join(sorted({c.target or "nothing" for c in concepts})) if any(c.target for c in concepts) else ""


def _cost(edit: Edit) -> Record:
    header = edit.header
    return {
        "settings": dict(header.settings), "seconds": header.seconds, "memory": header.memory, "fingerprint": edit.fingerprint,
        "bytes": sum(t.numel() * t.element_size() for t in edit.tensors().values()),
    }  # fmt: skip


def _failures(store: Store, plan: Plan) -> int:
    return sum(store.error(name) is not None for label in plan.recipes for name in plan.names(label))


def _and(words: Sequence[str]) -> str:
    *most, last = words
    if len(words) > 6:
        return f"{', '.join(words[:3])} and {len(words) - 3} more"
    return f"{', '.join(most)} and {last}" if most else last
