"""An edit: a value, a function Denoiser -> Denoiser, and one safetensors file with its recipe in the header."""

import copy
import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override  # in typing from Python 3.12

from efface.core.appended_rows import ActiveKey
from efface.core.branch import Branch
from efface.core.branches import FORMS
from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.errors import EffaceError, UsageError
from efface.core.files import from_json
from efface.core.hooks import BoundBranch
from efface.core.identity import Signature
from efface.core.io import read_tensors, write_tensors
from efface.core.key import Key
from efface.core.steering import RULES, Rule, Steer

FORMAT = 1  # of the file; a reader refuses what a newer efface wrote
TYPES: Mapping[str, type] = {  # of the header's entries, where they are plain
    "method": str, "settings": dict, "erase": list, "preserve": list, "base": str, "model": str, "seed": int, "version": str,
    "created": str, "notes": dict, "effect": dict, "signature": str,
}  # fmt: skip


@dataclass(frozen=True)
class Header:
    """The recipe in an edit's file: everything needed to fit the edit again and to know what it is for."""

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    erase: tuple[Concept, ...] = ()
    preserve: tuple[Concept, ...] = ()
    base: str = ""  # fingerprint of the model it was made for
    model: str = ""  # what the user called that model
    seed: int = 0
    version: str = ""
    created: str = ""
    seconds: float = 0.0
    notes: Mapping[str, Any] = field(default_factory=dict)  # what the method records of the fit, as plain values
    memory: int | None = None  # peak bytes of the fit
    effect: Mapping[str, Any] = field(default_factory=dict)  # see core.effect
    signature: str = ""  # of the weights it was made for, equal for every dtype: decides whether the edit fits a model

    def same_base(self, other: "Header") -> bool:
        """Whether both were made for the same weights, in any dtype."""
        if self.base == other.base or not (self.signature and other.signature):
            return self.base == other.base
        return Signature.read(self.signature).fits(Signature.read(other.signature))

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> "Header":
        """The header in JSON data; unknown entries of a newer minor version are ignored.

        Raises:
            KeyError, TypeError, ValueError: the data is not a header.
        """
        known = {f.name for f in fields(cls)}
        for name, kind in TYPES.items():
            if not isinstance(raw.get(name, kind()), kind) or isinstance(raw.get(name), bool):
                raise TypeError(f"{name}: {raw[name]!r}"[:80])
        if any(not isinstance(c, dict) for name in ("erase", "preserve") for c in raw.get(name, ())):
            raise TypeError("erase or preserve: not concepts")
        if signature := raw.get("signature"):
            Signature.read(signature)  # refused now, not when it is applied
        kept = {k: v for k, v in raw.items() if k in known}
        for name in ("erase", "preserve"):
            kept[name] = tuple(Concept(**{**c, "prompts": tuple(c["prompts"])}) for c in raw.get(name, ()))
        return cls(**kept)


