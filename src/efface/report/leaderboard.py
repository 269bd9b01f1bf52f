"""The leaderboard of a sweep: a comparison of methods with intervals, and each method's effect on each concept."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from efface.benchmarks.row import NONE
from efface.core.files import from_json, write_text
from efface.metrics.calibration import calibration
from efface.report import board as boards
from efface.report import published, under_attack
from efface.report.board import Board
from efface.report.data import calibration_json, table_csv
from efface.report.estimates import Estimate
from efface.report.folder import Sweep, read_sweep
from efface.report.judges import judges_section
from efface.report.many import many_json, many_markdown, many_section, sequence_json, sequence_section, single_tasks
from efface.report.matrix import changes, concept_columns, matrix, shaded
from efface.report.names import GAP, NO_ATTACK, RATES, ROLE_NAMES, method_description, percent
from efface.report.page import Th, commands, facts, folded, link, note, page, report_link, table
from efface.report.plots import standalone
from efface.report.scores import Row, Scores
from efface.report.under_attack import trade_off

ASKED = (
    "erase",
    "neighbour",
    "distant",
    "companion",
)  # roles in the matrix of a sweep: a concept has one of them in a task


def write_leaderboard(folder: Path) -> Path:
    """Write index.html and leaderboard.csv, .md, .json and .tex of a sweep's folder.

    Tasks that erase several concepts at once may be a sweep of their own in a folder inside, such as `many`, and attacks one in
    `attacked`: of the same benchmark, model, sampler and size they fill the columns "many at once" and those of attacks.

    Raises:
        UsageError: the folder has no sweep, or a damaged one.
    """
    sweep = read_sweep(folder)
    board = board_of(sweep)
    made, title = boards.csv_rows(board), f"{sweep.info['benchmark']}, {sweep.info['model']}"
    files = {
        "leaderboard.csv": table_csv(made, list(made[0])), "leaderboard.md": _markdown(sweep, board),
        "leaderboard.json": _json(sweep, board, made), "leaderboard.tex": boards.latex(board, title), "index.html": _page(sweep, board),
    }  # fmt: skip
    if under := board.ranking.attacked:
        figure = trade_off(under, *_named(board), _kept(board))
        files |= {"attacks.md": _attacks_markdown(sweep, board)} | (
            {"attacks.svg": standalone(figure)} if figure else {}
        )
    for name, text in files.items():
        write_text(folder / name, text)
    return folder / "index.html"


def _markdown(sweep: Sweep, board: Board) -> str:
    """The ranked table; below, folded, every rate, the pictures' numbers, many at once and sequences, the methods, the commands."""
    info = sweep.info
    intro = (
        f"{info['about']}. Model {info['model']} ({info['fingerprint']}), efface {info['version']}. {_attacks(board)}"
    )
    rates = (
        f"{RATES} Percent with 95 % intervals, widened by how much tasks differ; bold: the best edit of a column, where another "
        "differs from it; *: differs from it by "
        f"McNemar's test with Holm's correction.\n\n{boards.markdown_rates(board)}"
    )
    methods = "\n".join(f"- {m}: {text}" for m in board.methods if (text := method_description(m)))
    below = {
        "Every rate, by judge": rates, "Quality and distances of the pictures": boards.markdown_numbers(board),
        "Many at once, and one after the other": many_markdown(sweep), "What the methods do": methods,
        "Commands": "\n".join(f"    {c}" for c in info["commands"]),
    }  # fmt: skip
    tables = [f"<details><summary>{name}</summary>\n\n{text}\n\n</details>" for name, text in below.items() if text]
    return "\n\n".join([f"# Leaderboard: {info['benchmark']}", intro, boards.markdown(board), *tables]) + "\n"


def _attacks(board: Board) -> str:
    return "" if board.ranking.attacked else NO_ATTACK


def _attacks_markdown(sweep: Sweep, board: Board) -> str:
    """The page of attacks: what was tried, a figure, the tables, what the searches cost."""
    under, info = board.ranking.attacked, sweep.info
    assert under is not None
    tried = ", ".join(f"`{name}`" for name in under.names if name != NONE)
    tasks = ", ".join(sorted({row["task"] for rows in under.rows.values() for row in rows}))
    intro = (
        f"What still gets through: {len(set(under.rows) - under.bases)} methods on {tasks}, attacked with {tried}. "
        f"{_budget(sweep)} Model {info['model']} ({info['fingerprint']}), efface {info['version']}."
    )
    figure = "![What no attack brought back, against what was kept](attacks.svg)"
    return (
        "\n\n".join(
            [
                f"# Attacks: {info['benchmark']}",
                intro,
                figure,
                under_attack.markdown(under, *_named(board)),
                _cost(sweep),
            ]
        )
        + "\n"
    )


