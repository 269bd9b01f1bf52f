"""The table of four axes: erasure, robustness, side effects on other concepts, and many concepts at once."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from efface.metrics.rates import Rate
from efface.report.attacks import strongest
from efface.report.folder import Run
from efface.report.names import ROLE_NAMES, role_name, score_name
from efface.report.page import anchor, folded, mean_cell, note, parts, rate_cell, scroll, small
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
    """One number of an axis for each model, by id: a rate, a mean, or else text."""

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
    """The attack that brings the concept back most often."""
    values: dict[str, Rate | Mean | str] = {}
    for i in run.names:
        attack = strongest(run.scores, i)
        values[i] = attack[1] if attack else UNATTACKED
    names = sorted({found[0] for i in run.names if (found := strongest(run.scores, i))})
    return AxisRow(
        "brought back", f"by the best attack: {', '.join(names)}" if names else "by attacks", values, "attacks"
    )


def _many(run: Run) -> list[AxisRow]:
    """The number of erased concepts, the earlier ones, and the one with the worst rate."""
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
    """The axes as a table, with a bar under each rate; split into several tables if there are many models."""
    found, models = axes(run), list(run.names)
    first, *others = parts(models)
    names = {p: f"Four axes, models {models.index(p[0]) + 1} to {models.index(p[-1]) + 1}" for p in others}
    shown = _table(run, found, first, "Four axes") + "".join(
        folded(names[p], _table(run, found, p, names[p])) for p in others
    )
    explanation = (
        "Higher is better for ESR and PSR; a distance is better small outside of what was erased. Small: 95&nbsp;% interval, "
        "Wilson's for rates and bootstrap for distances, and number of pictures n. Each rate links to its pictures."
    )
    return f"<h2>Four axes</h2>{shown}{note(explanation)}"


def _table(run: Run, found: Mapping[str, list[AxisRow]], models: Sequence[str], label: str) -> str:
    heads = "".join(f'<th scope="col">{escape(run.names[i])}</th>' for i in models)
    bodies = ""
    for axis, lines in found.items():
        span = len(models) + 1
        bodies += f'<tbody><tr><th scope="rowgroup" colspan="{span}"><b>{axis}</b>: {QUESTIONS[axis]}</th></tr>'
        for line in lines or [AxisRow("not measured", "", {})]:
            cells = "".join(f"<td>{_shown(line, line.values.get(i))}</td>" for i in models)
            bodies += f'<tr><th scope="row">{escape(line.name)}{small(escape(line.role))}</th>{cells}</tr>'
        bodies += "</tbody>"
    return scroll(
        label, f'<table class="axes"><thead><tr><th scope="col">Axis</th>{heads}</tr></thead>{bodies}</table>'
    )


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