class Edit(ABC):
    """A change to a model, stored apart from it. `edit(base)` does not change `base`; `edit * 0.5` is half as strong.

    Subclasses define their tensors (`tensors`, `build`) and the new values of the weights they change (`changes`).
    """

    kinds: ClassVar[dict[str, type["Edit"]]] = {}
    header: Header
    strength: float = 1.0

    @override
    def __init_subclass__(cls) -> None:
        Edit.kinds[cls.__name__] = cls

    @abstractmethod
    def changes(self, base: Denoiser) -> dict[str, Tensor]:
        """New values of the weights this edit touches, computed from `base`."""

    def weights(self, base: Denoiser) -> dict[str, Tensor]:
        """`changes`, all of them finite.

        Raises:
            EffaceError: one is not, since the edit is, the strength is too large or the dtype too narrow.
        """
        new = self.changes(base)
        if broken := next((name for name, w in new.items() if not w.isfinite().all()), None):
            raise EffaceError(
                f"edit: at strength {self.strength:g} it makes {broken} infinite or not a number in {new[broken].dtype}; "
                "apply it weaker, or to a model in float32"
            )
        return new

    def steers(self) -> tuple[Steer, ...]:
        """Corrections of the sampler's guided prediction; none for most kinds."""
        return ()

    def branches(self, edited: Denoiser) -> tuple[BoundBranch, ...]:
        """Modules that add to module outputs of `edited`, a denoiser with the edit's weights; none for most kinds."""
        return ()

    def keys(self, edited: Denoiser) -> tuple[ActiveKey, ...]:
        """Keys that append rows to the prompts of `edited`, a denoiser with the edit's weights; none for most kinds."""
        return ()

    def unbakeable(self) -> str:
        """Why the edit cannot be baked into weights, as the end of "an edit that …"; "" if it can."""
        return ""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Tensors that the file stores, by name."""

    @classmethod
    @abstractmethod
    def build(cls, tensors: dict[str, Tensor], header: Header, raw: Mapping[str, Any]) -> "Edit":
        """An edit from what its file stores: the inverse of `tensors`."""

    def __call__(self, base: Denoiser, *, any_base: bool = False) -> Denoiser:
        """The edited denoiser; `base` and its pipeline stay as they are.

        Raises:
            UsageError: the edit was made for other weights, unless `any_base`.
        """
        self.require(base, any_base)
        new = self.weights(base)
        edited = base.fork(new)
        _write(edited, new)
        edited.steers = (*base.steers, *self.steers())
        edited.branches = (*base.branches, *self.branches(edited))
        edited.keys = (*base.keys, *self.keys(edited))
        return edited

    def bake(self, pipeline: DiffusionPipeline, *, any_base: bool = False) -> None:
        """Write the edit into the weights of a stock pipeline, in place: afterwards the pipeline needs no efface.

        Raises:
            UsageError: the edit cannot be baked into weights, or it was made for other weights, unless `any_base`.
        """
        if more := self.unbakeable():
            raise UsageError(f"bake: expected an edit of weights, got one that {more}; apply it with edit(model)")
        base = Denoiser(pipeline)
        self.require(base, any_base)
        _write(base, self.weights(base))

    def require(self, base: Denoiser, any_base: bool = False) -> None:
        """Refuse weights the edit was not made for. The same weights in another dtype, or wrapped by LoRA layers, are accepted.

        Raises:
            UsageError: other weights; the message has both fingerprints.
        """
        if any_base or not self.header.base or self.header.base == base.fingerprint:
            return
        if not self.header.signature or not Signature.read(self.header.signature).fits(base.signature):
            raise UsageError(
                f"edit: made for base {self.header.base} ({self.header.model}), this model is {base.fingerprint}; "
                "give that model, or any_base=True (--any-base) to apply the edit anyway"
            )

    def __mul__(self, strength: float) -> "Edit":
        """The same edit at another strength: 0 changes nothing, 1 is as fitted."""
        if not math.isfinite(strength):
            raise UsageError(f"strength: expected a finite number, got {strength!r}; 0 changes nothing, 1 is as fitted")
        scaled = copy.copy(self)
        scaled.strength = self.strength * float(strength)
        return scaled

    __rmul__ = __mul__

    def __add__(self, other: "Edit") -> "Stack":
        """This edit, then `other`."""
        return Stack([*flat(self), *flat(other)])

    @property
    def fingerprint(self) -> str:
        """Identifies what the edit does: a hash over its kind, strength and tensors, not over its header."""
        digest = hashlib.sha256(f"{type(self).__name__} {self.strength}".encode())
        for name, t in sorted(self.tensors().items()):
            digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
            digest.update(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def stamped(self, header: Header) -> "Edit":
        """The same edit with `header`."""
        copied = copy.copy(self)
        copied.header = header
        return copied

    def record(self) -> dict[str, Any]:
        """The file's header as plain values."""
        return {"format": FORMAT, "kind": type(self).__name__, "strength": self.strength, **asdict(self.header)}

    def broken(self) -> str:
        """The name of a stored tensor that is not finite; "" if all are."""
        floats = (name for name, t in self.tensors().items() if t.is_floating_point() and not t.isfinite().all())
        return next(floats, "")

    def save(self, path: str | Path) -> None:
        """Write the edit as one safetensors file, atomically.

        Raises:
            EffaceError: one of its tensors is not finite, or the file cannot be written.
        """
        if name := self.broken():
            raise EffaceError(f"{path}: not written: {name} of the edit is not finite; fit it again")
        write_tensors(Path(path), self.tensors(), self.record())