def _budget(sweep: Sweep) -> str:
    """The budget of a prompt, and how many prompts and seeds were judged."""
    about = [record for record in _records(sweep) if record.get("calls")]
    if not about:
        return ""
    size, calls = about[0]["size"], about[0]["calls"]
    return f"Budget ({size}): {calls:,} calls of the denoiser for each prompt and attack; a gradient counts as three."


def _cost(sweep: Sweep) -> str:
    """Mean calls, prompts through the text encoder and seconds of each attack's searches."""
    spent: dict[str, list[dict[str, float]]] = defaultdict(list)
    for record in _records(sweep):
        for by_attack in (record.get("cost") or {}).values():
            for name, by_concept in by_attack.items():
                spent[name] += by_concept.values()
    lines = ["| attack | searches | calls of the denoiser | prompts encoded | seconds |", "|---|---|---|---|---|"]
    for name, own in spent.items():
        means = [fmean(float(one[key]) for one in own) for key in ("calls", "texts", "seconds")]
        lines.append(f"| {name} | {len(own)} | {means[0]:,.0f} | {means[1]:,.0f} | {means[2]:.1f} |")
    return "## Cost of a search, a mean\n\n" + "\n".join(lines)


def _records(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """What the runs of the sweep and of like ones say of their attacks."""
    for one in _like(sweep):
        for path in sorted(one.folder.glob("*/run.json")):
            found = from_json(path.read_text(encoding="utf-8"))
            yield (found.get("attacks") if isinstance(found, dict) else None) or {}


def _named(board: Board) -> tuple[list[str], dict[str, str]]:
    """The methods as the ranked table has them, and their displayed names."""
    return board.ranking.order, {m: board.name(m) for m in board.methods}


def _kept(board: Board) -> dict[str, Estimate | None]:
    """What each method kept: neighbours and unrelated concepts."""
    return {m: board.ranking.column(m, ("neighbour", "distant")) for m in board.methods}


def board_of(sweep: Sweep) -> Board:
    """The methods over all single-concept tasks, or over all tasks if there are none."""
    names = {t["name"] for t in single_tasks(sweep)} or {t["name"] for t in sweep.info["tasks"]}
    edits: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for edit in sweep.info["edits"]:
        if edit["task"] in names:
            edits[edit["method"]].append(edit)
    return Board(
        tuple(r for r in sweep.rows if r["task"] in names),
        sweep.methods,
        edits,
        many=tuple(_many(sweep)),
        attacks=tuple(_attack_rows(sweep)),
    )


def _like(sweep: Sweep) -> list[Sweep]:
    """The sweep, and those in folders inside its own that may be compared with it."""
    inside = [read_sweep(path.parent) for path in sorted(sweep.folder.glob("*/bench.json"))]
    same = ("benchmark", "fingerprint", "sampler", "size")
    return [sweep, *(s for s in inside if all(s.info[k] == sweep.info[k] for k in same))]


def _attack_rows(sweep: Sweep) -> Iterator[Row]:
    """Rows of attacks: the sweep's own, and those of like sweeps in folders inside its own."""
    for one in _like(sweep):
        yield from (row for row in one.rows if row["attack"] and row["method"] in sweep.methods)


def _many(sweep: Sweep) -> Iterator[Row]:
    """Rows of tasks that erase several concepts at once: the sweep's own, and those of like sweeps in folders inside its own."""
    for one in _like(sweep):
        tasks = {t["name"] for t in one.info["tasks"] if t["kind"] == "many"}
        yield from (row for row in one.rows if row["task"] in tasks and row["method"] in sweep.methods)


def _json(sweep: Sweep, board: Board, made: list[dict[str, Any]]) -> str:
    """Every number of the page."""
    found = {
        "sweep": sweep.info,
        "methods": made,
        "many": many_json(sweep),
        "sequence": sequence_json(sweep),
        "changes": [
            {"task": task, "method": m, **column._asdict(), "concept": concept, "change": round(x, 6)}
            for task, scores in _by_task(board).items() for m in board.methods[1:]
            for (column, concept), x in changes(scores, m, concept_columns(scores, *ASKED)).items()
        ],
        "published": published.published(sweep.info["benchmark"]),
        "calibration": calibration_json(calibration(sweep.rows)),
    }  # fmt: skip
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def _page(sweep: Sweep, board: Board) -> str:
    info = sweep.info
    intro = (
        f"Methods: {len(board.methods) - 1}, tasks: {len(info['tasks'])}, size {info['size']}, model {info['model']}."
    )
    head = f"<p>{escape(info['about'])}</p><p>{escape(f'{intro} {_attacks(board)}')}</p>"
    calibrated = judges_section(calibration(sweep.rows), info.get("detectors", {}))
    names = facts((m, text) for m in board.methods if (text := method_description(m)))
    sections = [
        head + boards.section(board, "#tasks"),
        _under_attack(board),
        folded("What the methods do", names),
        many_section(sweep, board),
        sequence_section(sweep, board),
        folded("How wrong the judges are", calibrated),
        published.section(published.published(info["benchmark"]), board, info["model"]),
        _tasks(sweep, board),
        _interference(board),
        _method(sweep),
    ]
    return page(f"Leaderboard: {info['benchmark']}", sections)


def _under_attack(board: Board) -> str:
    under = board.ranking.attacked
    return under_attack.section(under, *_named(board)) + trade_off(under, *_named(board), _kept(board)) if under else ""


def _by_task(board: Board) -> Mapping[str, Scores]:
    rows = defaultdict(list)
    for row in board.rows:
        rows[row["task"]].append(row)
    return {task: Scores(own, "method") for task, own in rows.items()}


def _tasks(sweep: Sweep, board: Board) -> str:
    """Every task with a link to its pictures."""
    rows = []
    every = Board(sweep.rows, sweep.methods, {})
    for name, scores in _by_task(every).items():
        cells = []
        for m in board.methods:
            rates = [scores.rate(m, column) for column in scores.main("erase", "neighbour", "distant")]
            cells.append(" / ".join(percent(r.value).removesuffix(f"{GAP}%") if r.n else "–" for r in rates))
        rows.append((link(escape(name), report_link(name)), cells))
    explanation = "<p>Percent: erased / neighbours / unrelated concepts kept, by the first score. A task links to its pictures.</p>"
    shown = table("Tasks", ["Task", *map(board.name, board.methods)], rows)
    return f'<h2 id="tasks">Task by task</h2>{explanation}{shown}'


def _interference(board: Board) -> str:
    """For each method: tasks by concepts."""
    by_task = _by_task(board)
    keys = {task: concept_columns(scores, *ASKED) for task, scores in by_task.items()}
    concepts = list(dict.fromkeys(concept for own in keys.values() for _, concept in own))
    parts = []
    for i, m in enumerate(board.methods[1:]):
        rows = {}
        for task, scores in by_task.items():
            found = {c: (column, x) for (column, c), x in reversed(changes(scores, m, keys[task]).items())}
            rows[link(escape(task), report_link(task))] = [
                shaded(found[c][1], report_link(task), f"{m}, {task}: {c}, {ROLE_NAMES[found[c][0].role]}")
                if c in found
                else shaded(None)
                for c in concepts
            ]
        shown = matrix(m, "Task", [Th(c) for c in concepts], rows)
        parts.append(f"<details{'' if i else ' open'}><summary>{escape(m)}</summary>{shown}</details>")
    return f"<h2>Interference</h2>{''.join(parts)}"


def _method(sweep: Sweep) -> str:
    info = sweep.info
    given = {
        "Benchmark": info["benchmark"], "Source": info["source"] or "none",
        "Model": f"{info['model']}, fingerprint {info['fingerprint']}",
        "Sampler": ", ".join(f"{k} {v}" for k, v in info["sampler"].items() if v != ""),
        "Protocols": ", ".join(f"{t['name']} {t['protocol']}" for t in info["tasks"]), "Written by": f"efface {info['version']}",
    }  # fmt: skip
    prints = ", ".join(f"{e['label']} on {e['task']}: {e.get('fingerprint') or 'none'}" for e in info["edits"])
    folded = f"<details><summary>Fingerprints of the edits</summary><p>{escape(prints)}</p></details>"
    files = "In the same folder: leaderboard.csv, .md, .tex, and .json with every number."
    return f"<h2>How it was measured</h2>{facts(given.items())}{folded}<h3>Repeat it</h3>{commands(info['commands'])}{note(files)}"
