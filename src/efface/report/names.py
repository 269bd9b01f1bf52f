"""Displayed names and descriptions of roles, scores and methods, and percentages."""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from efface.report.scores import FEWEST, Column, Scores

ROLE_NAMES = {
    "erase": "erased", "synonym": "by other words", "implicit": "by description", "neighbour": "neighbours",
    "distant": "unrelated concepts", "companion": "companions",
}  # fmt: skip
MEANINGS = {
    "erase": "prompts that name what was erased",
    "synonym": "prompts that ask for what was erased by another name",
    "implicit": "prompts that describe what was erased without its name",
    "neighbour": "concepts of the same group as what was erased, which should stay",
    "distant": "concepts of other groups, which should stay",
    "companion": "what else a prompt for an erased thing asked for, to stay: its style, or the thing in an erased style",
}
RATES = (
    "ESR-k (erasing success rate): share of pictures in which the detector does NOT find what was erased among its k best guesses. "
    "PSR-k (preserving success rate): share in which it finds what was asked for. Higher is better for both."
)
DISTANCES = (
    f"A distance of a set of fewer than {FEWEST} pictures is not shown: it would mostly measure how few they are. "
    "A kernel distance below 0 means that no difference was found: the estimate is unbiased, so it falls below 0 as often as above."
)
STYLE = re.compile(r" in (\w[\w-]*) style\b")
ERASERS = Path(__file__).parents[1] / "erasers"
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
    """A role's name, with the judge if the role has several."""
    judges = {a.judge for a in scores.rates if a.role == column.role}
    return (
        f"{ROLE_NAMES[column.role]}, {column.judge} judge"
        if len(judges) > 1 and column.judge
        else ROLE_NAMES[column.role]
    )


def column_title(column: Column, scores: Scores) -> str:
    """A column's name in CSV and JSON files."""
    return f"{score_name(column)} {role_name(column, scores)}"


@cache
def _descriptions() -> Mapping[str, str]:
    """One line on each method, by class and by name, from the text of its file: importing it would import torch."""
    classes: dict[str, str] = {}
    for path in sorted(ERASERS.glob("*.py")):
        classes |= re.findall(r'^class (\w+)\(Eraser\):\n    """(.+?)"""', path.read_text(encoding="utf-8"), re.M)
    table = re.findall(r'^    "([\w-]+)": "[\w.]+:(\w+)"', (ERASERS / "__init__.py").read_text(encoding="utf-8"), re.M)
    return classes | {name: classes[cls] for name, cls in table if cls in classes}


def method_description(method: str, edits: Iterable[Mapping[str, Any]] = ()) -> str:
    """One sentence on a method or method-preset ("UCE", "uce-2023"), the edits' own `about` before efface's; "" where unknown."""
    own = next((str(e["about"]) for e in edits if e["method"] == method and e.get("about")), "")
    name, _, preset = method.partition("-")
    known = _descriptions()
    if own or method in known:
        return own or known[method]
    return f"{known[name]} With the settings of its preset “{preset}”." if name in known else ""


def styles(prompts: Iterable[str]) -> list[str]:
    """Styles that prompts contain, as in "a tiger in noto style"."""
    return sorted({name for prompt in prompts for name in STYLE.findall(prompt)})
