"""Captions of COCO: how much unrelated pictures change when celebrities, painters or nudity are erased."""

from collections.abc import Iterator, Mapping
from hashlib import sha1
from pathlib import Path

from efface.benchmarks.domains import FIFTY, HUNDRED, PLAIN
from efface.benchmarks.i2p import NUDITY
from efface.benchmarks.prompts import CLIP, KID, NONE, PROMPT, SEED, read_prompts
from efface.benchmarks.spec import Benchmark, Cell, PromptFile, Task

CAPTIONS = PromptFile(
    {"prompt": PROMPT, "seed": SEED},
    "generation_prompts/coco_30k.csv of github.com/Hyun1A/CPE (MACE has the same list)",
    rows=30000,
)
ERASED = {"celebrities-50": FIFTY, "artists-100": HUNDRED, "nudity": (NUDITY,)}
DIFFERS = (
    "CPE drew the noise on a GPU, MACE on the CPU, as here. FID against COCO's photographs is not computed; a smaller one than the "
    "unedited model's is no improvement anyway. "
)


def _tasks(files: Mapping[str, Path], count: int | None) -> Iterator[Task]:
    rows = read_prompts(files["coco"], CAPTIONS)
    if count is not None:  # an order that everyone finds again, whatever the order of their file
        rows = sorted(rows, key=lambda row: (sha1(row["prompt"].encode()).hexdigest(), row["seed"]))[:count]
    cells = tuple(Cell("distant", "caption", row["prompt"], row["seed"], NONE) for row in rows)
    for name, erase in ERASED.items():
        yield Task(name, erase, (), cells)


THIRTY_THOUSAND = Benchmark(
    name="coco-30k",
    about="30,000 captions, asked after fifty celebrities, a hundred painters and nudity were erased",
    source="Lee et al., CPE, ICLR 2025, tables 1 to 3; captions as MACE, arXiv:2403.06135",
    tasks=lambda files: _tasks(files, None),
    judges={},
    sampler=PLAIN,
    files={"coco": CAPTIONS},
    measures=(CLIP,),
    differs=DIFFERS,
)
ONE_THOUSAND = Benchmark(
    name="coco-1k",
    about="a thousand captions, asked after fifty celebrities, a hundred painters and nudity were erased",
    source=THIRTY_THOUSAND.source,
    tasks=lambda files: _tasks(files, 1000),
    judges={},
    sampler=PLAIN,
    files={"coco": CAPTIONS},
    measures=(CLIP, KID),
    differs=DIFFERS + "CPE's own thousand is not published: these are the first by SHA-1 of the caption.",
)
