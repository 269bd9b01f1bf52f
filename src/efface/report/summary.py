"""Sentences about each edit: one plain summary, and details with counts and tests."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from efface.benchmarks.row import GONE, ROLES
from efface.metrics.statistics import holm, mcnemar
from efface.report.attacks import strongest
from efface.report.folder import Run
from efface.report.names import ROLE_NAMES, percent, role_name
from efface.report.scores import BASE, Column, Scores

REQUESTS = {
    "erase": "asked for by name",
    "synonym": "asked for by other words",
    "implicit": "described without its name",
}
PROMPTS = {"erase": "name it", "synonym": "call it otherwise", "implicit": "describe it"}
SAME = 0.05  # a change of a rate up to this is called "about as often"
MOST = 3  # concepts or labels that a sentence names
GROUPS = {
    "told": "kept by request",
    "untold": "nobody named",
}  # neighbours that the method was, or was not, asked to keep


def p_values(scores: Scores, edits: list[str], **where: object) -> dict[tuple[str, Column], float]:
    """McNemar's p-values of each edit's change, with Holm's correction over the edits of each number."""
    found: dict[tuple[str, Column], float] = {}
    for column in scores.main():
        plain = [mcnemar(*scores.pairs(BASE, e, column, **where)) for e in edits]
        found |= zip([(e, column) for e in edits], holm(plain), strict=True)
    return found


def sentences(run: Run) -> dict[str, str]:
    """One plain sentence for each edit: what was erased, how often it still appears, what replaced it, side effects, and attacks."""
    return {edit: _sentence(run, edit) for edit in run.edits}


def _sentence(run: Run, edit: str) -> str:
    parts = [*_still(run, edit), *_became(run, edit), *_hurt(run, edit), _attacked(run, edit)]
    return f"{run.names[edit]} was to {aim(run, edit)}: {'; '.join(parts)}."


def aim(run: Run, edit: str = "") -> str:
    """The edit's task: "turn tiger into cat", "erase tiger"; from the edit's own concepts if run.json has them."""
    own = next((e.get("erase") for e in run.info["edits"] if e["id"] == edit), None)
    given = [(c["name"], c.get("target") or "") for c in own or [run.info["concept"]]]
    targets = {target for _, target in given}
    if targets == {""}:
        return f"erase {_and([name for name, _ in given])}"
    if len(targets) == 1:
        return f"turn {_and([name for name, _ in given])} into {targets.pop()}"
    return _and([f"turn {name} into {target}" if target else f"erase {name}" for name, target in given])


def _still(run: Run, edit: str) -> list[str]:
    """The number of pictures in which the erased concept still appears, by kind of prompt."""
    counted: list[str] = []
    other: list[str] = []
    for column in run.scores.main(*GONE):
        rate = run.scores.rate(edit, column)
        that = f"that {PROMPTS[column.role]}{_judge(run, column)}"
        drawn = run.scores.drawn(column)
        if drawn.n and not drawn.hits:
            other.append(
                f"the unedited model draws it in none of the {drawn.n} pictures {that}: nothing can be said of them"
            )
        elif not rate.n:
            other.append(f"none of the pictures {that} could be judged")
        else:
            shown = f"in {rate.n - rate.hits or 'none'} of {rate.n}{'' if counted else ' pictures'}"
            before = f"({drawn.hits} of {drawn.n} before)"
            counted.append(f"{shown} {that} {before}")
            same, flipped = run.scores.unchanged(edit, column)
            if same:
                error = (
                    f", though the detector calls {flipped} of them otherwise, which is its error" if flipped else ""
                )
                other.append(
                    f"{same} of these pictures {_are(same)} as before and count{'s' * (same == 1)} as not erased{error}"
                )
    name = "what was erased" if run.info["concept"].get("count", 1) > 1 else run.erased
    return [*([f"{name} still appears {_all(counted)}"] if counted else []), *other]


def _became(run: Run, edit: str) -> list[str]:
    """The detector's labels for pictures in which the erased concept does not appear, and their quality."""
    seen = seen_instead(run, edit)
    if not seen:
        return []
    (label, most), total = seen.most_common(1)[0], seen.total()
    if 2 * most > total:
        text = f"the detector {'' if most == total else 'mostly '}sees {label} instead"
    else:
        text = f"the detector sees {_and([one for one, _ in seen.most_common(MOST)])} instead"
    for column in run.scores.numbers:
        if column.role == "erase" and is_quality(column):
            after, before = run.scores.mean(edit, column), run.scores.mean(BASE, column)
            if after.n and before.n:
                text += f" (quality of these pictures {after.value:.2f}, {before.value:.2f} before; 0 is a mush, 1 a clear picture)"
    return [text]


def _are(n: int) -> str:
    return "is" if n == 1 else "are"


def is_quality(column: Column) -> bool:
    """Whether a score measures if pictures show any object at all, from 0 to 1."""
    return column.score.startswith("quality")


