"""What happened, in sentences: one for each edit, from counts beside the unedited model's."""

from collections import Counter

from efface.benchmarks.spec import GONE, ROLES
from efface.metrics.statistics import holm, mcnemar
from efface.report.folder import Run
from efface.report.names import ROLE_NAMES, percent, role_name
from efface.report.scores import BASE, Column, Scores

REQUESTS = {
    "erase": "asked for by name",
    "synonym": "asked for by other words",
    "implicit": "described without its name",
}
SAME = 0.05  # a change of a rate up to this is called "about as often"


def p_values(scores: Scores, edits: list[str]) -> dict[tuple[str, Column], float]:
    """How likely a change this uneven is if the edit changed nothing: McNemar's p-value, by Holm over the edits of each number."""
    columns, found = scores.main(), {}
    for column in columns:
        found |= zip(
            [(e, column) for e in edits], holm([mcnemar(*scores.pairs(BASE, e, column)) for e in edits]), strict=True
        )
    return found


def verdicts(run: Run) -> dict[str, str]:
    """One sentence on each edit: what was counted, beside the same count for the unedited model."""
    p_holm = p_values(run.scores, run.edits)
    said = {}
    for edit in run.edits:
        parts = [_gone(run, edit, column) for role in GONE for column in run.scores.main(role)]
        for role in ROLES:
            if role not in GONE:
                columns = run.scores.main(role)
                parts += [_kept(run, edit, column, p_holm[edit, column]) for column in columns]
                parts += [] if columns or role == "companion" else [f"nothing was measured on {ROLE_NAMES[role]}"]
        failed = sum(run.scores.rate(edit, column).failed for column in run.scores.main())
        parts += [f"left out because the detector could not judge them: {failed}"] if failed else []
        said[edit] = "; ".join(parts) + "."
    return said


def _gone(run: Run, edit: str, column: Column) -> str:
    rate, base = (run.scores.rate(i, column) for i in (edit, BASE))
    name = run.erased if column.role == "erase" else "it"
    if not rate.n:
        return f"no picture of {run.erased} {REQUESTS[column.role]} could be judged"
    gone = 2 * rate.hits >= rate.n
    says = "does not appear" if gone else "still appears" if column.role == "erase" else "appears"
    k, before = (r.hits if gone else r.n - r.hits for r in (rate, base))
    text = f"{name} {says} in {k} of {rate.n} pictures {REQUESTS[column.role]}"
    return text + f" (unedited model: {'absent from' if gone else 'in'} {before} of {base.n})"


def _kept(run: Run, edit: str, column: Column, p_value: float) -> str:
    """How the concepts of a role fare, and the one that lost most if it stands out."""
    concepts = run.scores.concepts(column)
    rate, base = run.scores.rate(edit, column), run.scores.rate(BASE, column)
    if not (rate.n and base.n):
        return f"nothing was measured on {role_name(column, run.scores)}"
    names = f"{len(concepts)} {role_name(column, run.scores)}" if len(concepts) > 4 else _and(concepts)
    change, may = rate.value - base.value, p_value > 0.05
    how = "about as" if abs(change) <= SAME and may else "more" if change > 0 else "less"
    note = ", which may be chance" if may and "about" not in how else ""
    link = "as" if "about" in how else "than"
    verb = "appears" if len(concepts) == 1 else "appear"
    beside = f" beside {run.erased}" if column.role == "companion" else ""
    text = (
        f"{names}{beside} {verb} {how} often {link} before ({percent(rate.value)} against {percent(base.value)}{note})"
    )
    pairs = {c: tuple(run.scores.rate(i, column, concept=c) for i in (edit, BASE)) for c in concepts}
    drops = {c: b.value - a.value for c, (a, b) in pairs.items() if a.n and b.n}
    worst = max(drops, key=lambda c: drops[c], default="")
    if len(drops) > 1 and drops[worst] > max(2 * SAME, -change + SAME):
        a, b = pairs[worst]
        text += f", {worst} suffers most ({a.hits} of {a.n} against {b.hits} of {b.n})"
    return text


def seen_instead(run: Run, edit: str) -> Counter[str]:
    """What the detector named first in pictures where it did not find the erased concept first."""
    columns = run.scores.main("erase")
    return Counter(
        row["seen"] or "no label" for column in columns for row in run.scores.rows(edit, column) if row["value"] == 0
    )


def _and(names: tuple[str, ...]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
