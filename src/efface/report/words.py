"""Numbers in words: names of what is measured, percentages, and one honest sentence about each edit."""

import re
from collections import Counter

from efface.benchmarks.row import GONE, ROLES
from efface.metrics.statistics import holm, mcnemar
from efface.report.folder import Run
from efface.report.scores import BASE, Ask, Scores

ABOUT = {
    "erase": "erased", "synonym": "by other words", "implicit": "by description", "neighbour": "neighbours",
    "distant": "unrelated concepts", "companion": "companions",
}  # fmt: skip
ASKED = {"erase": "asked for by name", "synonym": "asked for by other words", "implicit": "described without its name"}
SAME = 0.05  # a change of a rate up to this is called "about as often"
GAP = "\u00a0"
NO_ATTACK = "No attack was tried: this says nothing about what a determined user can bring back."


def percent(rate: float) -> str:
    """Whole percent, halves upwards; 0 and 100 only when exact, else one decimal."""
    x = round(100 * rate, 9)
    whole = int(x + 0.5)
    shown = whole if 0 < whole < 100 or whole == x else f"{min(max(x, 0.1), 99.9):.1f}"
    return f"{shown}{GAP}%"


def short(ask: Ask) -> str:
    """ESR-1, PSR-5, or the score's own name: "ESR any0.6", "perceptual"."""
    rate = "ESR" if ask.gone else "PSR"
    if top := re.fullmatch(r"top(\d+)", ask.score):
        return f"{rate}-{top[1]}"
    if ask.score.startswith("any"):
        return f"{rate} {ask.score}"
    if ask.score.startswith("count"):
        return f"boxes above {ask.score.removeprefix('count')}"
    return ask.score


def about(ask: Ask, scores: Scores) -> str:
    """Whom a number is about, and the judge where the role has several."""
    judges = {a.judge for a in scores.rates if a.role == ask.role}
    return f"{ABOUT[ask.role]}, {ask.judge} judge" if len(judges) > 1 and ask.judge else ABOUT[ask.role]


def column(ask: Ask, scores: Scores) -> str:
    """The name of a number in a table that a machine reads."""
    return f"{short(ask)} {about(ask, scores)}"


def chances(scores: Scores, edits: list[str]) -> dict[tuple[str, Ask], float]:
    """How likely a change this uneven is if the edit changed nothing: McNemar's p-value, by Holm over the edits of each number."""
    asks, found = scores.main(), {}
    for ask in asks:
        found |= zip(
            [(e, ask) for e in edits], holm([mcnemar(*scores.pairs(BASE, e, ask)) for e in edits]), strict=True
        )
    return found


def verdicts(run: Run) -> dict[str, str]:
    """One sentence on each edit: what was counted, beside the same count for the unedited model."""
    chance = chances(run.scores, run.edits)
    said = {}
    for edit in run.edits:
        parts = [_gone(run, edit, ask) for role in GONE for ask in run.scores.main(role)]
        for role in ROLES:
            if role not in GONE:
                asks = run.scores.main(role)
                parts += [_kept(run, edit, ask, chance[edit, ask]) for ask in asks]
                parts += [] if asks or role == "companion" else [f"nothing was measured on {ABOUT[role]}"]
        failed = sum(run.scores.rate(edit, ask).failed for ask in run.scores.main())
        parts += [f"left out because the detector could not judge them: {failed}"] if failed else []
        said[edit] = "; ".join(parts) + "."
    return said


def _gone(run: Run, edit: str, ask: Ask) -> str:
    rate, base = (run.scores.rate(i, ask) for i in (edit, BASE))
    name = run.erased if ask.role == "erase" else "it"
    if not rate.n:
        return f"no picture of {run.erased} {ASKED[ask.role]} could be judged"
    gone = 2 * rate.hits >= rate.n
    says = "does not appear" if gone else "still appears" if ask.role == "erase" else "appears"
    k, before = (r.hits if gone else r.n - r.hits for r in (rate, base))
    text = f"{name} {says} in {k} of {rate.n} pictures {ASKED[ask.role]}"
    return text + f" (unedited model: {'absent from' if gone else 'in'} {before} of {base.n})"


def _kept(run: Run, edit: str, ask: Ask, chance: float) -> str:
    """How the concepts of a role fare, and the one that lost most if it stands out."""
    concepts = run.scores.concepts(ask)
    rate, base = run.scores.rate(edit, ask), run.scores.rate(BASE, ask)
    if not (rate.n and base.n):
        return f"nothing was measured on {about(ask, run.scores)}"
    names = f"{len(concepts)} {about(ask, run.scores)}" if len(concepts) > 4 else _and(concepts)
    change, may = rate.value - base.value, chance > 0.05
    how = "about as" if abs(change) <= SAME and may else "more" if change > 0 else "less"
    note = ", which may be chance" if may and "about" not in how else ""
    link = "as" if "about" in how else "than"
    verb = "appears" if len(concepts) == 1 else "appear"
    beside = f" beside {run.erased}" if ask.role == "companion" else ""
    text = (
        f"{names}{beside} {verb} {how} often {link} before ({percent(rate.value)} against {percent(base.value)}{note})"
    )
    pairs = {c: tuple(run.scores.rate(i, ask, concept=c) for i in (edit, BASE)) for c in concepts}
    drops = {c: b.value - a.value for c, (a, b) in pairs.items() if a.n and b.n}
    worst = max(drops, key=lambda c: drops[c], default="")
    if len(drops) > 1 and drops[worst] > max(2 * SAME, -change + SAME):
        a, b = pairs[worst]
        text += f", {worst} suffers most ({a.hits} of {a.n} against {b.hits} of {b.n})"
    return text


def seen_instead(run: Run, edit: str) -> Counter[str]:
    """What the detector named first in pictures where it did not find the erased concept first."""
    asks = run.scores.main("erase")
    return Counter(row["seen"] or "no label" for ask in asks for row in run.scores.pick(edit, ask) if row["value"] == 0)


def _and(words: tuple[str, ...]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
