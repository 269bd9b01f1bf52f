"""Tables and curves of tasks that erase many concepts, at once or in sequence."""

from html import escape
from typing import Any

from efface.metrics.rates import Rate
from efface.report.board import Board
from efface.report.data import rate_json
from efface.report.folder import Sweep
from efface.report.names import role_name, score_name
from efface.report.page import Th, link, note, rate_cell, report_link, table
from efface.report.plots import line_chart
from efface.report.scores import BASE, Column, Scores

Task = dict[str, Any]


def single_tasks(sweep: Sweep) -> list[Task]:
    """Tasks that erase one thing, or one group, from the unedited model."""
    return [t for t in sweep.info["tasks"] if t["kind"] not in ("many", "sequence")]


def scores_by_count(sweep: Sweep) -> dict[int, Scores]:
    """Rows by how many concepts were erased at once; 1 is the single-concept tasks, where no task was made for it."""
    many = [t for t in sweep.info["tasks"] if t["kind"] == "many"]
    names: dict[int, set[str]] = {}
    for task in many:
        names.setdefault(len(task["erased"]), set()).add(task["name"])
    alone = {t["name"] for t in single_tasks(sweep) if len(t["erased"]) == 1}
    if many and alone:
        names.setdefault(1, alone)
    return {k: Scores((r for r in sweep.rows if r["task"] in names[k]), "method") for k in sorted(names)}


def many_json(sweep: Sweep) -> list[dict[str, Any]]:
    """Rates by method and by number of concepts erased at once."""
    return [
        {"method": m, "erased": k, **column._asdict(), **rate_json(scores.rate(m, column))}
        for k, scores in scores_by_count(sweep).items() for m in sweep.methods for column in scores.main() if scores.rate(m, column).n
    ]  # fmt: skip


def many_section(sweep: Sweep, board: Board) -> str:
    """A curve and a table for each rate."""
    found = scores_by_count(sweep)
    columns = dict.fromkeys(column for k, scores in found.items() if k > 1 for column in scores.main())
    parts = []
    for column in columns:
        across = [k for k, scores in found.items() if scores.rate(BASE, column).n]
        rows = [(escape(board.name(m)), [_cell(found[k], m, column) for k in across]) for m in sweep.methods]
        series = {
            board.name(m): [(float(k), rate.value) for k in across if (rate := found[k].rate(m, column)).n]
            for m in sweep.methods
        }
        name = f"{score_name(column)}, {role_name(column, found[across[-1]])}"
        series = {m: points for m, points in series.items() if points}
        shown = table(name, ["Method", *[Th(str(k), "at once") for k in across]], rows)
        figure = line_chart(series, "concepts erased at once", f"{score_name(column)}, %")
        parts.append(f"<div><h3>{escape(name)}</h3>{figure}{shown}</div>")
    explanation = "1 at once: the tasks that erase one concept. More at once: other concepts and prompts, so compare methods, not columns."
    return (
        f'<h2>Many concepts at once</h2><div class="plots">{"".join(parts)}</div>{note(explanation)}' if parts else ""
    )


def _cell(scores: Scores, method: str, column: Column) -> str:
    return rate_cell(scores.rate(method, column), "", scores.interval(method, column))


def many_markdown(sweep: Sweep) -> str:
    """The rates of `many_section` and the last step of each sequence as Markdown, in percent; empty where neither was measured."""
    found, parts = scores_by_count(sweep), []
    for column in dict.fromkeys(column for k, scores in found.items() if k > 1 for column in scores.main()):
        across = [k for k, scores in found.items() if scores.rate(BASE, column).n]
        parts.append(_grid(
            f"{score_name(column)} {role_name(column, found[across[-1]])}, by how many were erased at once", [str(k) for k in across],
            {m: [_percent(found[k].rate(m, column)) for k in across] for m in sweep.methods},
        ))  # fmt: skip
    for chain in sequences(sweep):
        last = Scores((r for r in sweep.rows if r["task"] == chain[-1]["name"]), "method")
        concepts = [*chain[-1]["after"], *chain[-1]["erased"]]
        for column in last.main("erase"):
            kept = last.main("neighbour", "distant")
            cells = {
                m: [
                    *(_percent(last.rate(m, column, concept=c)) for c in concepts),
                    *(_percent(last.rate(m, a)) for a in kept),
                ]
                for m in sweep.methods
            }
            heads = [*concepts, *(f"{score_name(a)} {role_name(a, last)}" for a in kept)]
            parts.append(_grid(f"{score_name(column)} of each after {', then '.join(concepts)}", heads, cells))
    return "\n".join(parts)


def _grid(title: str, heads: list[str], rows: dict[str, list[str]]) -> str:
    lines_ = [f"**{title}**", "", f"| method | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    lines_ += [f"| {'unedited' if m == BASE else m} | {' | '.join(cells)} |" for m, cells in rows.items()]
    return "\n".join(lines_) + "\n"


def _percent(rate: Rate) -> str:
    low, high = rate.interval
    return f"{100 * rate.value:.0f} [{100 * low:.0f}, {100 * high:.0f}] of {rate.n}" if rate.n else "–"


def sequences(sweep: Sweep) -> list[list[Task]]:
    """Tasks that erase concepts in sequence, each sequence from its first step."""
    steps = sorted((t for t in sweep.info["tasks"] if t["kind"] == "sequence"), key=lambda t: len(t["after"]))
    found: list[list[Task]] = []
    for step in steps:
        before = [c for c in found if [*c[-1]["after"], *c[-1]["erased"]] == step["after"]]
        if before:
            before[0].append(step)
        else:
            found.append([step])
    return found


def sequence_json(sweep: Sweep) -> list[dict[str, Any]]:
    """ESR of every concept erased so far, after each step."""
    found = []
    for chain in sequences(sweep):
        for step in chain:
            scores = Scores((r for r in sweep.rows if r["task"] == step["name"]), "method")
            for m in sweep.methods:
                for column in scores.main("erase"):
                    for concept in scores.concepts(column):
                        rate = {
                            **column._asdict(),
                            "concept": concept,
                            **rate_json(scores.rate(m, column, concept=concept)),
                        }
                        found.append({"task": step["name"], "method": m, **rate})
    return found


def sequence_section(sweep: Sweep, board: Board) -> str:
    """For each method a table with a row for each step and a column for each concept, in the order of erasure."""
    parts = []
    for chain in sequences(sweep):
        by_step = {s["name"]: Scores((r for r in sweep.rows if r["task"] == s["name"]), "method") for s in chain}
        last = by_step[chain[-1]["name"]]
        concepts = list(dict.fromkeys([*chain[-1]["after"], *chain[-1]["erased"]]))
        measured = (m for m in sweep.methods[1:] if any(last.rate(m, column).n for column in last.main("erase")))
        for m in measured:
            for column in last.main("erase"):
                heads = [*concepts, *[Th(score_name(a), role_name(a, last)) for a in last.main("neighbour", "distant")]]
                rows = []
                for step in chain:
                    scores = by_step[step["name"]]
                    cells = [rate_cell(r) if (r := scores.rate(m, column, concept=c)).n else "" for c in concepts]
                    cells += [rate_cell(scores.rate(m, a)) for a in last.main("neighbour", "distant")]
                    rows.append((link(escape(", ".join(step["erased"])), report_link(step["name"])), cells))
                parts.append(f"<h3>{escape(board.name(m))}</h3>{table(board.name(m), ['Then erased', *heads], rows)}")
    explanation = "ESR of each concept after each step: a number that falls down a column is a concept that comes back."
    return f"<h2>One after the other</h2>{''.join(parts)}{note(explanation)}" if parts else ""