def load_edit(path: str | Path) -> Edit:
    """The edit in a file; nothing is ever unpickled.

    Raises:
        UsageError: no such file, a pickle, a foreign file, or one written by a newer efface.
        EffaceError: the file is damaged.
    """
    tensors, raw = read_tensors(Path(path))
    if raw.get("kind") == "Key":
        raise UsageError(f"{path}: expected an edit, got a key; give the edit, and this file as its key (--key)")
    if (
        not isinstance(raw.get("format", 0), int)
        or raw.get("format", 0) > FORMAT
        or str(raw.get("kind")) not in Edit.kinds
    ):
        raise UsageError(
            f"{path}: written by efface {raw.get('version')} as {raw.get('kind')}, which this efface cannot read; upgrade it"
        )
    try:
        edit = from_record(tensors, raw)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RuntimeError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise EffaceError(
            f"{path}: the header and the tensors do not fit together ({type(error).__name__}: {first}); copy or make it again"
        ) from error
    if name := edit.broken():
        raise EffaceError(f"{path}: {name} has values that are not finite; delete the file and make it again")
    return edit


def from_record(tensors: dict[str, Tensor], raw: Mapping[str, Any]) -> Edit:
    """The edit that a file with this header and these tensors stores.

    Raises:
        KeyError, TypeError, ValueError: the two do not fit together.
    """
    if wrong := next((k for k, t in tensors.items() if not (t.is_floating_point() or t.dtype == torch.uint8)), None):
        raise TypeError(f"{wrong}: expected floating point numbers, got {tensors[wrong].dtype}")
    edit = Edit.kinds[raw["kind"]].build(tensors, Header.read(raw), raw)
    edit.strength = float(raw["strength"])
    if not math.isfinite(edit.strength):
        raise ValueError("strength")
    return edit


class TextMap(Edit):
    """T = I + left rightᵀ on the token embeddings: W' = W T for all layers that read them (`Denoiser.reader_weights`).

    These are the keys and values of every cross-attention, or the one embedder of a multimodal transformer. `pooled` are the factors of
    another map, on the pooled vector that some families read besides; None leaves that as it is.
    """

    where: ClassVar = "xattn.kv"  # in a U-Net

    def __init__(
        self,
        left: Float[Tensor, "d r"],
        right: Float[Tensor, "d r"],
        header: Header | None = None,
        pooled: tuple[Float[Tensor, "p k"], Float[Tensor, "p k"]] | None = None,
    ) -> None:
        """Factors are kept in float32."""
        self.left, self.right, self.header = stored(left), stored(right), header or Header("")
        self.pooled = None if pooled is None else (stored(pooled[0]), stored(pooled[1]))

    @override
    def changes(self, base: Denoiser) -> dict[str, Tensor]:
        new = {name: self._mapped(name, w, self.left, self.right) for name, w in base.reader_weights().items()}
        if self.pooled is None:
            return new
        left, right = self.pooled
        for name, w in base.pooled_weights().items():
            first = self._mapped(name, w[:, : len(left)], left, right)
            new[name] = torch.cat([first, w[:, len(left) :]], 1)
        return new

    def _mapped(self, name: str, w: Tensor, left: Tensor, right: Tensor) -> Tensor:
        if w.shape[1] != len(left):
            raise UsageError(
                f"edit: maps embeddings of width {len(left)}, {name} reads {w.shape[1]}; give the model it was made for"
            )
        left, right = left.to(w.device), right.to(w.device)
        return (w.float() + self.strength * (w.float() @ left) @ right.T).to(w.dtype)

    @override
    def tensors(self) -> dict[str, Tensor]:
        more = {} if self.pooled is None else {"pooled.left": self.pooled[0], "pooled.right": self.pooled[1]}
        return {"left": self.left, "right": self.right, **more}

    @classmethod
    @override
    def build(cls, tensors: dict[str, Tensor], header: Header, raw: Mapping[str, Any]) -> "TextMap":
        _factors("left, right", tensors["left"], tensors["right"].mT)
        pooled = None
        if "pooled.left" in tensors:
            pooled = tensors["pooled.left"], tensors["pooled.right"]
            _factors("pooled.left, pooled.right", pooled[0], pooled[1].mT)
        return cls(tensors["left"], tensors["right"], header, pooled)


class Delta(Edit):
    """Weight differences by weight name, in float32 for every dtype of the model."""

    def __init__(self, deltas: Mapping[str, Tensor], header: Header | None = None) -> None:
        """Keyed by the names of `Denoiser.params`."""
        self.deltas, self.header = {k: stored(v) for k, v in deltas.items()}, header or Header("")

    @override
    def changes(self, base: Denoiser) -> dict[str, Tensor]:
        weights = base.params(self.deltas)
        for name, w in weights.items():
            _fits(name, self.deltas[name].shape, w.shape)
        return {k: (w.float() + self.strength * self.deltas[k].to(w.device)).to(w.dtype) for k, w in weights.items()}

    @override
    def tensors(self) -> dict[str, Tensor]:
        return self.deltas

    @classmethod
    @override
    def build(cls, tensors: dict[str, Tensor], header: Header, raw: Mapping[str, Any]) -> "Delta":
        return cls(tensors, header)


