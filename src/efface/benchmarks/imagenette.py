"""Ten ImageNet classes, half of them erased: Bui et al.'s four splits, and AdvAnchor's nine classes one by one."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from efface.benchmarks.prompts import FID, PROMPT, SEED, names, read_prompts
from efface.benchmarks.spec import Benchmark, Cell, Judge, PromptFile, Sampler, Task
from efface.core.concept import Concept, Kind
from efface.core.errors import UsageError, nearest

CLASSES = names("imagenette")
V1 = ("cassette player", "church", "garbage truck", "parachute", "French horn")
V3 = ("cassette player", "chain saw", "church", "gas pump", "tench")
SPLITS = {
    "imagenette-v1": V1, "imagenette-v2": tuple(c for c in CLASSES if c not in V1),
    "imagenette-v3": V3, "imagenette-v4": tuple(c for c in CLASSES if c not in V3),
}  # fmt: skip
RESNET = {"concept": Judge("classifier:microsoft/resnet-50")}
LMS = Sampler("lms", steps=100, guidance=7.5)
TABLE = PromptFile(
    {"prompt": PROMPT, "seed": SEED, "concept": ("label_str", "class")},
    "data/imagenette.csv of github.com/tuananhbui89/Erasing-Adversarial-Preservation",
    rows=5000,
)
DIFFERS = (
    "The published judge is torchvision's ResNet-50 with its V2 weights; Hugging Face's differs by several points. "
    "The published rows of some methods were drawn by DDIM with noise from a GPU. "
    "The unedited model hardly ever draws a cassette player that the judge finds (5 %), which flatters v1 and v3."
)


def _rows(concept: str) -> list[tuple[str, int]]:
    """Prompts and seeds of a class as efface chooses them."""
    return [(f"Image of {concept.title()}", seed) for seed in range(500)]


def _splits(rows: Mapping[str, Sequence[tuple[str, int]]], told: bool) -> Iterator[Task]:
    for name, gone in SPLITS.items():
        kept = tuple(c for c in CLASSES if c not in gone)
        cells = [
            Cell("erase" if c in gone else "neighbour", c, prompt, seed)
            for c in (*gone, *kept) for prompt, seed in rows[c]
        ]  # fmt: skip
        yield Task(name, tuple(Concept(c) for c in gone), tuple(map(Concept, kept)) if told else (), tuple(cells))


def _published(files: Mapping[str, Path]) -> Iterator[Task]:
    known = {c.lower(): c for c in CLASSES}
    rows: dict[str, list[tuple[str, int]]] = {c: [] for c in CLASSES}
    for row in read_prompts(files["imagenette"], TABLE):
        name = row["concept"].lower().replace("_", " ")
        if name not in known:
            raise UsageError(
                f"{files['imagenette']}: {row['concept']!r} is no class of the protocol; {nearest(name, known)}"
            )
        rows[known[name]].append((row["prompt"], row["seed"]))
    return _splits(rows, told=False)


def one_by_one(concepts: Sequence[str], kind: Kind, seeds: int) -> Iterator[Task]:
    """A task for each concept, which is asked for by its bare name, as are all the others."""
    for gone in concepts:
        cells = [
            Cell("erase" if c == gone else "neighbour", c, c, seed)
            for c in (gone, *(c for c in concepts if c != gone)) for seed in range(seeds)
        ]  # fmt: skip
        yield Task(gone, (Concept(gone, kind=kind),), (), tuple(cells))


SPLIT = Benchmark(
    name="imagenette",
    about="five of ten ImageNet classes erased at once, in four splits; 500 pictures of each class",
    source="Bui et al., arXiv:2410.15618 (AP), arXiv:2501.18950 (AGE)",
    tasks=lambda _: _splits({c: _rows(c) for c in CLASSES}, told=False),
    judges=RESNET,
    sampler=LMS,
    differs="Seeds 0 to 499 of each class stand for the published random ones; imagenette-csv takes those. " + DIFFERS,
)
KNOWN = Benchmark(
    name="imagenette-known",
    about="imagenette, and the method is told the five classes to keep: the starred rows of the published table",
    source=SPLIT.source,
    tasks=lambda _: _splits({c: _rows(c) for c in CLASSES}, told=True),
    judges=RESNET,
    sampler=LMS,
    differs=SPLIT.differs,
)
PUBLISHED = Benchmark(
    name="imagenette-csv",
    about="imagenette with the published prompts and seeds",
    source=SPLIT.source,
    tasks=_published,
    judges=RESNET,
    sampler=LMS,
    files={"imagenette": TABLE},
    differs="Some of the published rows are the same twice: 500 rows of a class are 482 to 489 pictures. " + DIFFERS,
)
ADVANCHOR = Benchmark(
    name="imagenette-advanchor",
    about="nine ImageNet classes erased one by one, asked for by bare names; 250 pictures of each",
    source="Zhao et al., AdvAnchor, 2024",
    tasks=lambda _: one_by_one([c for c in CLASSES if c != "cassette player"], "object", 250),
    judges={"concept": Judge("classifier:microsoft/resnet-50", ("top1",))},
    sampler=Sampler("ddim", steps=50, guidance=7.5),
    measures=(FID,),
    differs=(
        "250 seeds of one picture each stand for 50 seeds of five. The published judge is torchvision's ResNet-50 with its V1 "
        "weights; the sampler is not known to us. The published LPIPS, at 64 pixels, needs weights of yours (lpips:64:FILE); FID "
        "of what was erased is not computed, and the published one drops what fills no batch. Published numbers are means of "
        "three fits: give three seeds. The 1,860 ImageNet names are not asked for."
    ),
)
