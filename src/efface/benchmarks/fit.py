"""Fitting: makes every edit that a store lacks; several processes can share the work."""

import dataclasses
import tempfile
from collections.abc import Iterable
from pathlib import Path

from efface.benchmarks.plan import Fit
from efface.benchmarks.store import Store
from efface.core.denoiser import Denoiser
from efface.core.edit import Edit, load_edit
from efface.core.log import Log
from efface.erasers import make


def fit_all(fits: Iterable[Fit], base: Denoiser, store: Store, folder: Path, model: str, log: Log) -> None:
    """Fit and keep every edit that `store` lacks; training checkpoints lie in `folder`, `model` is what the user calls the base."""
    store.share(
        fits,
        lambda f: f.name(base),
        lambda f: store.has_edit(f.name(base)),
        lambda f: _fit(f, base, store, folder, model, log),
    )


def load_fit(fit: Fit, base: Denoiser, store: Store) -> Edit:
    """A fitted edit."""
    with store.edit_file(fit.name(base)) as path:
        return load_edit(path)


def _fit(fit: Fit, base: Denoiser, store: Store, folder: Path, model: str, log: Log) -> None:
    """Fit an edit and keep it; training goes on from its checkpoint."""
    name, before = fit.name(base), None
    if fit.before:
        if not store.has_edit(fit.before.name(base)):
            _fit(fit.before, base, store, folder, model, log)
        before = load_fit(fit.before, base, store)
    log.checkpoint = folder / "training" / f"{name}.safetensors"
    start = before(base) if before else base
    edit = make(fit.method, seed=fit.seed).fit(start, fit.erase, fit.preserve, log=log, model=model)
    log.checkpoint = None
    if before:
        edit = _stacked(before, edit)
    with tempfile.TemporaryDirectory() as part:
        edit.save(Path(part) / "edit.safetensors")
        store.put_edit(name, Path(part) / "edit.safetensors")


def _stacked(before: Edit, edit: Edit) -> Edit:
    """An edit that was fitted on what another had left, together with that one: the last one's recipe, for the unedited model."""
    header = dataclasses.replace(
        edit.header, base=before.header.base, signature=before.header.signature, erase=(*before.header.erase, *edit.header.erase),
        seconds=before.header.seconds + edit.header.seconds,
    )  # fmt: skip
    own = dataclasses.replace(edit.header, base=before.header.base, signature=before.header.signature)
    both = before + edit.stamped(own)
    return both.stamped(header)
