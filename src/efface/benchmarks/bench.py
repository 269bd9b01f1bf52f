"""Methods side by side: fit each on each concept, draw, judge, and put the rates into one table.

Every fitted edit, picture and score is a cell of one store. A sweep that was killed goes on where it stopped, any number of processes
share one, and the unedited model's pictures serve every method.
"""

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from efface import __version__
from efface.benchmarks.moji import kind, members, neighbours, plan
from efface.benchmarks.run import Row, evaluate
from efface.benchmarks.store import Store, name_of
from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.edit import Edit, load_edit
from efface.core.files import write_text
from efface.core.train import Log
from efface.erasers import make
from efface.report.html import write_report

SIZES = {  # pictures of each erased concept, of each other one, and how many others are asked for
    "smoke": {"pictures": 4, "others": 2, "near": 2, "far": 2},
    "quick": {"pictures": 12, "others": 3, "near": 4, "far": 5},
    "full": {"pictures": 48, "others": 6, "near": 8, "far": 12},
}


@dataclasses.dataclass(frozen=True)
class Fit:
    """A method that is to erase a concept, or a group of them at once."""

    method: str
    concept: str
    seed: int = 0

    @property
    def erase(self) -> tuple[Concept, ...]:
        """What is erased, to nothing in particular."""
        return tuple(Concept(m, kind=kind(m)) for m in members(self.concept))

    @property
    def preserve(self) -> tuple[str, ...]:
        """What the method is told to keep: the close neighbours, as anyone would who knows them."""
        return tuple(neighbours([c.name for c in self.erase], 8))

    def name(self, base: Denoiser) -> str:
        """Of the fitted edit in a store."""
        eraser = make(self.method, seed=self.seed)
        recipe = {
            "fit": type(eraser).__name__, "settings": dataclasses.asdict(eraser), "version": __version__, "model": base.fingerprint,
            "erase": [dataclasses.asdict(c) for c in self.erase], "preserve": self.preserve,
        }  # fmt: skip
        return name_of(recipe)


def bench(
    base: Denoiser,
    methods: Sequence[str],
    concepts: Sequence[str],
    folder: Path,
    *,
    size: str = "quick",
    store: Store | None = None,
    seed: int = 0,
    model: str = "moji",
    commands: Sequence[str] = (),
    log: Log | None = None,
) -> list[Row]:
    """Rows of every (method, concept), with `erased` beside what `evaluate` writes; a report for each concept in `folder`.

    Args:
        base: the unedited model.
        methods: names from `efface methods`, presets included.
        concepts: of Moji's, or groups of them.
        folder: for bench.json, scores.jsonl and the reports.
        size: one of SIZES.
        store: `folder`/store if not given.
        seed: of the methods.
        model: what the user calls it.
        commands: that repeat this sweep.
        log: where progress goes.
    """
    store, log = store or Store(folder / "store"), log or Log()
    fits = [Fit(m, c, seed) for c in concepts for m in methods]
    store.share(
        fits,
        lambda f: f.name(base),
        lambda f: store.has_edit(f.name(base)),
        lambda f: _fit(f, base, store, folder, model, log),
    )
    rows: list[Row] = []
    for concept in concepts:
        edits = {f.method: _load(f, base, store) for f in fits if f.concept == concept}
        cells = plan(members(concept), **SIZES[size])
        found = evaluate(
            base, edits, cells, folder / concept, name=concept, store=store, log=log, commands=commands,
            files={f.method: f"{f.name(base)}.safetensors" for f in fits},
        )  # fmt: skip
        write_report(folder / concept)
        rows += [{"erased": concept, **row} for row in found]
    write_text(folder / "scores.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_text(folder / "bench.json", json.dumps(_about(base, fits, store, size, model, commands), indent=1))
    return rows


def _fit(fit: Fit, base: Denoiser, store: Store, folder: Path, model: str, log: Log) -> None:
    """Fit an edit and keep it; training goes on from its checkpoint."""
    log.checkpoint = folder / "training" / f"{fit.name(base)}.safetensors"
    edit = make(fit.method, seed=fit.seed).fit(base, fit.erase, fit.preserve, log=log, model=model)
    log.checkpoint = None
    with tempfile.TemporaryDirectory() as part:
        edit.save(Path(part) / "edit.safetensors")
        store.put_edit(fit.name(base), Path(part) / "edit.safetensors")


def _load(fit: Fit, base: Denoiser, store: Store) -> Edit:
    with store.edit_file(fit.name(base)) as path:
        return load_edit(path)


def _about(
    base: Denoiser, fits: Sequence[Fit], store: Store, size: str, model: str, commands: Sequence[str]
) -> dict[str, Any]:
    edits = {(f.method, f.concept): _load(f, base, store) for f in fits}
    return {
        "model": model, "fingerprint": base.fingerprint, "version": __version__, "size": size, "commands": list(commands),
        "edits": [
            {
                "method": m, "erased": c, "seconds": e.header.seconds, "fingerprint": e.fingerprint, "settings": dict(e.header.settings),
                "bytes": sum(t.numel() * t.element_size() for t in e.tensors().values()),
            }
            for (m, c), e in edits.items()
        ],
    }  # fmt: skip
