"""UnlearnCanvas: 50 styles and 20 objects erased one by one; every style is drawn with every object."""

from collections.abc import Iterator
from itertools import product

from efface.benchmarks.prompts import GIVE, names
from efface.benchmarks.row import Role
from efface.benchmarks.spec import Benchmark, Cell, Judge, Sampler, Task
from efface.core.concept import Concept, Kind

STYLES, OBJECTS = (
    names("unlearncanvas-styles"),
    names("unlearncanvas-objects"),
)  # as the judges' labels have them; prompts say spaces
PHOTOGRAPHS = "Seed_Images"  # asked for and judged like a style, never erased
SEEDS = (188, 288, 588, 688, 888)
ROLES: dict[tuple[bool, bool], Role] = {  # whether the prompt names what was erased, whether the judge looks at its domain
    (True, True): "erase", (True, False): "companion", (False, True): "neighbour", (False, False): "distant",
}  # fmt: skip


def _words(label: str) -> str:
    return label.replace("_", " ")


def _prompt(style: str, thing: str) -> str:
    return f"A {_words(thing)} image in {_words(style)} style."


def _cell(role: Role, seed: int, style: str, thing: str, judge: str) -> Cell:
    label, other = (style, thing) if judge == "style" else (thing, style)
    return Cell(role, _words(label), _prompt(style, thing), seed, judge, group=_words(other))


def _tasks() -> Iterator[Task]:
    judged = list(product(SEEDS, STYLES, OBJECTS, ("style", "object")))
    # each of 70 tasks has all 10,200 cells, and means something else by them: they share four of each
    cells = {key: [_cell(role, *one) for one in judged] for key, role in ROLES.items()}
    erased: dict[Kind, tuple[str, ...]] = {"style": tuple(s for s in STYLES if s != PHOTOGRAPHS), "object": OBJECTS}
    for domain, labels in erased.items():
        for gone in labels:
            mine = tuple(
                cells[gone in (style, thing), judge == domain][i] for i, (_, style, thing, judge) in enumerate(judged)
            )
            yield Task(gone, (Concept(_words(gone), kind=domain),), (), mine)


UNLEARNCANVAS = Benchmark(
    name="unlearncanvas",
    about="50 styles and 20 objects erased one by one; 51 x 20 prompts with five seeds, each judged for style and for object",
    source="Zhang et al., UnlearnCanvas, arXiv:2402.11846",
    tasks=lambda _: _tasks(),
    judges={"style": Judge(GIVE, ("top1",)), "object": Judge(GIVE, ("top1",))},
    sampler=Sampler("ddim", steps=100, guidance=9.0),
    model="unlearncanvas-style50",
    differs=(
        "UA = erase, IRA = neighbour, CRA = distant and companion together. The model (Stable Diffusion 1.5 fine-tuned on the 50 "
        "styles) and both judges (ViT-L, one for styles, one for objects) are the authors': give --model FOLDER and --judge. They "
        "seed once for each seed and draw one picture after the other, so that a picture depends on all before it; here each has "
        "the seed itself. Their FID, and combinations and sequences of erasures, for which no code is published, are left out."
    ),
)
