"""Grids of pictures before and after: a row for each model, a column for each prompt and seed, evenly sampled."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TypeVar

from efface.benchmarks.row import GONE
from efface.core.errors import EffaceError
from efface.report.folder import AGAIN, Run
from efface.report.names import role_name
from efface.report.page import anchor, scroll, small
from efface.report.scores import BASE, Column, Row, is_rate

COLUMNS = 8  # pictures in a row of a grid
CONCEPTS = 12  # concepts shown of a role; all of them count
WIDEST = 200  # pixels; wider pictures are shown smaller, they lie in the store as they are
BLURRED = (*GONE, "companion")  # roles whose prompts name what was erased

LEGEND = (
    '<span class="yes">✓</span> as it should be: what was erased is not found, everything else is; <span class="no">✗</span> the '
    'opposite; <span class="unsure">=</span> the picture did not change; <span class="unsure">?</span> the detector failed; beside it, '
    "what the detector named first. The unedited model's pictures have no mark."
)
BLUR = " Pictures of what was erased are blurred; point at one, touch it or move to it by keyboard to see it."

T = TypeVar("T")


def section(run: Run) -> str:
    """A grid for each role and judge."""
    thinned = (
        f"At most {COLUMNS} pictures a row and {CONCEPTS} concepts a role, evenly spaced, not chosen; all are counted."
    )
    legend = f"{LEGEND} {thinned}{BLUR if run.info['sensitive'] else ''}"
    parts = [f"<h2>Before and after</h2><p>Equal prompts and seeds in each column. {legend}</p>"]
    for column in run.scores.main():
        head = f"Erased: {run.erased}" if column.role == "erase" else role_name(column, run.scores).capitalize()
        aim = "aim: gone" if column.gone else "aim: as before"
        label = "Erased" if column.role == "erase" else head
        grids = "".join(
            _grid(run, column, c, f"{label}: {c}") for c in evenly_spaced(run.scores.concepts(column), CONCEPTS)
        )
        parts.append(
            f'<h3 id="{anchor(column)}">{escape(head)} <small>{aim}</small></h3><div class="grids">{grids}</div>'
        )
    return "".join(parts)


def _grid(run: Run, column: Column, concept: str, label: str) -> str:
    """The table of one concept."""
    rows = {(i, r["prompt"], r["seed"]): r for i in run.names for r in run.scores.rows(i, column, concept=concept)}
    keys = evenly_spaced([(prompt, seed) for edit, prompt, seed in rows if edit == BASE], COLUMNS)
    heads = "".join(f'<th scope="col">{escape(prompt)}{small(f"seed {seed}")}</th>' for prompt, seed in keys)
    body = f'<tr><th scope="row">{escape(concept)}</th>{heads}</tr>'
    blur = run.info["sensitive"] and column.role in BLURRED
    for i, name in run.names.items():
        tiles = "".join(picture(run.folder, rows[i, *key], name, blur) for key in keys)
        body += f'<tr><th scope="row">{escape(name)}</th>{tiles}</tr>'
    return scroll(label, f'<table class="grid"><tbody>{body}</tbody></table>')


def attacked(run: Run, tried: Mapping[str, Mapping[str, list[Row]]]) -> str:
    """Pictures of attacks: a row for each edit and attack, since each has its own prompts."""
    body = ""
    for i, by_attack in tried.items():
        for name, rows in by_attack.items():
            tiles = ""
            for row in evenly_spaced(rows, COLUMNS):
                tiles += picture(run.folder, row, run.names[i], run.info["sensitive"], small(escape(_said(row))))
            body += f'<tr><th scope="row">{escape(run.names[i])}{small(escape(name))}</th>{tiles}</tr>'
    return scroll("Attacked", f'<table class="grid"><tbody>{body}</tbody></table>')


def _said(row: Row) -> str:
    """An attempt's prompt, and what its attack says of it."""
    return ", ".join([row["prompt"] or "(no prompt)", *(f"{k} {v}" for k, v in (row.get("about") or {}).items())])


def picture(folder: Path, row: Row, name: str, blur: bool, below: str = "") -> str:
    """A picture with the detector's label, or with its score if no detector judged it."""
    if row["value"] is None or is_rate(row["score"]):
        kind, mark = _mark(row)
        seen = "not judged" if row["value"] is None else row["seen"] or "no label"
    else:
        kind, mark, seen = "plain", row["score"], f"{row['value']:.3g}"
    said = escape(f"{name}: {row['prompt']}, seed {row['seed']}; detector: {seen}")
    if not row["image"]:
        return f'<td><span class="none" title="{said}"></span><span class="unsure">? not drawn</span>{below}</td>'
    source, width = _embedded(folder / row["image"])
    sharp = " px" if width <= 128 else ""
    image = f'<img class="{kind}{sharp}" src="{source}" alt="{said}" title="{said}">'
    if blur:
        image = f'<span class="blur" tabindex="0">{image}</span>'
    return f'<td>{image}<span class="{kind}">{escape(f"{mark} {seen}".strip())}</span>{below}</td>'


def _mark(row: Row) -> tuple[str, str]:
    """The class and the sign of a judged picture: whether it is as it should be."""
    if row["value"] is None:
        return "unsure", "?"
    if row["edit"] == BASE:
        return "plain", ""
    if row.get("unchanged"):
        return "unsure", "="
    right = row["value"] == (0 if row["role"] in GONE else 1)
    return ("yes", "✓") if right else ("no", "✗")


def _embedded(path: Path) -> tuple[str, int]:
    """A picture as a data URL, downscaled to the displayed width, and its width."""
    data = path.read_bytes()
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise EffaceError(f"{path}: expected a PNG picture, got a file that starts with {data[:8]!r}; {AGAIN}")
    width = int.from_bytes(data[16:20])  # by the PNG specification
    if width <= WIDEST:
        return f"data:image/png;base64,{base64.b64encode(data).decode()}", width
    from PIL import Image

    smaller = io.BytesIO()
    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.thumbnail((WIDEST, WIDEST))
            picture.convert("RGB").save(smaller, "JPEG", quality=85)
    except OSError as error:
        raise EffaceError(f"{path}: expected a PNG picture, got a damaged one ({error}); {AGAIN}") from error
    return f"data:image/jpeg;base64,{base64.b64encode(smaller.getvalue()).decode()}", width


def evenly_spaced(items: Sequence[T], most: int) -> list[T]:
    """All items, or `most` of them at equal distances."""
    return [items[i * len(items) // most] for i in range(most)] if len(items) > most else list(items)
