"""Plans: which edits to fit, and the recipe of every picture to draw. Nothing is fitted or drawn here."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from efface import __version__
from efface.benchmarks.row import BASE, Role, Row
from efface.benchmarks.sources import source_hash
from efface.benchmarks.spec import Benchmark, Cell, Sampler, Task, protocol_hash
from efface.benchmarks.store import Recipe, name_of
from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.edit import Edit
from efface.erasers import make


@dataclass(frozen=True)
class Fit:
    """A method that is to erase concepts at once, after others that it has erased before."""

    method: str
    erase: tuple[Concept, ...]
    preserve: tuple[Concept, ...] = ()
    after: tuple[tuple[Concept, ...], ...] = ()
    seed: int = 0

    @property
    def before(self) -> "Fit | None":
        """The erasure that this one builds on."""
        return dataclasses.replace(self, erase=self.after[-1], after=self.after[:-1]) if self.after else None

    def name(self, base: Denoiser) -> str:
        """Of the fitted edit in a store: the method, its hyper-parameters and its source (`source_hash`), the model, the concepts."""
        eraser = make(self.method, seed=self.seed)
        recipe = {
            "fit": type(eraser).__name__, "source": source_hash(type(eraser).__module__), "settings": dataclasses.asdict(eraser),
            "version": __version__, "model": base.fingerprint,
            "erase": [dataclasses.asdict(c) for c in self.erase], "preserve": [dataclasses.asdict(c) for c in self.preserve],
            "after": self.before.name(base) if self.before else "",
        }  # fmt: skip
        return name_of(recipe)


def fits(task: Task, methods: Sequence[str], seeds: Sequence[int]) -> dict[str, Fit]:
    """The fits of a task by label: each method once for each training seed."""
    return {
        f"{m}#{s}" if len(seeds) > 1 else m: Fit(m, task.erase, task.preserve, task.after, s)
        for m in methods for s in seeds
    }  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """The pictures of a task: what each is made of, cell by cell, for the unedited model (BASE) and for each edit."""

    cells: Sequence[Cell]
    recipes: Mapping[str, Sequence[Recipe]]  # by label
    task: str = ""
    protocol: str = ""
    seeds: Mapping[str, int] = field(default_factory=dict)  # the edits' training seeds, 0 where not given

    def names(self, label: str) -> list[str]:
        """The pictures' names in a store, cell by cell."""
        return [name_of(recipe) for recipe in self.recipes[label]]

    def row(
        self, label: str, cell: Cell, score: str, value: int | float | None, detector: str, *, name: str, image: str,
        seen: str = "", error: str | None = None,
    ) -> Row:  # fmt: skip
        """A row about a cell's picture, which has this name and lies there in the store."""
        return Row(
            task=self.task, protocol=self.protocol, edit=label, fit=self.seeds.get(label, 0), role=cell.role, concept=cell.concept,
            group=cell.group, prompt=cell.prompt, seed=cell.seed, attack="", judge=cell.judge, detector=detector, score=score,
            value=value, seen=seen, error=error, image=image, cell=name,
        )  # fmt: skip

    def set_row(self, label: str, role: Role, score: str, value: int | float, detector: str, *, n: int) -> Row:
        """A row about all `n` pictures of a role."""
        return Row(
            task=self.task, protocol=self.protocol, edit=label, fit=self.seeds.get(label, 0), role=role, concept="", group="",
            prompt="", seed=-1, attack="", judge="", detector=detector, score=score, value=value, seen="", error=None, image="",
            cell="", n=n,
        )  # fmt: skip


def plan(
    base: Denoiser, edits: Mapping[str, Edit], task: Task, benchmark: Benchmark, seeds: Mapping[str, int] | None = None,
    *, batch: int | None = None,
) -> Plan:  # fmt: skip
    """What to make of a task's cells with the unedited model and with each edit, whose training seeds are `seeds`.

    Pictures are drawn `batch` at a time, `base.batch_size` if not given.
    """
    made = recipes(base, edits, task.cells, benchmark.sampler, batch=batch)
    return Plan(task.cells, made, task.name, protocol_hash(benchmark, task), seeds or {})


def recipes(
    base: Denoiser, edits: Mapping[str, Edit], cells: Sequence[Cell], sampler: Sampler, *, batch: int | None = None
) -> dict[str, list[Recipe]]:
    """What each model's pictures are made of, cell by cell; the unedited model is BASE and its edit "".

    The batch is part of it: a picture's last bits depend on how many pass the model at once.
    """
    how = {
        **dataclasses.asdict(sampler), "batch": batch or base.batch_size, "dtype": str(base.dtype).removeprefix("torch."),
    }  # fmt: skip
    model = base.fingerprint
    return {
        label: [
            {
                "model": model, "edit": print_, "prompt": c.prompt, "seed": c.seed,
                "sampler": {**how, "guidance": float(sampler.guidance if c.guidance is None else c.guidance)},
            }
            for c in cells
        ]
        for label, print_ in {BASE: "", **{k: e.fingerprint for k, e in edits.items()}}.items()
    }  # fmt: skip
