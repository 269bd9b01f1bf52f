"""Four questions about an edit: is it gone, does it stay gone, what else was hurt, and how many at once."""

from collections.abc import Mapping
from html import escape
from typing import NamedTuple

from efface.metrics.rates import Rate
from efface.report.attacks import best
from efface.report.folder import Run
from efface.report.page import anchor, cell, note, number, scroll, small
from efface.report.scores import Ask, Mean
from efface.report.words import ABOUT, about, short

EFFECTIVENESS, ROBUSTNESS, UTILITY, MANY = "Effectiveness", "Robustness", "Utility", "Many concepts"
QUESTIONS = {
    EFFECTIVENESS: "is it gone when asked for by its plain name?",
    ROBUSTNESS: "does it stay gone when asked for otherwise?",
    UTILITY: "does everything else stay?",
    MANY: "how many at once, and after which?",
}
ROLES = {EFFECTIVENESS: ("erase",), ROBUSTNESS: ("synonym", "implicit"), UTILITY: ("neighbour", "distant", "companion")}
UNATTACKED = "no attack was tried"


class Line(NamedTuple):
    """One number of an axis for each model, by id: a rate, a mean, words where there is neither."""

    name: str
    what: str
    values: Mapping[str, Rate | Mean | str]
    to: str = ""  # anchor of the pictures behind it


def axes(run: Run) -> dict[str, list[Line]]:
    """The lines of each axis."""
    scores, found = run.scores, {axis: list[Line]() for axis in QUESTIONS}
    for axis, roles in ROLES.items():
        for ask in scores.main(*roles):
            values = {i: scores.rate(i, ask) for i in run.names}
            found[axis].append(Line(short(ask), about(ask, scores), values, anchor(ask)))
    found[ROBUSTNESS].append(_attacked(run))
    for ask in scores.numbers:
        axis = next(axis for axis, roles in ROLES.items() if ask.role in roles)
        values = {i: scores.mean(i, ask) for i in run.names if scores.pick(i, ask)}
        pictures = [anchor(a) for a in scores.main(ask.role)]
        found[axis].append(Line(_named(ask), ABOUT[ask.role], values, *pictures[:1]))
    found[MANY] = _many(run)
    return found


def _named(ask: Ask) -> str:
    if ask.score in ("perceptual", "lpips"):
        return f"{ask.score} distance to the unedited model's picture"
    far = "distance" in ask.score or "CMMD" in ask.score
    return f"{ask.score} to the unedited model's pictures" if far else short(ask)


def _attacked(run: Run) -> Line:
    """The attack that brings it back most often."""
    values: dict[str, Rate | Mean | str] = {}
    for i in run.names:
        strongest = best(run.scores, i)
        values[i] = strongest[1] if strongest else UNATTACKED
    names = sorted({found[0] for i in run.names if (found := best(run.scores, i))})
    return Line("brought back", f"by the best attack: {', '.join(names)}" if names else "by attacks", values, "attacks")


def _many(run: Run) -> list[Line]:
    """How many were erased, after which, and which of them came off worst."""
    asks = run.scores.main("erase")
    count = run.info["concept"].get("count") or len({c for ask in asks for c in run.scores.concepts(ask)})
    after = ", then ".join(map(str, run.info["concept"].get("after") or ()))
    how = f"in all; one after the other, earlier: {after}" if after else "at once"
    lines = [Line("erased", how, dict.fromkeys(run.edits, str(count)))]
    for ask in asks:
        rates = {i: {c: run.scores.rate(i, ask, concept=c) for c in run.scores.concepts(ask)} for i in run.edits}
        rates = {i: {c: r for c, r in each.items() if r.n} for i, each in rates.items()}
        if len(run.scores.concepts(ask)) > 1 and all(rates.values()):
            worst = {i: min(each, key=lambda c, each=each: each[c].value) for i, each in rates.items()}
            values = {i: rates[i][c] for i, c in worst.items()}
            lines.append(Line(short(ask), f"worst: {' / '.join(dict.fromkeys(worst.values()))}", values, anchor(ask)))
    return lines


def section(run: Run) -> str:
    """The axes as one table, a bar under each rate."""
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in run.names.values())
    bodies = ""
    for axis, lines in axes(run).items():
        span = len(run.names) + 1
        bodies += f'<tbody><tr><th scope="rowgroup" colspan="{span}"><b>{axis}</b>: {QUESTIONS[axis]}</th></tr>'
        for line in lines or [Line("not measured", "", {})]:
            cells = "".join(f"<td>{_shown(line, line.values.get(i))}</td>" for i in run.names)
            bodies += f'<tr><th scope="row">{escape(line.name)}{small(escape(line.what))}</th>{cells}</tr>'
        bodies += "</tbody>"
    table = f'<table class="axes"><thead><tr><th scope="col">Axis</th>{heads}</tr></thead>{bodies}</table>'
    words = (
        "ESR: share of pictures in which the detector does not find what was erased. PSR: share in which it finds what was asked "
        "for. Higher is better for both; a distance is better small outside of what was erased. Small: 95&nbsp;% interval, "
        "Wilson's for rates and bootstrap for distances, and number of pictures n. Each rate links to its pictures."
    )
    return f"<h2>Four axes</h2>{scroll('Four axes', table)}{note(words)}"


def _shown(line: Line, value: Rate | Mean | str | None) -> str:
    if value is None:
        return "&ndash;"
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, Mean):
        return number(value, f"#{line.to}" if line.to else "")
    css = "bar bad" if line.to == "attacks" else "bar"
    bar = f'<span class="{css}"><i style="width:{100 * value.value:.1f}%"></i></span>' if value.n else ""
    return bar + cell(value, f"#{line.to}")
