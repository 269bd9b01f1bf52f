"""A page that compares runs or sweeps of the same protocol; others are refused, with the first difference named."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from efface.core.errors import UsageError
from efface.core.files import write_text
from efface.report import board as boards
from efface.report.board import Board
from efface.report.data import table_csv
from efface.report.folder import read_run, read_sweep
from efface.report.leaderboard import board_of
from efface.report.page import link, page, table
from efface.report.scores import BASE, Row, is_rate


@dataclass(frozen=True)
class Source:
    """A folder that is compared: its page, rows with `method` and `nth`, edits by method, and its tasks' protocols."""

    name: str
    page: Path
    info: Mapping[str, Any]
    board: Board
    rows: Sequence[Row]
    protocols: Mapping[str, str]


def write_comparison(folders: Sequence[Path], output: Path) -> Path:
    """Write a page that compares several run or sweep folders to `output`, and a CSV in the same folder; return the page.

    Raises:
        UsageError: fewer than two folders, a damaged one, or different protocols or detectors.
        EffaceError: it cannot be written.
    """
    if len(folders) < 2:
        raise UsageError(f"compare: expected two or more folders, got {len(folders)}; give another one")
    names = [folder.name for folder in folders]
    named = names if len(set(names)) == len(names) else [str(folder) for folder in folders]
    if len(set(named)) < len(named):
        raise UsageError(f"compare: expected different folders, got {', '.join(named)}; give each once")
    sources = [_open(folder, name) for folder, name in zip(folders, named, strict=True)]
    for other in sources[1:]:
        _same(sources[0], other)
    board = _merged(sources)
    made = boards.csv_rows(board)
    write_text(output.with_suffix(".csv"), table_csv(made, list(made[0])))
    write_text(
        output, page(f"Compared: {', '.join(named)}", [boards.section(board, "#compared"), _sources(sources, output)])
    )
    return output


def _open(folder: Path, name: str) -> Source:
    if (folder / "bench.json").exists():
        sweep = read_sweep(folder)
        return Source(
            name,
            folder / "index.html",
            sweep.info,
            board_of(sweep),
            sweep.rows,
            {t["name"]: t["protocol"] for t in sweep.info["tasks"]},
        )
    run = read_run(folder)
    edits = {run.names[e["id"]]: [e] for e in run.info["edits"]}
    rows = tuple(r | {"method": run.names[r["edit"]] if r["edit"] != BASE else BASE, "nth": 0} for r in run.rows)
    methods = [BASE, *(run.names[i] for i in run.edits)]
    return Source(
        name,
        folder / "report.html",
        run.info,
        Board(rows, methods, edits),
        rows,
        {run.info["task"]: run.info["protocol"]},
    )


def _same(one: Source, two: Source) -> None:
    """Equal protocols for equal tasks, and the same detectors."""
    if lacking := sorted(one.protocols.keys() ^ two.protocols.keys()):
        holder = one.name if lacking[0] in one.protocols else two.name
        raise UsageError(
            f"compare: expected the same tasks, got {lacking[0]!r} in {holder} only; compare folders of the same tasks"
        )
    for task, protocol in one.protocols.items():
        if protocol != two.protocols[task]:
            raise UsageError(
                f"compare: task {task!r}: expected one protocol, got {protocol} in {one.name} and {two.protocols[task]} in {two.name}, "
                f"which differ in {_difference(one, two, task)}; measure both the same way"
            )
    ours, theirs = _detectors(one.rows), _detectors(two.rows)
    for judge in ours.keys() & theirs.keys():
        if ours[judge] != theirs[judge]:
            raise UsageError(
                f"compare: judge {judge!r}: expected one detector, "
                f"got {ours[judge]} in {one.name} and {theirs[judge]} in {two.name}; measure both the same way"
            )


def _difference(one: Source, two: Source, task: str) -> str:
    """The first difference between two protocols."""
    for what, of in {
        "the benchmark": lambda s: s.info["benchmark"],
        "the sampler": lambda s: [s.info.get(k) for k in ("sampler", "steps", "guidance")],
        "what was erased": lambda s: _asked(s, task, ("concept",), ("erase",)),
        "the judges or their scores": lambda s: _asked(s, task, ("judge", "score")),
        "the seeds": lambda s: _asked(s, task, ("seed",)),
        "the prompts": lambda s: _asked(s, task, ("role", "concept", "prompt", "seed")),
    }.items():
        if of(one) != of(two):
            return what
    return "the targets, or in what the methods were told to preserve"


def _asked(source: Source, task: str, keys: Sequence[str], roles: Sequence[str] = ()) -> set[tuple[Any, ...]]:
    rows = (r for r in source.rows if r["task"] == task and r["edit"] == BASE and not r["attack"])
    return {tuple(r[k] for k in keys) for r in rows if not roles or r["role"] in roles}


def _detectors(rows: Sequence[Row]) -> dict[str, str]:
    return {r["judge"]: r["detector"] for r in rows if is_rate(r["score"])}


def _merged(sources: Sequence[Source]) -> Board:
    """One board of all sources; the unedited model appears once if it is the same in all."""
    alike = len({s.info["fingerprint"] for s in sources}) == 1
    rows: list[Row] = []
    many: list[Row] = []
    methods: list[str] = []
    bases: list[str] = []
    edits: dict[str, Sequence[Mapping[str, Any]]] = {}
    for i, source in enumerate(sources):
        shown = {m: f"{m} ({source.name})" for m in source.board.methods}
        shown[BASE] = BASE if alike else f"unedited ({source.name})"
        kept = [m for m in source.board.methods if m != BASE or not alike or i == 0]
        rows += [r | {"method": shown[r["method"]]} for r in source.board.rows if r["method"] in kept]
        many += [r | {"method": shown[r["method"]]} for r in source.board.many if r["method"] in kept]
        methods += [shown[m] for m in kept]
        bases += [shown[m] for m in kept if m == BASE]
        edits |= {shown[m]: source.board.edits.get(m, ()) for m in kept}
    return Board(tuple(rows), methods, edits, bases, tuple(many))


def _sources(sources: Sequence[Source], output: Path) -> str:
    heads = ["Folder", "Model", "Fingerprint", "Written by", "Protocols"]
    rows = [
        (link(escape(s.name), quote(os.path.relpath(s.page, output.parent))), [
            escape(s.info["model"]), escape(s.info["fingerprint"]), f"efface {escape(s.info['version'])}",
            escape(", ".join(f"{k} {v}" for k, v in s.protocols.items())),
        ])
        for s in sources
    ]  # fmt: skip
    shown = table("Compared", heads, rows, "seen")
    return f'<h2 id="compared">Compared</h2>{shown}'
