"""Declaration of a benchmark: which concepts to erase, which prompts to draw, which detectors judge, which scores to count. Data only."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path

from efface.benchmarks.row import ROLES, Role
from efface.core.concept import Concept
from efface.core.errors import UsageError

MEASURES = (
    "perceptual",
    "quality",
    "lpips",
    "clip",
    "clip-name",
    "kernel",
    "frechet",
    "cmmd",
)  # see benchmarks.measure


@dataclass(frozen=True)
class Cell:
    """One picture to make and judge: the prompt, its seed, and the label that the judge should find.

    Roles: "erase" names what was erased, "synonym" names it otherwise, "implicit" describes it; "neighbour" and "distant" ask for
    something else, and "companion" looks for what else an erasing prompt asked for: the style of an erased thing, the thing in an
    erased style.
    """

    role: Role
    concept: str
    prompt: str
    seed: int
    judge: str = "concept"  # which of the benchmark's judges; "" for a picture that is measured and not judged
    guidance: float | None = None  # where the protocol gives each row its own
    group: str = ""  # what the row belongs to besides: an artist, a category; of a neighbour, whether methods are "told" to keep it

    def __post_init__(self) -> None:
        """Refuse what would be a crash or a wrong number an hour later."""
        if self.role not in ROLES:
            raise UsageError(f"cell: expected a role of {', '.join(ROLES)}, got {self.role!r}; give one of them")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"cell: expected a seed from 0 to 2^63 - 1, got {self.seed}; give such a seed")


@dataclass(frozen=True)
class Sampler:
    """How pictures are drawn. All of it is part of a picture's name in a store."""

    name: str = "ddim"  # one of the family's samplers
    steps: int = 25
    guidance: float = 3.0
    negative: str = ""  # prompt
    rng: str = "cpu"  # of the start noise: "cpu" is the same everywhere, "cuda" repeats protocols that drew it on a GPU


@dataclass(frozen=True)
class Judge:
    """A detector and what is counted of its answer.

    Scores: "topK": the label asked for is among the K best guesses; "anyT": a box of one of `classes` scores above T; "countT": how
    many boxes do. `labels` are for zero-shot detectors.
    """

    detector: str  # what efface.metrics.detectors.detector opens; "" for one that only the user can have
    scores: tuple[str, ...] = ("top1", "top5")
    classes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """One model to edit and what to ask of it.

    Args:
        name: of the task, such as the concept's; a folder name.
        erase: concepts, all at once.
        preserve: what the method is told to keep.
        cells: what is asked afterwards.
        after: concepts that were erased before, one after the other, each on what the one before it left.
    """

    name: str
    erase: tuple[Concept, ...]
    preserve: tuple[Concept, ...] = ()
    cells: tuple[Cell, ...] = ()
    after: tuple[tuple[Concept, ...], ...] = ()

    def thinned(self, prompts: int) -> "Task":
        """The first `prompts` cells of each role and concept."""
        seen: dict[tuple[str, str, str], int] = {}
        kept = []
        for cell in self.cells:
            key = (cell.role, cell.concept, cell.judge)
            seen[key] = seen.get(key, 0) + 1
            if seen[key] <= prompts:
                kept.append(cell)
        return replace(self, cells=tuple(kept))


@dataclass(frozen=True)
class PromptFile:
    """A third party's prompts, which efface does not ship: given by path or Hub id, recorded by hash.

    Args:
        columns: our names (prompt, seed, guidance, concept, ...) to those the file may use for them, in order of preference.
        rows: expected, None where copies differ.
        where: where to get it, for the message of who lacks it.
    """

    columns: Mapping[str, tuple[str, ...]]
    where: str
    rows: int | None = None


@dataclass(frozen=True)
class Benchmark:
    """A published protocol, or our own.

    Args:
        name: as on the command line.
        about: one line.
        source: paper and where its numbers come from.
        tasks: every task, made when asked for, since some protocols have hundreds of thousands of cells; it is given the prompt files.
        judges: by the name cells give.
        sampler: how pictures are drawn.
        model: the one the protocol is about.
        files: third-party prompts it needs.
        measures: numbers beside the judges', as efface.benchmarks.measure names them.
        differs: what is not as published, and why.
    """

    name: str
    about: str
    source: str
    tasks: Callable[[Mapping[str, Path]], Iterable[Task]]
    judges: Mapping[str, Judge]
    sampler: Sampler
    model: str = "CompVis/stable-diffusion-v1-4"
    files: Mapping[str, PromptFile] = field(default_factory=dict)
    measures: tuple[str, ...] = ()
    differs: str = ""

    def made(
        self, files: Mapping[str, Path] | None = None, *, prompts: int | None = None, tasks: int | None = None
    ) -> Iterator[Task]:
        """The tasks, thinned to `prompts` cells of each role and concept and to the first `tasks`.

        Raises:
            UsageError: a prompt file is missing.
        """
        given = files or {}
        if lacking := [name for name in self.files if name not in given]:
            one = self.files[lacking[0]]
            raise UsageError(
                f"benchmark {self.name}: needs the prompts {lacking[0]!r}, which efface does not ship; "
                f"get them from {one.where} and give --file {lacking[0]}=PATH"
            )
        for task in islice(self.tasks(given), tasks):
            yield task if prompts is None else task.thinned(prompts)


def protocol_hash(benchmark: Benchmark, task: Task) -> str:
    """Names all that makes two numbers comparable: what was erased and kept, every prompt and seed, sampler, judges and measures."""
    said = {
        "benchmark": benchmark.name, "sampler": asdict(benchmark.sampler), "measures": benchmark.measures,
        "judges": {k: asdict(j) for k, j in benchmark.judges.items()},
        "erase": [asdict(c) for c in task.erase], "after": [[asdict(c) for c in one] for one in task.after],
        "preserve": [asdict(c) for c in task.preserve], "cells": [list(asdict(c).values()) for c in task.cells],
    }  # fmt: skip
    return hashlib.sha256(json.dumps(said, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:12]


def erased_names(task: Task) -> Sequence[str]:
    """Everything the task erases, earlier ones included."""
    return [c.name for one in (*task.after, task.erase) for c in one]