class LowRank(Edit):
    """LoRA factors by weight name: W' = W + up down, with kernels read as matrices (out x rest)."""

    def __init__(self, factors: Mapping[str, tuple[Tensor, Tensor]], header: Header | None = None) -> None:
        """`factors[name]` = (up (out r), down (r in))."""
        self.factors = {k: (stored(up), stored(down)) for k, (up, down) in factors.items()}
        self.header = header or Header("")

    @override
    def changes(self, base: Denoiser) -> dict[str, Tensor]:
        new = {}
        for name, w in base.params(self.factors).items():
            up, down = (f.to(w.device) for f in self.factors[name])
            _fits(name, (len(up), down.shape[1]), w.flatten(1).shape)
            new[name] = (w.float() + self.strength * (up @ down).view_as(w)).to(w.dtype)
        return new

    @override
    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{k}/{part}": f for k, pair in self.factors.items() for part, f in zip(("up", "down"), pair, strict=True)
        }

    @classmethod
    @override
    def build(cls, tensors: dict[str, Tensor], header: Header, raw: Mapping[str, Any]) -> "LowRank":
        names = dict.fromkeys(k.rsplit("/", 1)[0] for k in tensors)
        for k in names:
            _factors(k, tensors[f"{k}/up"], tensors[f"{k}/down"])
        return cls({k: (tensors[f"{k}/up"], tensors[f"{k}/down"]) for k in names}, header)


class Guidance(Edit):
    """A change to classifier-free guidance while sampling: away from some prompts, towards others, by one rule. No weight changes.

    The edited denoiser's `sample` and `images` apply it. Its `predict` and its pipeline are the base's, so other samplers ignore it.
    Several of these edits add up: each sees the uncorrected predictions.
    """

    where: ClassVar = ()

    def __init__(self, pairs: Iterable[tuple[str, str]], rule: Rule, header: Header | None = None) -> None:
        """Each of `pairs` is a prompt to steer away from and one to steer towards; "" is the sampler's negative prompt."""
        self.pairs, self.rule, self.header = tuple(pairs), rule, header or Header("")

    @override
    def changes(self, base: Denoiser) -> dict[str, Tensor]:
        return {}

    @override
    def steers(self) -> tuple[Steer, ...]:
        return tuple(Steer(away, to, self.rule, self.strength) for away, to in self.pairs) if self.strength else ()

    @override
    def unbakeable(self) -> str:
        return "changes the sampler's guidance and no weights" if self.steers() else ""

    @override
    def tensors(self) -> dict[str, Tensor]:
        numbers = torch.tensor(astuple(self.rule), dtype=torch.float64)
        return {"pairs": _as_tensor(self.pairs), type(self.rule).__name__: numbers}

    @classmethod
    @override
    def build(cls, tensors: dict[str, Tensor], header: Header, raw: Mapping[str, Any]) -> "Guidance":
        (name,) = tensors.keys() - {"pairs"}
        return cls(
            [(away, to) for away, to in _from_tensor(tensors["pairs"])], RULES[name](*tensors[name].tolist()), header
        )


class Adapter(Edit):
    """Small modules that add to the outputs of the denoiser's modules, gated by the prompt or by its tokens. No weight changes.

    The edited denoiser's `predict`, `sample` and `images` apply them; its pipeline does not. Several of these edits add up.
    """

    where: ClassVar = ()

    def __init__(self, branch: Branch, header: Header | None = None) -> None:
        """Copies the branch's trained tensors."""
        tensors = {k: stored(t).clone() for k, t in branch.tensors.items()}
        self.branch, self.header = type(branch)(tensors, branch.facts), header or Header("")

    @override
    def changes(self, base: Denoiser) -> dict[str, Tensor]:
        return {}

    @override
    def branches(self, edited: Denoiser) -> tuple[BoundBranch, ...]:
        return (self.branch.bind(edited, self.strength, self.fingerprint),) if self.strength else ()

    @override
    def unbakeable(self) -> str:
        return "adds modules that a stock pipeline does not have" if self.strength else ""

    @override
    def tensors(self) -> dict[str, Tensor]:
        return {**self.branch.tensors, "facts": _as_tensor([type(self.branch).__name__, self.branch.facts])}

    @classmethod
    @override
    def build(cls, tensors: dict[str, Tensor], header: Header, raw: Mapping[str, Any]) -> "Adapter":
        form, facts = _from_tensor(tensors["facts"])
        return cls(FORMS[form]({k: t for k, t in tensors.items() if k != "facts"}, facts), header)


