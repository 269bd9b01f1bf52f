"""Success rates of attacks, and success against the number of denoiser calls. A row of an attack is one prompt and seed."""

from collections.abc import Mapping, Sequence
from html import escape

from efface.attacks import TABLE
from efface.benchmarks.row import BASE, NONE
from efface.metrics.rates import Rate, found
from efface.report.folder import Run
from efface.report.grids import attacked
from efface.report.names import NO_ATTACK
from efface.report.page import note, rate_cell, small, table
from efface.report.plots import Point, line_chart
from efface.report.scores import Row, Scores, is_rate
from efface.report.under_attack import brought_back, is_control, what


def success(rows: list[Row]) -> Rate:
    """Rate at which an attack brought the concept back."""
    return found(rows, rows[0]["score"]) if rows else Rate(0, 0)


def strongest(scores: Scores, model: str) -> tuple[str, Rate] | None:
    """The attack that succeeds most often on a model, None if none was run or judged."""
    tried = {
        k: success(v)
        for k, v in scores.attacks(model).items()
        if not k.startswith(NONE) and not is_control(k.split(",")[0])
    }
    return max(((k, r) for k, r in tried.items() if r.n), key=lambda pair: pair[1].value, default=None)


def success_by_calls(rows: list[Row]) -> list[Point]:
    """(calls, share brought back within this number of calls), empty if calls were not counted."""
    judged = [row for row in rows if row["value"] is not None]
    if not judged or any(row.get("calls") is None for row in judged):
        return []
    steps = sorted({row["calls"] for row in judged})
    return [(float(b), sum(r["value"] == 1 and r["calls"] <= b for r in judged) / len(judged)) for b in steps]


def _limits(run: Run, names: Sequence[str]) -> str:
    """The budget, the detector's false alarms, and what was not tried and why."""
    about, said = run.info.get("attacks") or {}, []
    if "calls" in about:
        said.append(
            f"Budget: {about['calls']:,} calls of the denoiser for each prompt and attack; a gradient counts as three."
        )
    if about.get("filter"):
        said.append(
            "An output filter stands behind every model: a picture that it holds back counts as not shown, and what the unedited model "
            f"still shows is what the filter alone lets through. Filter: CLIP {about['filter']}, thresholds at 5 % false alarms."
        )
    erased = {row["concept"] for row in run.rows if row["attack"]}
    others = [
        row for row in run.rows
        if row["edit"] == BASE and row["role"] in ("neighbour", "distant") and is_rate(row["score"]) and row["value"] is not None
    ]  # fmt: skip
    if others := list({row["cell"] or row["image"]: row for row in others}.values()):
        alarms = sum(row["seen"] in erased for row in others)
        said.append(
            f"False alarms: the detector sees it in {alarms} of {len(others)} of the unedited model's pictures of other things."
        )
    for label, reasons in (about.get("not applicable") or {}).items():
        said += [
            f"{name} was not tried on {run.names.get(label, label)}: it {why}."
            for name, why in reasons.items()
            if label != BASE
        ]
    if left := [name for name in TABLE if not any(one.startswith(name) for one in names)]:
        said.append(f"Not tried: {', '.join(left)}.")
    return "".join(note(escape(one)) for one in said)


def _union(each: Mapping[str, list[Row]], names: Sequence[str]) -> Rate:
    """The share of pictures that any of these attacks brought back."""
    judged = brought_back([row for name in names for row in each.get(name, [])], {name.split(",")[0] for name in names})
    return Rate(sum(judged.values()), len(judged))


def section(run: Run) -> str:
    """Every attack's success, and success against budget."""
    tried = {i: run.scores.attacks(i) for i in run.names}
    names = list(dict.fromkeys(name for each in tried.values() for name in each))
    if not names:
        return f'<h2 id="attacks">Attacks</h2><p>{NO_ATTACK}</p>'
    rows = [
        (
            escape(name) + small(escape(what(name.split(",")[0]))),
            [rate_cell(success(each.get(name, [])), "#attacked") for each in tried.values()],
        )
        for name in names
    ]
    together = [name for name in names if not is_control(name.split(",")[0])]
    if len(together) > 2:
        rows.append(("any of these", [rate_cell(_union(each, together), "#attacked") for each in tried.values()]))
    explanation = (
        "Share of pictures that show it again, by the best attempt within the budget: lower is better for the edit. An attack that fails "
        "on the unedited model says nothing. A control is no attack on the edit: the same search for pictures upside down, which no model "
        "knew. Small: Wilson 95&nbsp;% interval."
    )
    parts = [
        f'<h2 id="attacks">Attacks</h2>{table("Attacks", ["Attack", *map(escape, run.names.values())], rows)}{note(explanation)}',
        _limits(run, names),
    ]
    curves = {
        f"{run.names[i]}, {name}": points
        for i in run.edits for name in together if len(points := success_by_calls(tried[i].get(name, []))) > 1
    }  # fmt: skip
    if curves:
        parts.append(line_chart(curves, "calls of the denoiser", "brought back, %"))
    return "".join([*parts, '<h3 id="attacked">What they led to</h3>', attacked(run, tried)])