def _hurt(run: Run, edit: str) -> list[str]:
    """Roles that appear less often, with the concept that lost most; unchanged roles; roles that were not measured."""
    parts: list[str] = []
    as_before: list[str] = []
    for column in (c for c in run.scores.main() if not c.gone):
        for group, label in groups(run.scores, column).items():
            where = {"group": group} if group else {}
            rate, base = (run.scores.rate(i, column, **where) for i in (edit, BASE))
            name = f"{_kept_name(run, column)}{label}"
            if not (rate.n and base.n):
                parts.append(f"{name}: none could be judged")
            elif base.value - rate.value <= SAME:
                as_before.append(name)
            else:
                chance = p_values(run.scores, run.edits, **where)[edit, column] > 0.05
                verb = "suffers" if column.role == "companion" else "suffer"
                text = f"{name} {verb} (seen in {rate.hits} of {rate.n} pictures, {base.hits} of {base.n} before"
                text += ", which may be chance)" if chance else ")"
                parts.append(text + _worst(run, edit, column, **where))
    if as_before:
        parts.append(f"as before: {_all(as_before)}")
    missing = [ROLE_NAMES[role] for role in ("neighbour", "distant") if not run.scores.main(role)]
    return [*parts, f"no {' or '.join(missing)} were judged"] if missing else parts


def groups(scores: Scores, column: Column) -> dict[str, str]:
    """Groups of a column's pictures that are counted separately, with their description; {"": ""} if there are none."""
    there = {row["group"] for row in scores.rows(BASE, column) if row.get("group") in GROUPS}
    return {g: f" ({label})" for g, label in GROUPS.items() if g in there} or {"": ""}


def _kept_name(run: Run, column: Column) -> str:
    name = f"what was asked for beside {run.erased}" if column.role == "companion" else ROLE_NAMES[column.role]
    return name + _judge(run, column)


def _judge(run: Run, column: Column) -> str:
    """The judge's name if its role has several."""
    return f", {column.judge} judge" if role_name(column, run.scores) != ROLE_NAMES[column.role] else ""


def _worst(run: Run, edit: str, column: Column, **where: Any) -> str:
    """The concept that lost most, if there are several."""
    concepts = [c for c in run.scores.concepts(column) if run.scores.rate(edit, column, concept=c, **where).n]
    if len(concepts) < 2:
        return ""
    rates = {c: tuple(run.scores.rate(i, column, concept=c, **where) for i in (edit, BASE)) for c in concepts}
    lost = {c: b.value - a.value for c, (a, b) in rates.items() if b.n}
    worst = max(lost, key=lambda c: lost[c])
    return f", most of all {worst}"


def _attacked(run: Run, edit: str) -> str:
    attack = strongest(run.scores, edit)
    if not attack:
        return "no attack was tried"
    name, rate = attack
    return f"the strongest attack that was tried ({name}) brings it back in {rate.hits} of {rate.n} pictures"


def details(run: Run) -> dict[str, str]:
    """For each edit every rate with the unedited model's, and the changes that are not significant."""
    p_holm = p_values(run.scores, run.edits)
    texts = {}
    for edit in run.edits:
        parts = [_gone(run, edit, column) for role in GONE for column in run.scores.main(role)]
        for role in ROLES:
            if role not in GONE:
                columns = run.scores.main(role)
                parts += [_kept(run, edit, column, p_holm[edit, column]) for column in columns]
                parts += [] if columns or role == "companion" else [f"nothing was measured on {ROLE_NAMES[role]}"]
        failed = sum(run.scores.rate(edit, column).failed for column in run.scores.main())
        parts += [f"left out because the detector could not judge them: {failed}"] if failed else []
        texts[edit] = "; ".join(parts) + "."
    return texts


def _gone(run: Run, edit: str, column: Column) -> str:
    rate, base = (run.scores.rate(i, column) for i in (edit, BASE))
    name = run.erased if column.role == "erase" else "it"
    if not rate.n:
        return f"no picture of {run.erased} {REQUESTS[column.role]} could be judged"
    gone, several = 2 * rate.hits >= rate.n, column.role == "erase" and run.info["concept"].get("count", 1) > 1
    says = "do not appear" if several else "does not appear"
    if not gone:
        says = f"{'still ' * (column.role == 'erase')}{'appear' if several else 'appears'}"
    k, before = (r.hits if gone else r.n - r.hits for r in (rate, base))
    text = f"{name} {says} in {k} of {rate.n} pictures {REQUESTS[column.role]}"
    return text + f" (unedited model: {'absent from' if gone else 'in'} {before} of {base.n})"


def _kept(run: Run, edit: str, column: Column, p_holm: float) -> str:
    """The rates of a role's concepts, and the one that lost most if it stands out."""
    concepts = run.scores.concepts(column)
    rate, base = run.scores.rate(edit, column), run.scores.rate(BASE, column)
    if not (rate.n and base.n):
        return f"nothing was measured on {role_name(column, run.scores)}"
    names = f"{len(concepts)} {role_name(column, run.scores)}" if len(concepts) > 4 else _all(concepts)
    change, may = rate.value - base.value, p_holm > 0.05
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
    """The detector's first label for pictures in which the erased concept was not its first guess."""
    columns = run.scores.main("erase")
    return Counter(
        row["seen"] or "no label" for column in columns for row in run.scores.rows(edit, column) if row["value"] == 0
    )


def _all(names: Sequence[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _and(names: Sequence[str]) -> str:
    """The names as a list in words; for many names the first few and the number of others."""
    return _all(names if len(names) <= MOST + 1 else [*names[:MOST], f"{len(names) - MOST} more"])
