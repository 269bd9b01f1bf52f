"""Names of roles and scores as a reader sees them, and percentages."""

import re

from efface.report.scores import Column, Scores

ROLE_NAMES = {
    "erase": "erased", "synonym": "by other words", "implicit": "by description", "neighbour": "neighbours",
    "distant": "unrelated concepts", "companion": "companions",
}  # fmt: skip
GAP = "\u00a0"
NO_ATTACK = "No attack was tried: this says nothing about what a determined user can bring back."


def percent(rate: float) -> str:
    """Whole percent, halves upwards; 0 and 100 only when exact, else one decimal."""
    x = round(100 * rate, 9)
    whole = int(x + 0.5)
    shown = whole if 0 < whole < 100 or whole == x else f"{min(max(x, 0.1), 99.9):.1f}"
    return f"{shown}{GAP}%"


def score_name(column: Column) -> str:
    """ESR-1, PSR-5, or the score's own name: "ESR any0.6", "perceptual"."""
    rate = "ESR" if column.gone else "PSR"
    if top := re.fullmatch(r"top(\d+)", column.score):
        return f"{rate}-{top[1]}"
    if column.score.startswith("any"):
        return f"{rate} {column.score}"
    if column.score.startswith("count"):
        return f"boxes above {column.score.removeprefix('count')}"
    return column.score


def role_name(column: Column, scores: Scores) -> str:
    """Whom a number is about, and the judge where the role has several."""
    judges = {a.judge for a in scores.rates if a.role == column.role}
    return (
        f"{ROLE_NAMES[column.role]}, {column.judge} judge"
        if len(judges) > 1 and column.judge
        else ROLE_NAMES[column.role]
    )


def column_title(column: Column, scores: Scores) -> str:
    """The name of a number in a table that a machine reads."""
    return f"{score_name(column)} {role_name(column, scores)}"
