"""An attempt: what an attack found, as a value and one safetensors file that any model of the family can replay."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from efface.core.alterations import altered
from efface.core.cond import Cond
from efface.core.denoiser import Denoiser
from efface.core.edit import Edit, from_record, stored
from efface.core.errors import EffaceError, UsageError
from efface.core.io import read_tensors, write_tensors
from efface.core.sampling import Start


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn where an attempt does not say otherwise."""

    steps: int = 25
    guidance: float = 3.0
    sampler: str = "ddim"
    negative: str = ""
    rng: str = "cpu"


@dataclass(frozen=True)
class Attempt:
    """How to draw a concept with an edited model: a prompt or its rows, a start, settings of the sampler, a change to the model.

    Attributes:
        attack: the attack's name.
        label: which of the attack's variants; "" if it has one.
        prompt: text, which the model's own tokenizer reads.
        rows: the encoded prompt itself, in place of `prompt`: a batch of one.
        negative_rows: the encoded negative prompt, in place of the usual one.
        later: a fraction of the steps and the prompt that is read from there on.
        settings: those of `Drawing` that differ.
        latent: start latent instead of a seed's noise.
        picture: clean latents to start from, with a `strength` from 0 (unchanged) to 1.
        strength: how much of `picture` is noise at the start.
        mask: 1 where `picture` is redrawn; None redraws all.
        alteration: a name in `alterations`.
        edit: applied to the model before anything else.
        unedited: the model is the unedited one, which `edit` then changes.
        turned: the picture is turned upside down after it was drawn.
        about: what the attack reports of it, such as a latent's percentile.
    """

    attack: str
    label: str = ""
    prompt: str = ""
    rows: Cond | None = None
    negative_rows: Cond | None = None
    later: tuple[float, str] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    latent: Float[Tensor, "c h w"] | None = None
    picture: Float[Tensor, "c h w"] | None = None
    strength: float = 1.0
    mask: Float[Tensor, "h w"] | None = None
    alteration: str = ""
    edit: Edit | None = None
    unedited: bool = False
    turned: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)

    TENSORS: ClassVar = ("latent", "picture", "mask")
    CONDS: ClassVar = ("rows", "negative_rows")
    FORMAT: ClassVar = 1

    def on(self, model: Denoiser, base: Denoiser) -> Denoiser:
        """The model to draw with: `model` with the attempt's edit and alteration; `base` is the unedited model.

        Raises:
            UsageError: the attempt's edit was made for another family or shape of model.
        """
        model = base if self.unedited else model
        if self.edit is not None:
            model = self.edit(model, any_base=True)
        return altered(model, base, self.alteration) if self.alteration else model

    def require(self, model: Denoiser) -> None:
        """Refuse a model that the attempt does not fit.

        Raises:
            UsageError: its rows, latents or edit are of another family or shape of model.
        """
        for cond in (self.rows, self.negative_rows):
            if cond is not None:
                _checked(cond, self, model)
        for name, shape in (
            ("latent", model.latent_shape),
            ("picture", model.latent_shape),
            ("mask", model.latent_shape[1:]),
        ):
            if (given := getattr(self, name)) is not None:
                _stacked([given], shape, model)
        if self.edit is not None:
            self.edit.changes(model)

    @property
    def kind(self) -> str:
        """Attempts of equal kind pass the model together: they differ in prompts, rows, starts and masks only."""
        tensors, _ = self._packed()
        shared = [tensors[name] for name in sorted(tensors) if name.startswith(("negative_rows/", "edit/"))]
        facts = {
            "settings": dict(self.settings), "strength": self.strength, "alteration": self.alteration, "turned": self.turned,
            "unedited": self.unedited, "later": self.later and self.later[0], "edit": self.edit.record() if self.edit is not None else None,
            "has": [name for name in (*self.TENSORS, *self.CONDS) if getattr(self, name) is not None],
        }  # fmt: skip
        return _hash(json.dumps(facts, sort_keys=True), shared)

    # -- identity and file -----------------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """Identifies what is drawn: a hash over everything but `about`."""
        tensors, raw = self._packed()
        text = json.dumps({k: v for k, v in raw.items() if k != "about"}, sort_keys=True)
        return _hash(text + " ".join(sorted(tensors)), [tensors[name] for name in sorted(tensors)])

    def save(self, path: str | Path) -> None:
        """Write the attempt as one safetensors file, atomically."""
        tensors, raw = self._packed()
        write_tensors(Path(path), tensors, {"kind": "Attempt", "format": self.FORMAT, **raw})

    def _packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {name: stored(t) for name in self.TENSORS if (t := getattr(self, name)) is not None}
        for name in self.CONDS:
            if (cond := getattr(self, name)) is not None:
                tensors |= {f"{name}/{k}": t.detach().cpu() for k, t in cond.named().items()}
        raw: dict[str, Any] = {
            "attack": self.attack, "label": self.label, "prompt": self.prompt, "later": list(self.later) if self.later else None,
            "settings": dict(self.settings), "strength": self.strength, "alteration": self.alteration, "about": dict(self.about),
        }  # fmt: skip
        raw |= {name: True for name in ("unedited", "turned") if getattr(self, name)}
        if self.edit is not None:
            tensors |= {f"edit/{name}": t for name, t in self.edit.tensors().items()}
            raw["edit"] = self.edit.record()
        return tensors, raw


