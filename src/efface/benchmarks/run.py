"""Cross edits with a task's cells: the same prompts and seeds for the unedited model and for every edit, judged alike.

Everything finished is in a store, so that a run that was killed goes on where it stopped and several processes share one run.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from efface import __version__
from efface.benchmarks.measure import measured
from efface.benchmarks.spec import Benchmark, Cell, Judge, Sampler, Task, about, erased_names, protocol_hash
from efface.benchmarks.store import Recipe, Store, name_of
from efface.core.denoiser import Denoiser
from efface.core.edit import Edit
from efface.core.errors import UsageError
from efface.core.files import write_text
from efface.core.log import Log
from efface.metrics.calibration import same_label
from efface.metrics.detectors import Detector, detector

T = TypeVar("T")
Row = dict[str, Any]
BASE = "base"  # the id of the unedited model
SEGMENT = 256  # pictures whose scores share a file


def evaluate(
    base: Denoiser,
    edits: Mapping[str, Edit],
    task: Task,
    benchmark: Benchmark,
    folder: Path,
    *,
    fits: Mapping[str, int] | None = None,
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
        fits: the edits' training seeds, 0 where not given.
        files: the edits' file names.
        commands: that repeat this run.
        log: where progress goes.
        store: of pictures and scores: what it holds is not made again; `folder`/store if not given.

    Raises:
        UsageError: `folder` holds another store format, foreign files where the store goes, or a judge cannot be opened.
        EffaceError: a picture of the store is damaged.
    """
    log, started, store = log or Log(), time.perf_counter(), store or Store(folder / "store")
    judges = {key: opened(benchmark.judges[key]) for key in dict.fromkeys(c.judge for c in task.cells if c.judge)}
    wanted = recipes(base, edits, task.cells, benchmark.sampler)
    draw(store, base, edits, wanted, log)
    rows = judge(store, wanted, task.cells, {key: (benchmark.judges[key], one) for key, one in judges.items()})
    rows += measured(store, benchmark.measures, wanted, task.cells)
    said = {"protocol": protocol_hash(benchmark, task), "task": task.name}
    rows = [{**said, "edit": r["edit"], "fit": (fits or {}).get(r["edit"], 0), **r} for r in rows]
    write_text(folder / "scores.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    if not store.local:  # a report reads files
        for image in {row["image"] for row in rows if row["image"]}:
            store.copy(image, folder / "store" / image)
    where = store.root if store.local else folder / "store"
    names = list(erased_names(task))
    run = {
        **said, "benchmark": benchmark.name, "source": benchmark.source, "title": f"Erasing {_and(names)}",
        "pictures": os.path.relpath(where, folder), "model": next((e.header.model for e in edits.values()), ""),
        "fingerprint": base.fingerprint, "created": datetime.now(UTC).isoformat(timespec="seconds"), "version": __version__,
        "concept": {
            "name": _and(names), "kind": task.erase[0].kind, "target": " / ".join(sorted({c.target for c in task.erase})),
            "count": len(names), "after": [_and([c.name for c in one]) for one in task.after],
        },
        "sensitive": any(c.kind == "unsafe" for c in task.erase), "sampler": benchmark.sampler.name,
        "steps": benchmark.sampler.steps, "guidance": benchmark.sampler.guidance, "seeds": len({c.seed for c in task.cells}),
        "edits": [_summary(k, e, (files or {}).get(k, "")) for k, e in edits.items()], "failures": _failures(store, wanted),
        "detectors": {
            key: {"name": benchmark.judges[key].detector, "id": one.id, **getattr(one, "card", {})} for key, one in judges.items()
        },
        "commands": list(commands), "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip
    write_text(folder / "run.json", json.dumps(run, indent=1))
    return rows


def opened(given: Judge) -> Detector:
    """The detector of a judge.

    Raises:
        UsageError: it cannot be opened, or only the user can have it.
    """
    if not given.detector:
        raise UsageError(
            "judge: this protocol's detector is not shipped; give one with --judge NAME=DETECTOR (`efface benchmarks NAME` says which)"
        )
    return detector(given.detector, given.labels)


def recipes(
    base: Denoiser, edits: Mapping[str, Edit], cells: Sequence[Cell], sampler: Sampler
) -> dict[str, list[Recipe]]:
    """What each model's pictures are made of, cell by cell; the unedited model is "base" and its edit ""."""
    made = {**asdict(sampler), "batch": base.batch_size, "dtype": str(base.dtype).removeprefix("torch.")}
    return {
        label: [
            {
                "model": base.fingerprint, "edit": print_, "prompt": c.prompt, "seed": c.seed,
                "sampler": {**made, "guidance": float(sampler.guidance if c.guidance is None else c.guidance)},
            }
            for c in cells
        ]
        for label, print_ in {BASE: "", **{k: e.fingerprint for k, e in edits.items()}}.items()
    }  # fmt: skip


def draw(
    store: Store, base: Denoiser, edits: Mapping[str, Edit], wanted: Mapping[str, Sequence[Recipe]], log: Log
) -> None:
    """Make every picture the store lacks. What another process is at work on is waited for, or taken over when it died."""
    lacking = {
        label: list({name_of(r): r for r in all_ if _lacks(store, r)}.values()) for label, all_ in wanted.items()
    }
    left = sum(r["sampler"]["steps"] for all_ in lacking.values() for r in all_)
    if not left:
        return
    bar = log.stage("pictures", left)

    def tick(n: int) -> None:
        nonlocal left
        left -= n
        bar(n)

    for label, todo in lacking.items():
        if todo:  # one edited model at a time
            _draw_all(store, base if label == BASE else edits[label](base), todo, tick)
    bar(left)  # what other processes drew


def _lacks(store: Store, recipe: Recipe) -> bool:
    return not store.has_picture(name_of(recipe)) and store.error(name_of(recipe)) is None


def _draw_all(store: Store, model: Denoiser, todo: Sequence[Recipe], tick: Callable[[int], object]) -> None:
    """Batch after batch of what neither this process nor another has drawn or claimed; what others claimed comes last."""
    left = list(todo)
    while left:
        busy, mine, rest = [], [], []
        with ExitStack() as claims:
            for i, recipe in enumerate(left):
                if not _lacks(store, recipe):
                    continue
                if not claims.enter_context(store.claim(name_of(recipe))):
                    busy.append(recipe)
                elif _lacks(store, recipe):  # another process may have been quicker than the claim
                    mine.append(recipe)
                if len(mine) == model.batch_size:
                    rest = left[i + 1 :]
                    break
            if mine:
                _draw(store, model, mine, tick)
        if busy and not mine:
            time.sleep(0.5)
        left = rest + busy


def _draw(store: Store, model: Denoiser, lacking: Sequence[Recipe], tick: Callable[[int], object]) -> None:
    """Pictures of up to a batch of recipes. The batch is always full: then a picture's bits do not depend on what else is lacking."""
    padded = [*lacking, *[lacking[-1]] * (model.batch_size - len(lacking))]
    sampler, scales = lacking[0]["sampler"], [r["sampler"]["guidance"] for r in padded]
    try:
        pictures = model.images(
            [r["prompt"] for r in padded],
            [r["seed"] for r in padded],
            steps=sampler["steps"],
            guidance=scales if len(set(scales)) > 1 else scales[0],
            sampler=sampler["name"],
            negative=sampler["negative"],
            rng=sampler["rng"],
            tick=lambda _: tick(len(lacking)),
        )
    except UsageError:
        raise  # every picture would fail for the same reason, and the user can mend it
    except Exception as error:
        if len(lacking) > 1:  # one bad picture does not take its neighbours with it
            for recipe in lacking:
                _draw(store, model, [recipe], lambda _: None)
            return
        store.put_error(lacking[0], f"{type(error).__name__}: {error}")
        return
    for recipe, picture in zip(lacking, pictures, strict=False):
        store.put_picture(recipe, picture)


def judge(
    store: Store,
    wanted: Mapping[str, Sequence[Recipe]],
    cells: Sequence[Cell],
    judges: Mapping[str, tuple[Judge, Detector]],
) -> list[Row]:
    """A row for each picture and score of its judge, such as whether the label asked for is among the five best guesses.

    A picture that could not be made or judged has the value None: it counts neither as there nor as gone.
    """
    seen: dict[str, dict[str, Any]] = {}
    for key, (_, one) in judges.items():
        names = [name_of(r) for all_ in wanted.values() for r, c in zip(all_, cells, strict=True) if c.judge == key]
        seen |= {f"{key}/{name}": record for name, record in look(store, one, names).items()}
    rows = []
    for label, all_ in wanted.items():
        for recipe, c in zip(all_, cells, strict=True):
            if not c.judge:  # drawn and measured, not judged
                continue
            name, (asked, one) = name_of(recipe), judges[c.judge]
            record = seen.get(f"{c.judge}/{name}", {"error": store.error(name)})
            boxes = record.get("top")
            rows += [
                {
                    "edit": label, **about(c), "score": score, "value": None if boxes is None else value(score, c, asked, boxes),
                    "seen": boxes[0][0] if boxes else "", "error": record.get("error"),
                    "image": store.picture_path(name) if store.has_picture(name) else "", "cell": name, "detector": one.id,
                }
                for score in asked.scores
            ]  # fmt: skip
    return rows


def value(score: str, cell: Cell, asked: Judge, boxes: Sequence[Sequence[Any]]) -> int | None:
    """A score of what a detector saw (label and confidence, best first); None where it named nothing at all.

    Raises:
        UsageError: no such score.
    """
    kind = score.rstrip("0123456789.")
    number = score.removeprefix(kind)
    if kind == "top" and number.isdigit():
        best = [label for label, _ in boxes[: int(number)]]
        return int(any(same_label(label, cell.concept) for label in best)) if boxes else None
    if kind in ("any", "count") and number:
        hits = sum(p > float(number) for label, p in boxes if label in asked.classes)
        return hits if kind == "count" else int(hits > 0)
    raise UsageError(f"score: expected topK, anyT or countT, such as top5 or any0.6, got {score!r}; mend the benchmark")


def look(store: Store, detector: Detector, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What a detector sees in the pictures of these cells, those that it has seen before included."""
    known = store.scores(detector.id)
    todo = [n for n in dict.fromkeys(names) if n not in known and store.has_picture(n)]
    for part in _split(todo, SEGMENT):
        records = _look(detector, [(n, store.picture(n)) for n in part])
        store.put_scores(detector.id, records)
        known |= {r["picture"]: r for r in records}
    return {n: known[n] for n in names if n in known}


def _look(detector: Detector, pictures: Sequence[tuple[str, Any]]) -> list[dict[str, Any]]:
    try:
        tops = detector.top([picture for _, picture in pictures])
        return [
            {"picture": n, "top": [list(guess) for guess in top]} for (n, _), top in zip(pictures, tops, strict=True)
        ]
    except Exception as error:
        if len(pictures) > 1:  # find the one it cannot judge
            return [record for one in pictures for record in _look(detector, [one])]
        return [{"picture": pictures[0][0], "error": f"{type(error).__name__}: {error}"}]


def _failures(store: Store, wanted: Mapping[str, Sequence[Recipe]]) -> int:
    return sum(store.error(name_of(r)) is not None for all_ in wanted.values() for r in all_)


def _split(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _summary(label: str, edit: Edit, file: str) -> Row:
    header = edit.header
    size = sum(t.numel() * t.element_size() for t in edit.tensors().values())
    return {
        "id": label, "method": header.method, "settings": dict(header.settings), "seconds": header.seconds, "memory": header.memory,
        "bytes": size,
        "file": file, "preserve": list(header.preserve), "fingerprint": edit.fingerprint,
    }  # fmt: skip


def _and(words: Sequence[str]) -> str:
    *most, last = words
    if len(words) > 6:
        return f"{', '.join(words[:3])} and {len(words) - 3} more"
    return f"{', '.join(most)} and {last}" if most else last
