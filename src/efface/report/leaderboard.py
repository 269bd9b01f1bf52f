"""A sweep as one page: methods side by side, with intervals, and what each did to each concept."""

import csv
import io
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from efface.core.errors import UsageError
from efface.core.files import write_text
from efface.metrics.rates import Rate, erased, found
from efface.report.html import NO_ATTACK, cell, page, scatter, scroll, seconds, size
from efface.report.tables import BASE, percent

KEPT = ("neighbour", "distant")
COLUMNS = {
    "ESR-1": ("erase", "top1"), "ESR-5": ("erase", "top5"),
    "PSR-1 neighbours": ("neighbour", "top1"), "PSR-5 neighbours": ("neighbour", "top5"),
    "PSR-1 distant": ("distant", "top1"), "PSR-5 distant": ("distant", "top5"),
}  # fmt: skip


def write_leaderboard(folder: Path) -> Path:
    """Write index.html, leaderboard.csv and leaderboard.md of a sweep's folder.

    Raises:
        UsageError: no sweep in the folder.
    """
    try:
        about = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
        lines = (folder / "scores.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise UsageError(
            f"{folder}: holds no {Path(error.filename).name}; give a folder `efface bench` wrote"
        ) from error
    rows = [json.loads(line) for line in lines]
    methods = [BASE, *dict.fromkeys(e["method"] for e in about["edits"])]
    concepts = list(dict.fromkeys(e["erased"] for e in about["edits"]))
    table = [_line(m, rows, about) for m in methods]
    text = io.StringIO()
    writer = csv.DictWriter(text, table[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    write_text(folder / "leaderboard.csv", text.getvalue())
    write_text(folder / "leaderboard.md", _markdown(methods, rows, about))
    write_text(folder / "index.html", _page(methods, concepts, rows, about))
    return folder / "index.html"


def _rate(rows: Sequence[dict[str, Any]], role: str, score: str, **where: Any) -> Rate:
    """ESR for the erased, PSR for the others."""
    return (erased if role == "erase" else found)(rows, score, role=role, **where)


def _balance(rows: Sequence[dict[str, Any]], method: str) -> float:
    """Harmonic mean of ESR-1 and of PSR-1 over neighbours and distant concepts: 0 when any of them is."""
    rates = [_rate(rows, role, "top1", edit=method).value for role in ("erase", *KEPT)]
    return len(rates) / sum(1 / r for r in rates) if all(rates) else 0.0


def _line(method: str, rows: Sequence[dict[str, Any]], about: dict[str, Any]) -> dict[str, Any]:
    """One row of the CSV: rates with their counts and intervals."""
    line: dict[str, Any] = {"method": method}
    for name, (role, score) in COLUMNS.items():
        rate = _rate(rows, role, score, edit=method)
        low, high = rate.interval
        line |= {
            name: round(rate.value, 4),
            f"{name} low": round(low, 4),
            f"{name} high": round(high, 4),
            f"{name} n": rate.n,
        }
    mine = [e for e in about["edits"] if e["method"] == method]
    line["harmonic mean"] = round(_balance(rows, method), 4)
    line["fit seconds"] = round(median(e["seconds"] for e in mine), 2) if mine else ""
    line["bytes"] = round(median(e["bytes"] for e in mine)) if mine else ""
    return line


def _markdown(methods: Sequence[str], rows: Sequence[dict[str, Any]], about: dict[str, Any]) -> str:
    """The table as Markdown, in percent with Wilson's 95 % intervals."""

    def show(rate: Rate) -> str:
        low, high = rate.interval
        return f"{100 * rate.value:.1f} [{100 * low:.0f}, {100 * high:.0f}]" if rate.n else "–"

    head = f"| method | {' | '.join(COLUMNS)} | harmonic mean | fit, s |"
    lines = [head, "|---" * (len(COLUMNS) + 3) + "|"]
    for m in methods:
        rates = " | ".join(show(_rate(rows, role, score, edit=m)) for role, score in COLUMNS.values())
        times = [e["seconds"] for e in about["edits"] if e["method"] == m]
        lines.append(
            f"| {_name(m)} | {rates} | {100 * _balance(rows, m):.1f} | {f'{median(times):.1f}' if times else ''} |"
        )
    return "\n".join(lines) + "\n"


def _name(method: str) -> str:
    return "unedited" if method == BASE else method


def _page(
    methods: Sequence[str], concepts: Sequence[str], rows: Sequence[dict[str, Any]], about: dict[str, Any]
) -> str:
    def both(method: str) -> tuple[Rate, Rate]:
        kept = [_rate(rows, role, "top1", edit=method) for role in KEPT]
        return Rate(sum(r.hits for r in kept), sum(r.n for r in kept)), _rate(rows, "erase", "top1", edit=method)

    heads = "".join(f'<th scope="col">{name}</th>' for name in (*COLUMNS, "Harmonic mean", "Fit", "File"))
    body = ""
    for m in methods:
        mine = [e for e in about["edits"] if e["method"] == m]
        cells = "".join(f"<td>{cell(_rate(rows, role, score, edit=m))}</td>" for role, score in COLUMNS.values())
        cost = [median(e[k] for e in mine) if mine else None for k in ("seconds", "bytes")]
        cells += f"<td>{percent(_balance(rows, m))}</td><td>{seconds(cost[0])}</td><td>{size(cost[1])}</td>"
        body += f'<tr><th scope="row">{escape(_name(m))}</th>{cells}</tr>'
    table = (
        f'<table class="scores"><thead><tr><th scope="col">Method</th>{heads}</tr></thead><tbody>{body}</tbody></table>'
    )
    failed = sum(r["value"] is None for r in rows if r["score"] == "top1")
    parts = [
        f"<p>{len(concepts)} concepts, size {escape(about['size'])}, model {escape(about['model'])} "
        f"({escape(about['fingerprint'])}). {escape(NO_ATTACK)}</p>",
        scroll("Methods", table),
        '<p class="note">ESR-k: the erased concept is not among the detector\'s k best guesses. PSR-k: the concept asked for is. '
        "All concepts together; small: Wilson 95&nbsp;% interval and number of pictures n. Harmonic mean of ESR-1 and both PSR-1. Fit "
        f"and file: medians.{f' {failed} pictures could not be made or judged and count nowhere.' if failed else ''}</p>",
        "<h2>Trade-off</h2>"
        + scatter({_name(m): both(m) for m in methods}, _name(BASE), "PSR-1 over all others, % (kept)"),
        "<h2>Concept by concept</h2><p>Erased / neighbours kept / distant kept, top-1. Each concept links to its pictures.</p>",
        scroll("Concepts", _matrix(methods, concepts, rows)),
        f'<h2>Repeat it</h2><pre tabindex="0">{escape(chr(10).join(about["commands"]))}</pre>',
    ]
    return page(f"Leaderboard: {about['model']}", "".join(f"<section>{part}</section>" for part in parts))


def _matrix(methods: Sequence[str], concepts: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    heads = "".join(f'<th scope="col">{escape(_name(m))}</th>' for m in methods)
    body = ""
    for c in concepts:
        mine = [r for r in rows if r["erased"] == c]
        cells = ""
        for m in methods:
            rates = [_rate(mine, role, "top1", edit=m) for role in ("erase", *KEPT)]
            cells += f"<td>{' / '.join(percent(r.value) if r.n else '–' for r in rates)}</td>"
        body += f'<tr><th scope="row"><a href="{escape(c)}/report.html">{escape(c)}</a></th>{cells}</tr>'
    return (
        f'<table class="scores"><thead><tr><th scope="col">Erased</th>{heads}</tr></thead><tbody>{body}</tbody></table>'
    )
