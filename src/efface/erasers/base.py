"""The base class of all erasers: `fit` checks, seeds, calls `run` and writes the header. A method defines `run` and hyper-parameters."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, ClassVar, final

import torch
from torch import Generator

from efface import __version__
from efface.core.concept import Concept, apart, concepts
from efface.core.denoiser import Denoiser
from efface.core.edit import Edit, Header
from efface.core.errors import EffaceError, UsageError, nearest
from efface.core.log import Log
from efface.core.memory import peak
from efface.core.params import check
from efface.core.train import NotFinite

NEEDS = {
    "words": "runs the text encoder only",
    "drawing": "draws training pictures with the model",
    "classifier": "a classifier of pictures",
    "cross-attention": "works on cross-attention layers, which U-Nets have",
}


@dataclass(frozen=True, kw_only=True)
class Eraser(ABC):
    """Hyper-parameters of a method. `fit(base, erase, preserve)` returns an Edit and does not change `base`.

    Subclasses are frozen dataclasses whose fields are declared with `param`; `makes` are the kinds of edit, `needs` what a fit uses
    (keys of NEEDS), `keeps` whether it uses preserved concepts, `presets` the named settings (`Method.preset("2023")`).
    """

    makes: ClassVar[tuple[type[Edit], ...]]
    needs: ClassVar[frozenset[str]] = frozenset()
    keeps: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse hyper-parameters out of bounds."""
        check(self)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "Eraser":
        """A named setting, with further changes.

        Raises:
            UsageError: no such preset.
        """
        if name not in cls.presets:
            raise UsageError(f"{cls.__name__}: unknown preset {name!r}; {nearest(name, cls.presets)}")
        return cls(**{**cls.presets[name], **changes})

    @final
    def fit(
        self,
        base: Denoiser,
        erase: str | Concept | Iterable[str | Concept],
        preserve: Iterable[str | Concept] = (),
        *,
        log: Log | None = None,
        model: str = "",
    ) -> Edit:
        """Fit an edit that erases `erase` and keeps `preserve`.

        Args:
            base: the model; not changed.
            erase: concepts with their targets.
            preserve: concepts to keep unchanged.
            log: receives progress and saves checkpoints; None does neither.
            model: the name of `base` for the header.

        Raises:
            UsageError: nothing to erase, the same concept twice, a concept both erased and preserved, or a method for
                cross-attention on a model without.
        """
        erased, kept = concepts(erase), concepts(preserve)
        self._check(erased, kept)
        if "cross-attention" in self.needs and not base.cross_attentions():
            raise UsageError(
                f"{type(self).__name__}.fit: works on cross-attention layers, and {base.family.name} has none, since text and picture "
                "share one attention; use uce, esd or spm"
            )
        started, rng = time.perf_counter(), Generator().manual_seed(self.seed)
        with torch.random.fork_rng(), peak(base.device) as used:
            torch.manual_seed(self.seed)
            edit = self._run(base, erased, kept, rng, log or Log())
        header = Header(
            method=type(self).__name__, settings=asdict(self), erase=erased, preserve=kept,
            base=base.fingerprint, model=model, seed=self.seed, version=__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"), seconds=round(time.perf_counter() - started, 3),
            memory=used.bytes, notes=edit.header.notes, signature=base.signature.written(),
        )  # fmt: skip
        return edit.stamped(header)

    def _run(
        self, base: Denoiser, erase: tuple[Concept, ...], preserve: tuple[Concept, ...], rng: Generator, log: Log
    ) -> Edit:
        who = type(self).__name__
        try:
            edit = self.run(base, erase, preserve, rng, log)
        except NotFinite as error:
            kept = f"; the last checkpoint before it is {log.checkpoint}" if log.checkpoint else ""
            raise EffaceError(
                f"{who}.fit: training stopped at step {log.step}: {error}; no edit was written, train with a lower --lr{kept}"
            ) from error
        except torch.linalg.LinAlgError as error:
            raise EffaceError(f"{who}.fit: the equations cannot be solved ({error}); give a larger --ridge") from error
        if name := edit.broken():
            raise EffaceError(
                f"{who}.fit: {name} of the edit is not finite; no edit was written, give settings nearer to the defaults"
            )
        return edit

    @abstractmethod
    def run(
        self, base: Denoiser, erase: tuple[Concept, ...], preserve: tuple[Concept, ...], rng: Generator, log: Log
    ) -> Edit:
        """The paper's algorithm."""

    def recipe(self, base: Denoiser, erase: tuple[Concept, ...], preserve: tuple[Concept, ...]) -> str:
        """Identifies the training, so that only the same call continues a checkpoint."""
        return repr((replace(self), base.fingerprint, erase, preserve))

    def _check(self, erase: tuple[Concept, ...], preserve: tuple[Concept, ...]) -> None:
        who = type(self).__name__
        if not erase:
            raise UsageError(f"{who}.fit: erase is empty; give at least one concept")
        apart(erase, preserve, f"{who}.fit")
