"""Moji's vocabulary: what it draws, what is a close neighbour of what, and what to ask when a concept was erased."""

import json
import random
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from efface.core.concept import Kind, article
from efface.core.errors import UsageError, nearest
from efface.models import HERE

Role = Literal["erase", "neighbour", "distant"]


@dataclass(frozen=True)
class Cell:
    """One picture to make and judge: the prompt, its seed, and the label that the detector should find."""

    role: Role
    concept: str
    prompt: str
    seed: int


@cache
def vocabulary() -> dict[str, Any]:
    """Concepts with kind, group, neighbours, synonyms and implicit prompts; styles; backgrounds."""
    return json.loads((HERE / "moji" / "concepts.json").read_text())


def concepts() -> dict[str, dict[str, Any]]:
    """Every concept by name."""
    return {c["name"]: c for c in vocabulary()["concepts"]}


def styles() -> list[str]:
    """Every style by name."""
    return [s["name"] for s in vocabulary()["styles"]]


def members(name: str) -> list[str]:
    """A group ("alcohol") as its concepts, a concept or style as itself.

    Raises:
        UsageError: none of them.
    """
    groups: dict[str, list[str]] = {}
    for c in concepts().values():
        groups.setdefault(c["group"], []).append(c["name"])
    key = name.lower().strip()
    if key in concepts() or key in styles():
        return [key]
    if key in groups:
        return groups[key]
    raise UsageError(f"concept: Moji does not know {name!r}; {nearest(key, [*concepts(), *groups, *styles()])}")


def kind(name: str) -> Kind:
    """Kind of a concept, a group or a style."""
    first = members(name)[0]
    return "style" if first in styles() else concepts()[first]["kind"]


def prompt(concept: str, style: str = "") -> str:
    """The plain prompt: "a tiger in noto style"."""
    return f"{article(concept)} in {style} style" if style else article(concept)


def neighbours(erased: list[str], n: int) -> list[str]:
    """Concepts of the same groups; where none is left, of the same kind."""
    if erased[0] in styles():
        return [s for s in styles() if s not in erased][:n]
    known = concepts()
    near = [m for e in erased for m in known[e]["neighbours"] if m not in erased]
    near = near or [
        c["name"] for c in known.values() if c["kind"] == known[erased[0]]["kind"] and c["name"] not in erased
    ]
    return _spread(list(dict.fromkeys(near)), n, "near" + erased[0])


def distant(erased: list[str], n: int) -> list[str]:
    """Objects of other groups, the same ones for the same erased concepts."""
    groups = {concepts()[e]["group"] for e in erased if e in concepts()}
    far = [c["name"] for c in concepts().values() if c["group"] not in groups and c["kind"] == "object"]
    return _spread(far, n, "far" + erased[0])


def plan(erased: list[str], *, pictures: int, others: int, near: int, far: int) -> list[Cell]:
    """What to ask once `erased` are gone: `pictures` of each of them, `others` of each of `near` neighbours and `far` distant ones.

    Styles and seeds take turns. When styles were erased, every picture is an object in a style and the style is judged; distant
    concepts are then objects without the erased style, judged as objects.
    """
    cells: list[Cell] = []
    asked: list[tuple[Role, list[str], int]] = [
        ("erase", erased, pictures),
        ("neighbour", neighbours(erased, near), others),
        ("distant", distant(erased, far), others),
    ]
    for role, names, count in asked:
        for name in names:
            for i in range(count):
                seed = 1000 * len({c.concept for c in cells if c.concept != name}) + i
                if name in styles():
                    drawn = [
                        c for c, entry in concepts().items() if name in entry["styles"] and entry["kind"] == "object"
                    ]
                    cells.append(Cell(role, name, prompt(drawn[(7 * seed) % len(drawn)], name), seed))
                else:
                    usable = [s for s in concepts()[name]["styles"] if s not in erased]
                    cells.append(Cell(role, name, prompt(name, usable[i % len(usable)]), seed))
    return cells


def _spread(names: list[str], n: int, key: str) -> list[str]:
    return names if len(names) <= n else random.Random(key).sample(names, n)
