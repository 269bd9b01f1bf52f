"""Moji's own benchmark: what it draws, what is a close neighbour of what, and what to ask when something was erased.

Four axes: effectiveness (by its plain name), robustness (by its synonyms, and described without its name), utility (neighbours, distant
concepts, and what else an erasing prompt asked for), many concepts (5, 25 or 100 at once; one after the other). Each concept is asked for
by the same prompts and seeds whatever was erased, so that the unedited model draws them once. Half of the neighbours are what methods are
told to keep (group "told"), the others nobody names to them ("untold"): a method that keeps only what it is told shows there.
"""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, cast

from efface.benchmarks.row import Role
from efface.benchmarks.spec import Benchmark, Cell, Judge, Sampler, Task
from efface.core.concept import Concept, Kind, apart, article
from efface.core.errors import UsageError, nearest
from efface.core.lists import Entry
from efface.models import HERE

SIZES = {  # pictures of what is erased, of it by other words, of each other concept, and how many others are asked for
    "smoke": {"pictures": 4, "said": 2, "others": 2, "near": 2, "far": 2},
    "demo": {"pictures": 12, "said": 6, "others": 3, "near": 3, "far": 3},
    "quick": {"pictures": 12, "said": 6, "others": 3, "near": 4, "far": 5},
    "full": {"pictures": 48, "said": 24, "others": 6, "near": 8, "far": 12},
}
TASKS = {
    "smoke": ("tiger",),
    "demo": ("tiger",),
    "quick": ("tiger", "rose", "noto", "santa", "alcohol", "tiger+noto", "many-5", "many-25", "sequence"),
    "full": (
        "tiger", "rose", "bus", "guitar", "banana", "noto", "blob", "santa", "robot", "alcohol", "tiger+noto", "rose+blob",
        "many-5", "many-25", "many-100", "sequence",
    ),
}  # fmt: skip
SEQUENCE = ("tiger", "rose", "bus", "santa")  # erased one after the other
MANY = (5, 25, 100)
WAYS = ("{} in the style of {}", "{} drawn by {}")  # to ask for a style without saying "in … style"


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


def neighbours(erased: Sequence[str], n: int) -> list[str]:
    """Concepts of the same groups; where none is left, of the same kind."""
    if erased[0] in styles():
        return [s for s in styles() if s not in erased][:n]
    known = concepts()
    near = [m for e in erased for m in known[e]["neighbours"] if m not in erased]
    near = near or [
        c["name"] for c in known.values() if c["kind"] == known[erased[0]]["kind"] and c["name"] not in erased
    ]
    return _spread(list(dict.fromkeys(near)), n, "near" + erased[0])