def _hash(text: str, tensors: Sequence[Tensor]) -> str:
    """16 hex digits of a text and of tensors' dtypes, shapes and bytes."""
    digest = hashlib.sha256(text.encode())
    for t in tensors:
        digest.update(f"{t.dtype} {tuple(t.shape)}".encode())
        digest.update(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def load_attempt(path: str | Path) -> Attempt:
    """The attempt in a file.

    Raises:
        UsageError: no such file, or one that is not an attempt.
        EffaceError: the file is damaged.
    """
    tensors, raw = read_tensors(Path(path))
    if raw.get("kind") != "Attempt":
        raise UsageError(f"{path}: expected an attempt, got an edit or a key; give a file that `efface attack` wrote")
    if not isinstance(raw.get("format"), int) or raw["format"] > Attempt.FORMAT:
        raise UsageError(f"{path}: written by a newer efface; upgrade efface")
    try:
        conds = {
            name: Cond.from_named({k.removeprefix(f"{name}/"): t for k, t in tensors.items() if k.startswith(f"{name}/")})
            for name in Attempt.CONDS if f"{name}/tokens" in tensors
        }  # fmt: skip
        inner = {k.removeprefix("edit/"): t for k, t in tensors.items() if k.startswith("edit/")}
        return Attempt(
            attack=raw["attack"], label=raw["label"], prompt=raw["prompt"], rows=conds.get("rows"),
            negative_rows=conds.get("negative_rows"),
            later=(float(raw["later"][0]), str(raw["later"][1])) if raw["later"] else None, settings=raw["settings"],
            strength=float(raw["strength"]), alteration=raw["alteration"], about=raw["about"],
            edit=from_record(inner, raw["edit"]) if "edit" in raw else None,
            unedited=bool(raw.get("unedited")), turned=bool(raw.get("turned")),
            latent=tensors.get("latent"), picture=tensors.get("picture"), mask=tensors.get("mask"),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise EffaceError(f"{path}: damaged: a part of the attempt is missing ({error!r}); make it again") from error


def draw(
    model: Denoiser, attempts: Sequence[Attempt], seeds: Sequence[int], how: Drawing
) -> list[list[UInt8[np.ndarray, "H W 3"]]]:
    """Pictures of attempts of one kind, for each attempt one for each seed; `model` is that of `Attempt.on`.

    A picture does not depend on the other attempts but for its last bits: they pass the model together.

    Raises:
        UsageError: rows or latents of another shape than the model's, or attempts that differ in more than their tensors and prompts.
    """
    first, how = attempts[0], replace(how, **attempts[0].settings)
    if (several := len({a.kind for a in attempts})) > 1:
        raise UsageError(f"attempts: expected one kind, got {several}; draw each kind by itself")
    n, shape = len(seeds), model.latent_shape
    each = [i for i in range(len(attempts)) for _ in seeds]
    cond = Cond.cat([_rows(a, model) for a in attempts])[each]
    latents, start, later = None, None, None
    if first.latent is not None:
        latents = _stacked([a.latent for a in attempts], shape, model)[each]
    if first.picture is not None:
        at = how.steps - max(1, round(first.strength * how.steps))
        masks = None
        if first.mask is not None:
            masks = _stacked([a.mask for a in attempts], shape[1:], model)[each][:, None]
        start = Start(_stacked([a.picture for a in attempts], shape, model)[each], at, masks)
    if first.later:
        later = (round(first.later[0] * how.steps), model.embed([a.later[1] for a in attempts if a.later])[each])
    found = model.sample(
        cond, seeds=[s for _ in attempts for s in seeds], steps=how.steps, guidance=how.guidance, sampler=how.sampler,
        negative=how.negative, rng=how.rng, latents=latents, start=start, later=later,
        negative_rows=None if first.negative_rows is None else _checked(first.negative_rows, first, model),
    )  # fmt: skip
    pictures = [np.ascontiguousarray(p[::-1]) if first.turned else p for p in model.pictures(found)]
    return [pictures[i * n : (i + 1) * n] for i in range(len(attempts))]


def _rows(attempt: Attempt, model: Denoiser) -> Cond:
    if attempt.rows is None:
        return model.embed([attempt.prompt])
    return _checked(attempt.rows, attempt, model)


def _checked(cond: Cond, attempt: Attempt, model: Denoiser) -> Cond:
    rows = cond.to(model.device)
    width = next(iter(model.text_readers().values())).in_features
    if rows.tokens.shape[-1] != width:
        raise UsageError(
            f"attempt {attempt.attack}: its rows have width {rows.tokens.shape[-1]}, this model reads {width}; "
            "replay it on a model of the family it was found on"
        )
    return rows


def _stacked(given: Sequence[Tensor | None], shape: Sequence[int], model: Denoiser) -> Tensor:
    for t in given:
        if t is None or tuple(t.shape) != tuple(shape):
            got = None if t is None else tuple(t.shape)
            raise UsageError(
                f"attempt: expected latents of shape {tuple(shape)}, got {got}; replay it on a model of the same picture size"
            )
    return torch.stack([t for t in given if t is not None]).to(model.device)
