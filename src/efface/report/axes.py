"""Four questions about an edit: is it gone, does it stay gone, what else was hurt, and how many at once."""

from collections.abc import Mapping
from html import escape
from typing import NamedTuple

from efface.metrics.rates import Rate
from efface.report.attacks import strongest
from efface.report.folder import Run
from efface.report.names import ROLE_NAMES, role_name, score_name
from efface.report.page import anchor, mean_cell, note, rate_cell, scroll, small
from efface.report.scores import Column, Mean

EFFECTIVENESS, ROBUSTNESS, UTILITY, MANY = "Effectiveness", "Robustness", "Utility", "Many concepts"
QUESTIONS = {
    EFFECTIVENESS: "is it gone when asked for by its plain name?",
    ROBUSTNESS: "does it stay gone when asked for otherwise?",
    UTILITY: "does everything else stay?",
    MANY: "how many at once, and after which?",
}
ROLES = {EFFECTIVENESS: ("erase",), ROBUSTNESS: ("synonym", "implicit"), UTILITY: ("neighbour", "distant", "companion")}
UNATTACKED = "no attack was tried"


class AxisRow(NamedTuple):
    """One number of an axis for each model, by id: a rate, a mean, text where there is neither."""

    name: str
    role: str
    values: Mapping[str, Rate | Mean | str]
    anchor: str = ""  # anchor of the pictures behind it


def axes(run: Run) -> dict[str, list[AxisRow]]:
    """The lines of each axis."""
    scores, found = run.scores, {axis: list[AxisRow]() for axis in QUESTIONS}
    for axis, roles in ROLES.items():
        for column in scores.main(*roles):
            values = {i: scores.rate(i, column) for i in run.names}
            found[axis].append(AxisRow(score_name(column), role_name(column, scores), values, anchor(column)))
    found[ROBUSTNESS].append(_attacked(run))
    for column in scores.numbers:
        axis = next(axis for axis, roles in ROLES.items() if column.role in roles)
        values = {i: scores.mean(i, column) for i in run.names if scores.rows(i, column)}
        pictures = [anchor(a) for a in scores.main(column.role)]
        found[axis].append(AxisRow(_named(column), ROLE_NAMES[column.role], values, *pictures[:1]))
    found[MANY] = _many(run)
    return found


def _named(column: Column) -> str:
    if column.score in ("perceptual", "lpips"):
        return f"{column.score} distance to the unedited model's picture"
    far = "distance" in column.score or "CMMD" in column.score
    return f"{column.score} to the unedited model's pictures" if far else score_name(column)


def _attacked(run: Run) -> AxisRow:
    """The attack that brings it back most often."""
    values: dict[str, Rate | Mean | str] = {}
    for i in run.names:
        attack = strongest(run.scores, i)
        values[i] = attack[1] if attack else UNATTACKED
    names = sorted({found[0] for i in run.names if (found := strongest(run.scores, i))})
    return AxisRow(
        "brought back", f"by the best attack: {', '.join(names)}" if names else "by attacks", values, "attacks"
    )


def _many(run: Run) -> list[AxisRow]:
    """How many were erased, after which, and which of them came off worst."""
    columns = run.scores.main("erase")
    count = run.info["concept"].get("count") or len({c for column in columns for c in run.scores.concepts(column)})
    after = ", then ".join(map(str, run.info["concept"].get("after") or ()))
    how = f"in all; one after the other, earlier: {after}" if after else "at once"
    lines = [AxisRow("erased", how, dict.fromkeys(run.edits, str(count)))]
    for column in columns:
        rates = {i: {c: run.scores.rate(i, column, concept=c) for c in run.scores.concepts(column)} for i in run.edits}
        rates = {i: {c: r for c, r in each.items() if r.n} for i, each in rates.items()}
        if len(run.scores.concepts(column)) > 1 and all(rates.values()):
            worst = {i: min(each, key=lambda c, each=each: each[c].value) for i, each in rates.items()}
            values = {i: rates[i][c] for i, c in worst.items()}
            lines.append(
                AxisRow(
                    score_name(column), f"worst: {' / '.join(dict.fromkeys(worst.values()))}", values, anchor(column)
                )
            )
    return lines


def section(run: Run) -> str:
    """The axes as one table, a bar under each rate."""
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in run.names.values())
    bodies = ""
    for axis, lines in axes(run).items():
        span = len(run.names) + 1
        bodies += f'<tbody><tr><th scope="rowgroup" colspan="{span}"><b>{axis}</b>: {QUESTIONS[axis]}</th></tr>'
        for line in lines or [AxisRow("not measured", "", {})]:
            cells = "".join(f"<td>{_shown(line, line.values.get(i))}</td>" for i in run.names)
            bodies += f'<tr><th scope="row">{escape(line.name)}{small(escape(line.role))}</th>{cells}</tr>'
        bodies += "</tbody>"
    table = f'<table class="axes"><thead><tr><th scope="col">Axis</th>{heads}</tr></thead>{bodies}</table>'
    explanation = (
        "ESR: share of pictures in which the detector does not find what was erased. PSR: share in which it finds what was asked "
        "for. Higher is better for both; a distance is better small outside of what was erased. Small: 95&nbsp;% interval, "
        "Wilson's for rates and bootstrap for distances, and number of pictures n. Each rate links to its pictures."
    )
    return f"<h2>Four axes</h2>{scroll('Four axes', table)}{note(explanation)}"


def _shown(line: AxisRow, value: Rate | Mean | str | None) -> str:
    if value is None:
        return "&ndash;"
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, Mean):
        return mean_cell(value, f"#{line.anchor}" if line.anchor else "")
    css = "bar bad" if line.anchor == "attacks" else "bar"
    bar = f'<span class="{css}"><i style="width:{100 * value.value:.1f}%"></i></span>' if value.n else ""
    return bar + rate_cell(value, f"#{line.anchor}")
