"""Cross edits with cells: the same prompts and seeds for the unedited model and for every edit, judged by one detector.

Everything finished is in a store, so that a run that was killed goes on where it stopped and several processes share one run.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from efface import __version__
from efface.benchmarks.moji import Cell, styles
from efface.benchmarks.store import Recipe, Store, name_of
from efface.core.denoiser import CHUNK, Denoiser
from efface.core.edit import Edit
from efface.core.files import write_text
from efface.core.train import Log
from efface.metrics.detectors import Classifier, Detector

T = TypeVar("T")
Row = dict[str, Any]
BASE = "base"  # the id of the unedited model
SEGMENT = 256  # pictures whose scores share a file


def evaluate(
    base: Denoiser,
    edits: Mapping[str, Edit],
    cells: Sequence[Cell],
    folder: Path,
    *,
    name: str,
    steps: int = 25,
    guidance: float = 3.0,
    files: Mapping[str, str] | None = None,
    commands: Sequence[str] = (),
    log: Log | None = None,
    store: Store | None = None,
) -> list[Row]:
    """Make and judge every cell with the unedited model and with each edit; write scores.jsonl and run.json to `folder`.

    Args:
        base: the unedited model.
        edits: by the name they are shown under.
        cells: what to ask, in any order.
        folder: of the run.
        name: of what was erased, for the title.
        steps: of the sampler.
        guidance: scale of classifier-free guidance.
        files: the edits' file names, by edit.
        commands: that repeat this run.
        log: where progress goes.
        store: of pictures and scores: what it holds is not made again; `folder`/store if not given.

    Raises:
        UsageError: `folder` holds another store format, or foreign files where the store goes.
        EffaceError: a picture of the store is damaged.
    """
    log, started, store = log or Log(), time.perf_counter(), store or Store(folder / "store")
    wanted = recipes(base, edits, cells, steps=steps, guidance=guidance)
    draw(store, base, edits, wanted, log)
    judges = {task: Classifier(f"moji-{task}") for task in {_task(c) for c in cells}}
    rows = judge(store, wanted, cells, judges)
    write_text(folder / "scores.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    first = next(iter(edits.values()), None)
    erased = [c for e in edits.values() for c in e.header.erase]
    concept = {
        "name": name,
        "kind": erased[0].kind if erased else "",
        "target": " / ".join(sorted({c.target for c in erased})),
    }
    if not store.local:  # a report reads files
        for image in {row["image"] for row in rows if row["image"]}:
            store.copy(image, folder / "store" / image)
    where = store.root if store.local else folder / "store"
    run = {
        "pictures": os.path.relpath(where, folder),
        "title": f"Erasing {name}", "model": first.header.model if first else "", "fingerprint": base.fingerprint,
        "created": datetime.now(UTC).isoformat(timespec="seconds"), "version": __version__, "concept": concept,
        "sampler": "DDIM, η = 0", "steps": steps, "guidance": guidance, "seeds": len({c.seed for c in cells}),
        "edits": [_summary(k, e, (files or {}).get(k, "")) for k, e in edits.items()], "failures": _failures(store, wanted),
        "detector": judges[_task(cells[0])].card, "commands": list(commands), "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip
    write_text(folder / "run.json", json.dumps(run, indent=1))
    return rows


def recipes(
    base: Denoiser, edits: Mapping[str, Edit], cells: Sequence[Cell], *, steps: int, guidance: float
) -> dict[str, list[Recipe]]:
    """What each model's pictures are made of, cell by cell; the unedited model is "base" and its edit ""."""
    sampler = {
        "name": "ddim", "eta": 0.0, "steps": steps, "guidance": float(guidance), "batch": CHUNK,
        "dtype": str(base.pipeline.unet.dtype).removeprefix("torch."),
    }  # fmt: skip
    return {
        label: [
            {"model": base.fingerprint, "edit": print_, "prompt": c.prompt, "seed": c.seed, "sampler": sampler}
            for c in cells
        ]
        for label, print_ in {BASE: "", **{k: e.fingerprint for k, e in edits.items()}}.items()
    }


