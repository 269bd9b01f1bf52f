"""Many concepts at once, and one after the other: tables and curves of a sweep."""

from html import escape
from typing import Any

from efface.metrics.rates import Rate
from efface.report.board import Board
from efface.report.data import rates
from efface.report.folder import Sweep
from efface.report.page import Th, cell, link, note, report_of, table
from efface.report.plots import lines
from efface.report.scores import BASE, Ask, Scores
from efface.report.words import about, short

Task = dict[str, Any]


def singles(sweep: Sweep) -> list[Task]:
    """Tasks that erase one thing, or one group, from the unedited model."""
    return [t for t in sweep.info["tasks"] if t["kind"] not in ("many", "sequence")]


def counts(sweep: Sweep) -> dict[int, Scores]:
    """Rows by how many concepts were erased at once; 1 is the single-concept tasks, where no task was made for it."""
    many = [t for t in sweep.info["tasks"] if t["kind"] == "many"]
    names: dict[int, set[str]] = {}
    for task in many:
        names.setdefault(len(task["erased"]), set()).add(task["name"])
    alone = {t["name"] for t in singles(sweep) if len(t["erased"]) == 1}
    if many and alone:
        names.setdefault(1, alone)
    return {k: Scores((r for r in sweep.rows if r["task"] in names[k]), "method") for k in sorted(names)}


def many_json(sweep: Sweep) -> list[dict[str, Any]]:
    """Rates by method and by how many were erased at once."""
    return [
        {"method": m, "erased": k, **ask._asdict(), **rates(scores.rate(m, ask))}
        for k, scores in counts(sweep).items() for m in sweep.methods for ask in scores.main() if scores.rate(m, ask).n
    ]  # fmt: skip


def many_section(sweep: Sweep, board: Board) -> str:
    """A curve and a table for each rate."""
    found = counts(sweep)
    asks = dict.fromkeys(ask for k, scores in found.items() if k > 1 for ask in scores.main())
    parts = []
    for ask in asks:
        across = [k for k, scores in found.items() if scores.rate(BASE, ask).n]
        rows = [(escape(board.name(m)), [_cell(found[k], m, ask) for k in across]) for m in sweep.methods]
        series = {
            board.name(m): [(float(k), rate.value) for k in across if (rate := found[k].rate(m, ask)).n]
            for m in sweep.methods
        }
        name = f"{short(ask)}, {about(ask, found[across[-1]])}"
        series = {m: points for m, points in series.items() if points}
        shown = table(name, ["Method", *[Th(str(k), "at once") for k in across]], rows)
        figure = lines(series, "concepts erased at once", f"{short(ask)}, %")
        parts.append(f"<div><h3>{escape(name)}</h3>{figure}{shown}</div>")
    words = "1 at once: the tasks that erase one concept. More at once: other concepts and prompts, so compare methods, not columns."
    return f'<h2>Many concepts at once</h2><div class="plots">{"".join(parts)}</div>{note(words)}' if parts else ""


def _cell(scores: Scores, method: str, ask: Ask) -> str:
    return cell(scores.rate(method, ask), "", scores.interval(method, ask))


def many_markdown(sweep: Sweep) -> str:
    """The rates of `many_section` and the last step of each sequence as Markdown, in percent; empty where neither was measured."""
    found, parts = counts(sweep), []
    for ask in dict.fromkeys(ask for k, scores in found.items() if k > 1 for ask in scores.main()):
        across = [k for k, scores in found.items() if scores.rate(BASE, ask).n]
        parts.append(_grid(
            f"{short(ask)} {about(ask, found[across[-1]])}, by how many were erased at once", [str(k) for k in across],
            {m: [_percent(found[k].rate(m, ask)) for k in across] for m in sweep.methods},
        ))  # fmt: skip
    for chain in chains(sweep):
        last = Scores((r for r in sweep.rows if r["task"] == chain[-1]["name"]), "method")
        concepts = [*chain[-1]["after"], *chain[-1]["erased"]]
        for ask in last.main("erase"):
            kept = last.main("neighbour", "distant")
            cells = {
                m: [
                    *(_percent(last.rate(m, ask, concept=c)) for c in concepts),
                    *(_percent(last.rate(m, a)) for a in kept),
                ]
                for m in sweep.methods
            }
            heads = [*concepts, *(f"{short(a)} {about(a, last)}" for a in kept)]
            parts.append(_grid(f"{short(ask)} of each after {', then '.join(concepts)}", heads, cells))
    return "\n".join(parts)


def _grid(title: str, heads: list[str], rows: dict[str, list[str]]) -> str:
    lines_ = [f"**{title}**", "", f"| method | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    lines_ += [f"| {'unedited' if m == BASE else m} | {' | '.join(cells)} |" for m, cells in rows.items()]
    return "\n".join(lines_) + "\n"


def _percent(rate: Rate) -> str:
    low, high = rate.interval
    return f"{100 * rate.value:.0f} [{100 * low:.0f}, {100 * high:.0f}] of {rate.n}" if rate.n else "–"


def chains(sweep: Sweep) -> list[list[Task]]:
    """Tasks that erase one after the other, each chain from its first step."""
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
    for chain in chains(sweep):
        for step in chain:
            scores = Scores((r for r in sweep.rows if r["task"] == step["name"]), "method")
            for m in sweep.methods:
                for ask in scores.main("erase"):
                    for concept in scores.concepts(ask):
                        rate = {**ask._asdict(), "concept": concept, **rates(scores.rate(m, ask, concept=concept))}
                        found.append({"task": step["name"], "method": m, **rate})
    return found


def sequence_section(sweep: Sweep, board: Board) -> str:
    """For each method a row a step, a column a concept in the order of erasing: what happens to the earlier ones."""
    parts = []
    for chain in chains(sweep):
        by_step = {s["name"]: Scores((r for r in sweep.rows if r["task"] == s["name"]), "method") for s in chain}
        last = by_step[chain[-1]["name"]]
        concepts = list(dict.fromkeys([*chain[-1]["after"], *chain[-1]["erased"]]))
        measured = (m for m in sweep.methods[1:] if any(last.rate(m, ask).n for ask in last.main("erase")))
        for m in measured:
            for ask in last.main("erase"):
                heads = [*concepts, *[Th(short(a), about(a, last)) for a in last.main("neighbour", "distant")]]
                rows = []
                for step in chain:
                    scores = by_step[step["name"]]
                    cells = [cell(r) if (r := scores.rate(m, ask, concept=c)).n else "" for c in concepts]
                    cells += [cell(scores.rate(m, a)) for a in last.main("neighbour", "distant")]
                    rows.append((link(escape(", ".join(step["erased"])), report_of(step["name"])), cells))
                parts.append(f"<h3>{escape(board.name(m))}</h3>{table(board.name(m), ['Then erased', *heads], rows)}")
    words = "ESR of each concept after each step: a number that falls down a column is a concept that comes back."
    return f"<h2>One after the other</h2>{''.join(parts)}{note(words)}" if parts else ""