class Keyed(Edit):
    """Weights that hide concepts, and the key that brings them back. The key is saved in a file of its own.

    The edit hides its concepts, with or without its key in `edit.key`; `edit.unlocked(key)` brings them back.
    """

    def __init__(self, hidden: Delta | LowRank, key: Key | None = None, header: Header | None = None) -> None:
        """`key` is the key that was fitted together with `hidden`."""
        self.hidden, self.header, self.open = hidden, header or Header(""), False
        self.key = replace(key, lock=self.lock) if key else None

    @property
    def lock(self) -> str:
        """The fingerprint of the hiding weights; a key stores it, and fits only this edit."""
        return self.hidden.fingerprint

    def unlocked(self, key: Key) -> "Keyed":
        """The edit with its concepts brought back.

        Raises:
            UsageError: the key was made for another edit.
        """
        if key.lock != self.lock:
            raise UsageError(
                f"key: made for edit {key.lock}, this edit is {self.lock}; give the key that was saved with this edit"
            )
        opened = copy.copy(self)
        opened.key, opened.open = key, True
        return opened

    @override
    def changes(self, base: Denoiser) -> dict[str, Tensor]:
        return (self.hidden * self.strength).changes(base)

    @override
    def keys(self, edited: Denoiser) -> tuple[ActiveKey, ...]:
        return (self.key.bind(edited),) if self.key and self.open and self.strength else ()

    @override
    def unbakeable(self) -> str:
        return "is unlocked, and a key cannot be stored in weights" if self.open else ""

    @property
    @override
    def fingerprint(self) -> str:
        return f"{super().fingerprint[:8]}{self.key.fingerprint[:8]}" if self.open and self.key else super().fingerprint

    @override
    def tensors(self) -> dict[str, Tensor]:
        return self.hidden.tensors()

    @override
    def record(self) -> dict[str, Any]:
        return {**super().record(), "hidden": type(self.hidden).__name__}

    @override
    def save(self, path: str | Path) -> None:
        """Write the edit without its key, and the key, if `edit.key` is set, to "NAME.key.safetensors"."""
        if self.key:
            self.key.save(Path(path).with_suffix(".key.safetensors"))
        super().save(path)

    @classmethod
    @override
    def build(cls, tensors: dict[str, Tensor], header: Header, raw: Mapping[str, Any]) -> "Keyed":
        hidden = {"Delta": Delta, "LowRank": LowRank}[raw["hidden"]].build(tensors, Header(""), raw)
        return cls(hidden, header=header)