def draw(
    store: Store, base: Denoiser, edits: Mapping[str, Edit], wanted: Mapping[str, Sequence[Recipe]], log: Log
) -> None:
    """Make every picture the store lacks. What another process is at work on is waited for, or taken over when it died."""
    jobs = [(label, part) for label, all_ in wanted.items() for part in _split(all_, CHUNK)]
    steps = jobs[0][1][0]["sampler"]["steps"]
    left = steps * sum(len(_lacking(store, part)) for _, part in jobs)
    bar, models = log.stage("pictures", left), {BASE: base}

    def tick(n: int) -> None:
        nonlocal left
        left -= n
        bar(n)

    def work(job: tuple[str, Sequence[Recipe]]) -> None:
        label, part = job
        if label not in models:  # one edited model at a time
            models.clear()
            models[BASE] = base
            models[label] = edits[label](base)
        _draw(store, models[label], _lacking(store, part), tick)

    store.share(
        jobs, lambda job: name_of({"draw": [name_of(r) for r in job[1]]}), lambda job: not _lacking(store, job[1]), work
    )
    bar(left)  # what other processes drew


def _lacking(store: Store, part: Sequence[Recipe]) -> list[Recipe]:
    return [r for r in part if not store.has_picture(name_of(r)) and store.error(name_of(r)) is None]


def _draw(store: Store, model: Denoiser, lacking: Sequence[Recipe], tick: Any) -> None:
    """Pictures of up to a batch of recipes. The batch is always full: then a picture's bits do not depend on what else is lacking."""
    padded = [*lacking, *[lacking[-1]] * (CHUNK - len(lacking))]
    sampler = lacking[0]["sampler"]
    try:
        pictures = model.images(
            [r["prompt"] for r in padded],
            [r["seed"] for r in padded],
            steps=sampler["steps"],
            guidance=sampler["guidance"],
            tick=lambda _: tick(len(lacking)),
        )
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
    store: Store, wanted: Mapping[str, Sequence[Recipe]], cells: Sequence[Cell], judges: Mapping[str, Detector]
) -> list[Row]:
    """Two rows for each picture: whether the concept asked for is the detector's best guess, and among its five best.

    A picture that could not be made or judged has the value None: it counts neither as there nor as gone.
    """
    seen: dict[str, dict[str, Any]] = {}
    for task, one in judges.items():
        names = [name_of(r) for all_ in wanted.values() for r, c in zip(all_, cells, strict=True) if _task(c) == task]
        seen |= {f"{task}/{name}": record for name, record in look(store, one, names).items()}
    rows = []
    for label, all_ in wanted.items():
        for recipe, c in zip(all_, cells, strict=True):
            name = name_of(recipe)
            record = seen.get(f"{_task(c)}/{name}", {"error": store.error(name)})
            labels = [guess for guess, _ in record.get("top", ())]
            rows += [
                {
                    "edit": label, **asdict(c), "attack": "", "score": f"top{k}",
                    "value": int(c.concept in labels[:k]) if labels else None, "seen": labels[0] if labels else "",
                    "error": record.get("error"), "image": store.picture_path(name) if store.has_picture(name) else "",
                    "cell": name, "detector": judges[_task(c)].id,
                }
                for k in (1, 5)
            ]  # fmt: skip
    return rows


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


def _task(cell: Cell) -> str:
    return "style" if cell.concept in styles() else "concept"


def _summary(label: str, edit: Edit, file: str) -> Row:
    header = edit.header
    size = sum(t.numel() * t.element_size() for t in edit.tensors().values())
    return {
        "id": label, "method": header.method, "settings": dict(header.settings), "seconds": header.seconds, "bytes": size,
        "file": file, "preserve": list(header.preserve), "fingerprint": edit.fingerprint,
    }  # fmt: skip