def told_and_untold(erased: Sequence[str], besides: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Neighbours in two halves: those that methods are told to keep, and those that nobody names to them.

    `besides` are in neither, such as what the erased is to become.
    """
    near = [n for n in neighbours(erased, len(concepts())) if n not in besides]
    mixed = random.Random("told" + erased[0]).sample(near, len(near))
    half = -(-len(mixed) // 2)
    return mixed[:half], mixed[half:]


def distant(erased: Sequence[str], n: int) -> list[str]:
    """Objects of other groups, the same ones for the same erased concepts."""
    groups = {concepts()[e]["group"] for e in erased if e in concepts()}
    far = [c["name"] for c in concepts().values() if c["group"] not in groups and c["kind"] == "object"]
    return _spread(far, n, "far" + erased[0])


def benchmark(names: Sequence[str | Entry] = (), size: str = "quick") -> Benchmark:
    """Moji's benchmark over these tasks: concepts, groups, styles, combinations ("tiger+noto"), "many-25", "sequence".

    An entry of a table may give a concept a target, a kind, other words, and what to preserve besides the benchmark's neighbours.

    Raises:
        UsageError: unknown size or name, a name given twice, or an entry that gives more than a name to several concepts at once.
    """
    if size not in SIZES:
        raise UsageError(f"size: unknown {size!r}; {nearest(size, SIZES)}")
    given = [Entry(one) if isinstance(one, str) else one for one in names or TASKS[size]]
    called = [entry.name.lower().strip() for entry in given]
    if twice := next((name for i, name in enumerate(called) if name in called[:i]), None):
        raise UsageError(f"concept: {twice!r} is given twice; give it once")
    made = [_as_given(task, entry) for entry in given for task in tasks(entry.name, **SIZES[size])]
    return Benchmark(
        name="moji",
        about=f"Moji, {size}: effectiveness, robustness to other words, utility, many concepts",
        source="efface's own",
        tasks=lambda files: made,
        judges={"concept": Judge("moji-concept"), "style": Judge("moji-style"), "pair": Judge("moji-pair")},
        sampler=Sampler(),
        model="moji",
        measures=("perceptual", "quality", "kernel:moji-concept", "frechet:moji-concept"),
    )


def tasks(name: str, *, pictures: int, said: int, others: int, near: int, far: int) -> list[Task]:
    """The tasks that a name stands for: one, or a step each of "sequence".

    Raises:
        UsageError: Moji does not know it.
    """
    if name == "sequence":
        return [_step(i, max(4, pictures // 2), others, far) for i in range(1, len(SEQUENCE) + 1)]
    if name.startswith("many-"):
        return [_many(name, pictures, others, far)]
    if "+" in name:
        return [_combination(name, pictures, others, far)]
    erased = members(name)
    style = erased[0] in styles()
    cells = _asked("erase", erased, pictures, erased)
    if style:
        things = [_things(erased[0], i) for i in range(said)]
        cells += [
            Cell("synonym", erased[0], way.format(article(thing), erased[0]), _seed(thing) + 500 + i, "style")
            for i, (thing, way) in enumerate(zip(things, WAYS * said, strict=False))
        ]
        cells += [Cell("companion", _thing(c.prompt), c.prompt, c.seed) for c in cells if c.role == "erase"]
    else:
        cells += _otherwise(erased, said)
        cells += [Cell("companion", _style(c.prompt), c.prompt, c.seed, "style") for c in cells if c.role == "erase"]
    to = next(s for s in styles() if s not in erased) if style else ""  # asked for no style, Moji draws any of its six
    told, untold = told_and_untold(erased, [to])
    cells += _near(told, untold, near, others, erased)
    cells += _asked("distant", distant(erased, far), others, erased)
    concepts_ = tuple(Concept(e, to, kind=kind(e)) for e in erased)
    return [Task(name, concepts_, _concepts(told[:8]), tuple(cells))]


def _as_given(task: Task, entry: Entry) -> Task:
    """The task with what an entry says of its concept."""
    if entry == Entry(entry.name):
        return task
    if len(task.erase) > 1 or task.after:
        raise UsageError(
            f"concept: expected the name alone for {entry.name!r}, which stands for several concepts; list them one by one"
        )
    c = next(iter(task.erase))
    erased = replace(
        c,
        target=c.target if entry.target is None else entry.target,
        kind=cast(Kind, entry.kind or c.kind),
        prompts=entry.prompts,
    )
    kept = [*task.preserve, *_concepts(m for name in entry.preserve for m in members(name))]
    apart([erased], kept, f"concept {entry.name!r}")
    return replace(task, erase=(erased,), preserve=tuple({k.name: k for k in kept}.values()))


def _combination(name: str, pictures: int, others: int, far: int) -> Task:
    """One thing in one style: the thing in other styles and other things in the style shall stay."""
    thing, _, style = name.partition("+")
    if thing not in concepts() or style not in styles():
        raise UsageError(
            f"concept: expected THING+STYLE of Moji's, such as 'tiger+noto', got {name!r}; give such a pair"
        )
    same_thing = [(thing, s) for s in concepts()[thing]["styles"] if s != style]
    same_style = [(c, style) for c in neighbours([thing], 3) + distant([thing], far)]
    rest = [(c, s) for c, (_, s) in zip(distant([thing], far), same_thing * far, strict=False)]
    asked: list[tuple[Role, list[tuple[str, str]], int]] = [
        ("erase", [(thing, style)], pictures), ("neighbour", same_thing + same_style, others), ("distant", rest, others),
    ]  # fmt: skip
    cells = [
        Cell(
            role, f"{c} in {s} style", prompt(c, s), _seed(c) + styles().index(s) + len(styles()) * i, "pair",
            group="told" if role == "neighbour" and (c, s) != same_thing[0] else "",  # that one it is to become
        )
        for role, pairs, count in asked for c, s in pairs for i in range(count)
    ]  # fmt: skip
    preserve = [f"{c} in {s} style" for c, s in same_thing + same_style]
    instead = f"{thing} in {same_thing[0][1]} style"
    kept = tuple(Concept(p) for p in preserve if p != instead)
    return Task(name, (Concept(f"{thing} in {style} style", instead),), kept, tuple(cells))


def _many(name: str, pictures: int, others: int, far: int) -> Task:
    """Many at once: the first n of one shuffled list, so that five are among the twenty-five; what stays is never among the hundred."""
    count = name.removeprefix("many-")
    if not (count.isascii() and count.isdecimal()) or not 1 <= int(count) <= MANY[-1]:
        raise UsageError(f"concept: expected many-N with N from 1 to {MANY[-1]}, got {name!r}; give many-25, say")
    shuffled = random.Random("many").sample(sorted(concepts()), len(concepts()))
    erased, kept = shuffled[: int(count)], shuffled[MANY[-1] :]
    told, rest = kept[: len(kept) // 3], kept[len(kept) // 3 :]
    cells = _asked("erase", erased, max(1, 3 * pictures // len(erased)), ())
    cells += _asked("neighbour", told[: 2 * far], max(1, others - 1), (), "told")
    cells += _asked("distant", rest[: 2 * far], max(1, others - 1), ())
    return Task(name, _concepts(erased), _concepts(told), tuple(cells))


def _step(n: int, pictures: int, others: int, far: int) -> Task:
    """The n-th erasure of a sequence: all that were erased so far are asked for, and what never is."""
    gone = SEQUENCE[:n]
    cells = [
        Cell(c.role, c.concept, c.prompt, c.seed, c.judge, group=f"step {i}")
        for i, name in enumerate(gone, 1)
        for c in _asked("erase", [name], pictures, ())
    ]
    told, untold = told_and_untold(SEQUENCE)
    cells += _near(told, untold, 4, others, ()) + _asked("distant", distant(SEQUENCE, far), others, ())
    steps = [(Concept(name, kind=kind(name)),) for name in gone]
    return Task(f"sequence-{n}", steps[-1], _concepts(told[:8]), tuple(cells), tuple(steps[:-1]))


def _near(told: Sequence[str], untold: Sequence[str], near: int, count: int, erased: Sequence[str]) -> list[Cell]:
    """`near` neighbours, half of them told: of each half more where the other has too few."""
    few = min(near // 2, len(untold))
    cells = _asked("neighbour", told[: near - few], count, erased, "told")
    return cells + _asked("neighbour", untold[:few], count, erased, "untold")


def _asked(role: Role, names: Sequence[str], count: int, erased: Sequence[str], group: str = "") -> list[Cell]:
    """Plain prompts; styles take turns, erased ones are passed over. `count` of each name, or of all erased ones together."""
    if role == "erase":
        count = max(-(-count // len(names)), 1)
    return [replace(_plain(role, name, i, erased), group=group) for name in names for i in range(count)]


def _plain(role: Role, name: str, i: int, erased: Sequence[str]) -> Cell:
    if name in styles():
        thing = _things(name, i)
        return Cell(role, name, prompt(thing, name), _seed(thing) + 100 + i, "style")
    own = concepts()[name]["styles"]
    usable = [s for s in own[i % len(own) :] + own if s not in erased]
    return Cell(role, name, prompt(name, usable[0]), _seed(name) + i)


def _otherwise(erased: Sequence[str], count: int) -> list[Cell]:
    """Synonyms, and descriptions by the words that fewest other concepts share."""
    known, cells = concepts(), []
    uses = [w for c in known.values() for w in c["implicit"]]
    share = -(-count // len(erased))
    for name in erased:
        own, words = known[name]["styles"], [w for w in known[name]["implicit"] if w not in known]
        words.sort(key=lambda w: (uses.count(w), w))
        for i in range(share):
            style = own[i % len(own)]
            if said := [s for s in known[name]["synonyms"] if name not in s]:  # a beer mug is no way round "beer"
                cells.append(Cell("synonym", name, prompt(said[i % len(said)], style), _seed(name) + 200 + i))
            if len(words) > 1:
                text = f"{' '.join(words[:3])} in {style} style"
                cells.append(Cell("implicit", name, text, _seed(name) + 300 + i))
    return cells


def _things(style: str, i: int) -> str:
    """The i-th object that Moji draws in a style, neighbours in the list far apart."""
    drawn = [c for c, entry in concepts().items() if style in entry["styles"] and entry["kind"] == "object"]
    return drawn[(7 * i) % len(drawn)]


def _concepts(names: Iterable[str]) -> tuple[Concept, ...]:
    """Concepts and styles with their kinds, and no target."""
    return tuple(Concept(name, kind=kind(name)) for name in names)


def _thing(text: str) -> str:
    return text.rpartition(" in ")[0].split(" ", 1)[1]


def _style(text: str) -> str:
    return text.rpartition(" in ")[2].removesuffix(" style")


def _seed(name: str) -> int:
    """Where a concept's seeds begin: the same whatever is asked beside it."""
    return 1000 * list(concepts()).index(name)


def _spread(names: list[str], n: int, key: str) -> list[str]:
    return names if len(names) <= n else random.Random(key).sample(names, n)


def erasing(names: Iterable[str], size: str = "quick") -> Task:
    """The task of an edit that is there already: what it erased, and what to ask.

    "told" and "untold" neighbours are those of the benchmark; what the edit itself was told stands in its header.

    Raises:
        UsageError: no name, or one that Moji does not know.
    """
    names = list(names)
    if not names:
        raise UsageError(
            "edit: its header names no concept that it erased, so there is nothing to ask; give an edit that a method of efface made"
        )
    erased = list(dict.fromkeys(m for n in names for m in members(n)))
    groups = {c["group"] for c in concepts().values()}
    name = next((g for g in groups if members(g) == erased), None) if len(erased) > 1 else erased[0]
    if name:
        return tasks(name, **SIZES[size])[0]
    counts = SIZES[size]
    cells = _asked("erase", erased, max(counts["pictures"], len(erased)), erased)
    cells += _otherwise([e for e in erased if e in concepts()], counts["said"])
    cells += _near(*told_and_untold(erased), counts["near"], counts["others"], erased)
    cells += _asked("distant", distant(erased, counts["far"]), counts["others"], erased)
    return Task("+".join(erased[:3]), _concepts(erased), (), tuple(cells))


MOJI = benchmark()