class Stack(Edit):
    """Edits in order, each applied to the result of the one before; guidance corrections add up. All must be made for the same base."""

    def __init__(self, edits: Iterable[Edit], header: Header | None = None) -> None:
        """Stack one edit or more.

        Raises:
            UsageError: no edits, or edits for different bases.
        """
        self.edits = list(edits)
        made = [e.header for e in self.edits if e.header.base]
        if not self.edits or not all(made[0].same_base(other) for other in made[1:]):
            got = f"for different bases {sorted({h.base for h in made})}" if self.edits else "none"
            raise UsageError(
                f"stack: expected edits of one base, got {got}; stack edits that were made for the same model"
            )
        erased = dict.fromkeys(c for e in self.edits for c in e.header.erase)
        base, signature = (made[0].base, made[0].signature) if made else ("", "")
        self.header = header or Header(
            "stack", erase=tuple(erased), base=base, model=self.edits[0].header.model, signature=signature
        )

    @override
    def __mul__(self, strength: float) -> "Stack":
        return Stack([e * strength for e in self.edits], self.header)

    __rmul__ = __mul__

    @property
    @override
    def fingerprint(self) -> str:
        return hashlib.sha256(" ".join(e.fingerprint for e in self.edits).encode()).hexdigest()[:16]

    def unlocked(self, key: Key) -> "Stack":
        """The stack, with the edit that the key was made for unlocked.

        Raises:
            UsageError: the stack has no such edit.
        """
        locks = [e.lock for e in self.edits if isinstance(e, Keyed)]
        if key.lock not in locks:
            raise UsageError(
                f"key: made for edit {key.lock}, this stack has {', '.join(locks) or 'no edit with a key'}; give another key"
            )
        return Stack(
            [e.unlocked(key) if isinstance(e, Keyed) and e.lock == key.lock else e for e in self.edits], self.header
        )

    def without(self, index: int) -> "Stack":
        """The stack without the edit at `index`; -1 is the last.

        Raises:
            UsageError: no such edit, or it is the only one.
        """
        if not -len(self.edits) <= index < len(self.edits):
            raise UsageError(f"stack: expected an index below {len(self.edits)}, got {index}; `edits` lists its edits")
        kept = list(self.edits)
        del kept[index]
        return Stack(kept)

    @override
    def changes(self, base: Denoiser) -> dict[str, Tensor]:
        new: dict[str, Tensor] = {}
        for edit in self.edits:
            here = base.fork(new)
            _write(here, new)
            new |= edit.changes(here)
        return new

    @override
    def steers(self) -> tuple[Steer, ...]:
        return tuple(steer for edit in self.edits for steer in edit.steers())

    @override
    def branches(self, edited: Denoiser) -> tuple[BoundBranch, ...]:
        return tuple(branch for edit in self.edits for branch in edit.branches(edited))

    @override
    def keys(self, edited: Denoiser) -> tuple[ActiveKey, ...]:
        return tuple(key for edit in self.edits for key in edit.keys(edited))

    @override
    def unbakeable(self) -> str:
        return next(filter(None, (edit.unbakeable() for edit in self.edits)), "")

    @override
    def tensors(self) -> dict[str, Tensor]:
        return {f"{i}:{k}": t for i, e in enumerate(self.edits) for k, t in e.tensors().items()}

    @override
    def record(self) -> dict[str, Any]:
        return {**super().record(), "edits": [e.record() for e in self.edits]}

    @override
    def save(self, path: str | Path) -> None:
        """Write the stack, and the keys of its edits to "NAME.0.key.safetensors" for the first edit, and so on."""
        for i, edit in enumerate(self.edits):
            if isinstance(edit, Keyed) and edit.key:
                edit.key.save(Path(path).with_suffix(f".{i}.key.safetensors"))
        super().save(path)

    @classmethod
    @override
    def build(cls, tensors: dict[str, Tensor], header: Header, raw: Mapping[str, Any]) -> "Stack":
        parts = [
            {k.removeprefix(f"{i}:"): t for k, t in tensors.items() if k.startswith(f"{i}:")}
            for i in range(len(raw["edits"]))
        ]
        return cls([from_record(part, one) for part, one in zip(parts, raw["edits"], strict=True)], header)


def stored(t: Tensor) -> Tensor:
    """A tensor as an edit stores it and as its file is read: float32, detached, contiguous, aligned to 64 bytes.

    A matrix product with another layout or alignment may differ in the last bit.
    """
    t = t.detach().float().contiguous()
    return t if t.data_ptr() % 64 == 0 else t.clone()


def _as_tensor(value: Any) -> Tensor:
    """Plain values as a tensor of JSON bytes: they are stored with the tensors, and so covered by the fingerprint."""
    return torch.tensor(list(json.dumps(value, ensure_ascii=False).encode()), dtype=torch.uint8)


def _from_tensor(encoded: Tensor) -> Any:
    return from_json(bytes(encoded.tolist()))


def _factors(name: str, up: Tensor, down: Tensor) -> None:
    """Refuse factors that are no matrices, or do not multiply."""
    if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0]:
        raise ValueError(f"{name}: expected two matrices of one rank, got {tuple(up.shape)} and {tuple(down.shape)}")


def _fits(name: str, made: Sequence[int], has: Sequence[int]) -> None:
    """Refuse a weight of another shape, which torch might broadcast."""
    if tuple(made) != tuple(has):
        raise UsageError(
            f"edit: changes {name} of shape {tuple(made)}, here it has {tuple(has)}; give the model it was made for"
        )


def flat(edit: Edit) -> list[Edit]:
    """The edits of a stack, or the edit itself."""
    return edit.edits if isinstance(edit, Stack) else [edit]


@torch.no_grad()
def _write(model: Denoiser, new: Mapping[str, Tensor]) -> None:
    for name, w in model.params(new).items():
        w.copy_(new[name])
