"""Cross edits with cells: the same prompts and seeds for the unedited model and for every edit, judged by one detector."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from efface import __version__
from efface.benchmarks.moji import Cell, styles
from efface.core.denoiser import Denoiser
from efface.core.edit import Edit
from efface.core.io import replace_file, write_text
from efface.core.train import Log
from efface.metrics.detectors import Classifier

Row = dict[str, Any]


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
) -> list[Row]:
    """Make and judge every cell with the unedited model and with each edit; write pictures, scores.jsonl and run.json to `folder`.

    A model's rows are written when it is done, so that an interrupted evaluation keeps the models that were finished.

    Args:
        base: the unedited model.
        edits: by the name they are shown under.
        cells: what to ask, in any order.
        folder: of the run; pictures that are there are replaced.
        name: of what was erased, for the title.
        steps: of the sampler.
        guidance: scale of classifier-free guidance.
        files: the edits' file names, by edit.
        commands: that repeat this run.
        log: where progress goes.
    """
    log, started, rows = log or Log(), time.perf_counter(), []
    judges = {task: Classifier(f"moji-{task}") for task in {_task(c) for c in cells}}
    tick = log.stage("pictures", len(cells) * steps * (1 + len(edits)))
    for label, model in {"base": base, **{k: e(base) for k, e in edits.items()}}.items():
        pictures = model.images(
            [c.prompt for c in cells], [c.seed for c in cells], steps=steps, guidance=guidance, tick=tick
        )
        rows += judge(label, cells, pictures, judges)
        for i, picture in enumerate(pictures):
            save_png(picture, folder / "images" / label / f"{i:04d}.png")
        write_text(folder / "scores.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    first = next(iter(edits.values()), None)
    erased = [c for e in edits.values() for c in e.header.erase]
    concept = {
        "name": name,
        "kind": erased[0].kind if erased else "",
        "target": " / ".join(sorted({c.target for c in erased})),
    }
    run = {
        "title": f"Erasing {name}", "model": first.header.model if first else "", "fingerprint": base.fingerprint,
        "created": datetime.now(UTC).isoformat(timespec="seconds"), "version": __version__, "concept": concept,
        "sampler": "DDIM, η = 0", "steps": steps, "guidance": guidance, "seeds": len({c.seed for c in cells}),
        "edits": [_summary(k, e, (files or {}).get(k, "")) for k, e in edits.items()],
        "detector": judges[_task(cells[0])].card, "commands": list(commands), "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip
    write_text(folder / "run.json", json.dumps(run, indent=1))
    return rows


def judge(
    label: str, cells: Sequence[Cell], pictures: Sequence[np.ndarray], judges: Mapping[str, Classifier]
) -> list[Row]:
    """Two rows for each picture: whether the concept asked for is the detector's best guess, and among its five best."""
    ranks: dict[int, Row] = {}
    for task, judge in judges.items():
        mine = [i for i, c in enumerate(cells) if _task(c) == task]
        ranks |= dict(zip(mine, judge.rank([pictures[i] for i in mine], [cells[i].concept for i in mine]), strict=True))
    return [
        {
            "edit": label, **asdict(c), "score": f"top{k}", "value": int(ranks[i]["rank"] <= k),
            "seen": ranks[i]["seen"], "image": f"images/{label}/{i:04d}.png",
        }
        for i, c in enumerate(cells) for k in (1, 5)
    ]  # fmt: skip


def save_png(picture: np.ndarray, path: Path) -> None:
    """A uint8 picture (H W 3) as PNG, whole or not at all."""
    replace_file(path, lambda part: Image.fromarray(picture).save(part, format="png"))


def _task(cell: Cell) -> str:
    return "style" if cell.concept in styles() else "concept"


def _summary(label: str, edit: Edit, file: str) -> Row:
    header = edit.header
    size = sum(t.numel() * t.element_size() for t in edit.tensors().values())
    return {
        "id": label, "method": header.method, "settings": dict(header.settings), "seconds": header.seconds, "bytes": size,
        "file": file, "preserve": list(header.preserve),
    }  # fmt: skip
