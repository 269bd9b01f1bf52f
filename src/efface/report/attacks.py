"""Success rates of attacks, and success against the number of denoiser calls. A row of an attack is one prompt and seed."""

from html import escape

from efface.metrics.rates import Rate, found
from efface.report.folder import Run
from efface.report.grids import attacked
from efface.report.names import NO_ATTACK
from efface.report.page import note, rate_cell, table
from efface.report.plots import Point, line_chart
from efface.report.scores import Row, Scores


def success(rows: list[Row]) -> Rate:
    """Rate at which an attack brought the concept back."""
    return found(rows, rows[0]["score"]) if rows else Rate(0, 0)


def strongest(scores: Scores, model: str) -> tuple[str, Rate] | None:
    """The attack that succeeds most often on a model, None if none was run or judged."""
    tried = {name: success(rows) for name, rows in scores.attacks(model).items()}
    return max(((k, r) for k, r in tried.items() if r.n), key=lambda pair: pair[1].value, default=None)


def success_by_calls(rows: list[Row]) -> list[Point]:
    """(calls, share brought back within this number of calls), empty if calls were not counted."""
    judged = [row for row in rows if row["value"] is not None]
    if not judged or any(row.get("calls") is None for row in judged):
        return []
    steps = sorted({row["calls"] for row in judged})
    return [(float(b), sum(r["value"] == 1 and r["calls"] <= b for r in judged) / len(judged)) for b in steps]


def section(run: Run) -> str:
    """Every attack's success, and success against budget."""
    tried = {i: run.scores.attacks(i) for i in run.names}
    names = list(dict.fromkeys(name for each in tried.values() for name in each))
    if not names:
        return f'<h2 id="attacks">Attacks</h2><p>{NO_ATTACK}</p>'
    rows = [
        (escape(run.names[i]), [rate_cell(success(each.get(name, [])), "#attacked") for name in names])
        for i, each in tried.items()
    ]
    explanation = "Share of attacked prompts whose picture shows it again: lower is better for the edit. Small: Wilson 95&nbsp;% interval."
    parts = [f'<h2 id="attacks">Attacks</h2>{table("Attacks", ["Model", *names], rows)}{note(explanation)}']
    curves = {
        f"{run.names[i]}, {name}": success_by_calls(rows) for i, each in tried.items() for name, rows in each.items()
    }
    if curves := {name: points for name, points in curves.items() if points}:
        parts.append(line_chart(curves, "calls of the denoiser", "brought back, %"))
    return "".join([*parts, '<h3 id="attacked">What they led to</h3>', attacked(run, tried)])
