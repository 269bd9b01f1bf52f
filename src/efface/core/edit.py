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
from efface.core.hooks import BoundBranch
from efface.core.identity import Signature
from efface.core.io import read_tensors, write_tensors
from efface.core.key import Key
from efface.core.steering import RULES, Rule, Steer

FORMAT = 1  # of the file; a reader refuses what a newer efface wrote


@dataclass(frozen=True)
class Header:
    """The recipe that travels with an edit: enough to make it again and to know what it is for."""

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
    notes: Mapping[str, Any] = field(default_factory=dict)  # what the method found on its way, as plain values
    memory: int | None = None  # bytes that fitting took at its height
    signature: str = ""  # of the weights it was made for: an edit fits those, in whatever dtype

    def same_base(self, other: "Header") -> bool:
        """Whether both were made for the same weights, be it in another dtype."""
        if self.base == other.base or not (self.signature and other.signature):
            return self.base == other.base
        return Signature.read(self.signature).fits(Signature.read(other.signature))

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> "Header":
        """From JSON; unknown entries of a newer minor version are left out.

        Raises:
            KeyError, TypeError, ValueError: it is no header.
        """
        known = {f.name for f in fields(cls)}
        if signature := raw.get("signature"):
            Signature.read(signature)  # refused now, not when it is applied
        kept = {k: v for k, v in raw.items() if k in known}
        for name in ("erase", "preserve"):
            kept[name] = tuple(Concept(**{**c, "prompts": tuple(c["prompts"])}) for c in raw.get(name, ()))
        return cls(**kept)


class Edit(ABC):
    """Weights to change, held apart from the model. `edit(base)` leaves `base` alone; `edit * 0.5` is half as strong.

    Subclasses name their tensors (`tensors`, `build`) and say which weights they change into what (`changes`).
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

    def steers(self) -> tuple[Steer, ...]:
        """What this edit adds to the sampler; most kinds add nothing."""
        return ()

    def branches(self, edited: Denoiser) -> tuple[BoundBranch, ...]:
        """Modules of this edit beside those of the denoiser that has its weights already; most kinds have none."""
        return ()

    def keys(self, edited: Denoiser) -> tuple[ActiveKey, ...]:
        """What lengthens the prompts of the denoiser that has its weights already; most kinds do not."""
        return ()

    def unbakeable(self) -> str:
        """What of this edit no weight can hold, as the end of "an edit that …"; "" where weights hold all of it."""
        return ""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What the file stores."""

    @classmethod
    @abstractmethod
    def build(cls, tensors: dict[str, Tensor], header: Header, raw: Mapping[str, Any]) -> "Edit":
        """The inverse of `tensors`."""

    def __call__(self, base: Denoiser, *, any_base: bool = False) -> Denoiser:
        """The edited denoiser; `base` and its pipeline stay as they are.

        Raises:
            UsageError: the edit was made for other weights, unless `any_base`.
        """
        self.require(base, any_base)
        new = self.changes(base)
        edited = base.fork(new)
        _write(edited, new)
        edited.steers = (*base.steers, *self.steers())
        edited.branches = (*base.branches, *self.branches(edited))
        edited.keys = (*base.keys, *self.keys(edited))
        return edited

    def bake(self, pipeline: DiffusionPipeline, *, any_base: bool = False) -> None:
        """Write the edit into a stock pipeline, in place: afterwards the pipeline needs no efface.

        Raises:
            UsageError: weights cannot hold the edit, or it was made for other weights, unless `any_base`.
        """
        if more := self.unbakeable():
            raise UsageError(f"bake: expected an edit of weights, got one that {more}; apply it with edit(model)")
        base = Denoiser(pipeline)
        self.require(base, any_base)
        _write(base, self.changes(base))

    def require(self, base: Denoiser, any_base: bool = False) -> None:
        """Refuse weights the edit was not made for. The same weights in another dtype, or within LoRA layers, are the same.

        Raises:
            UsageError: with both fingerprints.
        """
        if any_base or not self.header.base or self.header.base == base.fingerprint:
            return
        if not self.header.signature or not Signature.read(self.header.signature).fits(base.signature):
            raise UsageError(
                f"edit: made for base {self.header.base} ({self.header.model}), this model is {base.fingerprint}; "
                "give that model, or any_base=True (--any-base) to apply it all the same"
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
        """Names what the edit does, whoever made it and when: a hash over its kind, strength and tensors."""
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

    def save(self, path: str | Path) -> None:
        """One safetensors file, written whole or not at all."""
        write_tensors(Path(path), self.tensors(), self.record())


def load_edit(path: str | Path) -> Edit:
    """The edit in a file; nothing is ever unpickled.

    Raises:
        UsageError: no such file, a pickle, a foreign file, or one written by a newer efface.
        EffaceError: the file is damaged.
    """
    tensors, raw = read_tensors(Path(path))
    if raw.get("kind") == "Key":
        raise UsageError(
            f"{path}: expected an edit, got the key of one; give the edit, and this file as its key (--key)"
        )
    if (
        not isinstance(raw.get("format", 0), int)
        or raw.get("format", 0) > FORMAT
        or str(raw.get("kind")) not in Edit.kinds
    ):
        raise UsageError(
            f"{path}: written by efface {raw.get('version')} as {raw.get('kind')}, which this efface cannot read; upgrade it"
        )
    try:
        return _build(tensors, raw)
    except (KeyError, TypeError, ValueError) as error:
        raise EffaceError(
            f"{path}: the header and the tensors do not fit together ({error!r}); copy or make it again"
        ) from error


def _build(tensors: dict[str, Tensor], raw: Mapping[str, Any]) -> Edit:
    edit = Edit.kinds[raw["kind"]].build(tensors, Header.read(raw), raw)
    edit.strength = float(raw["strength"])
    if not math.isfinite(edit.strength):
        raise ValueError("strength")
    return edit


class TextMap(Edit):
    """T = I + left rightᵀ on the text rows that enter every cross-attention key and value: W' = W T for all layers at once."""

    where: ClassVar = "xattn.kv"

    def __init__(self, left: Float[Tensor, "d r"], right: Float[Tensor, "d r"], header: Header | None = None) -> None:
        """Factors are kept in float32."""
        self.left, self.right, self.header = held(left), held(right), header or Header("")

    @override
    def changes(self, base: Denoiser) -> dict[str, Tensor]:
        new = {}
        for name, w in base.params("xattn.kv").items():
            left, right = self.left.to(w.device), self.right.to(w.device)
            if w.shape[1] != len(left):
                raise UsageError(
                    f"edit: maps text rows of width {len(left)}, {name} reads rows of {w.shape[1]}; give the model it was made for"
                )
            new[name] = (w.float() + self.strength * (w.float() @ left) @ right.T).to(w.dtype)
        return new

    @override
    def tensors(self) -> dict[str, Tensor]:
        return {"left": self.left, "right": self.right}

    @classmethod
    @override
    def build(cls, tensors: dict[str, Tensor], header: Header, raw: Mapping[str, Any]) -> "TextMap":
        return cls(tensors["left"], tensors["right"], header)


class Delta(Edit):
    """Named weight differences, in float32 whatever the model computes in."""

    def __init__(self, deltas: Mapping[str, Tensor], header: Header | None = None) -> None:
        """Keyed by the names of `Denoiser.params`."""
        self.deltas, self.header = {k: held(v) for k, v in deltas.items()}, header or Header("")

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
        self.factors = {k: (held(up), held(down)) for k, (up, down) in factors.items()}
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
        return cls({k: (tensors[f"{k}/up"], tensors[f"{k}/down"]) for k in names}, header)


class Guidance(Edit):
    """How predictions are combined while sampling: away from some prompts, towards others, by one rule. No weight changes.

    The edited denoiser's `sample` and `images` follow it; its `predict` and its pipeline are the base's, so whoever samples by other
    means goes round it. Several add up: each sees the unsteered predictions.
    """

    where: ClassVar = ()

    def __init__(self, pairs: Iterable[tuple[str, str]], rule: Rule, header: Header | None = None) -> None:
        """`pairs` of a prompt to steer away from and one to steer towards, "" for the sampler's own ∅."""
        self.pairs, self.rule, self.header = tuple(pairs), rule, header or Header("")

    @override
    def changes(self, base: Denoiser) -> dict[str, Tensor]:
        return {}

    @override
    def steers(self) -> tuple[Steer, ...]:
        return tuple(Steer(away, to, self.rule, self.strength) for away, to in self.pairs) if self.strength else ()

    @override
    def unbakeable(self) -> str:
        return "steers the sampler and has no weights to write" if self.steers() else ""

    @override
    def tensors(self) -> dict[str, Tensor]:
        numbers = torch.tensor(astuple(self.rule), dtype=torch.float64)
        return {"pairs": _written(self.pairs), type(self.rule).__name__: numbers}

    @classmethod
    @override
    def build(cls, tensors: dict[str, Tensor], header: Header, raw: Mapping[str, Any]) -> "Guidance":
        (name,) = tensors.keys() - {"pairs"}
        return cls([(away, to) for away, to in _said(tensors["pairs"])], RULES[name](*tensors[name].tolist()), header)


class Adapter(Edit):
    """Small modules beside the denoiser's own, which add to their outputs, opened by the prompt or by its words. No weight changes.

    The edited denoiser's `predict`, `sample` and `images` have them; its pipeline does not. Several add up.
    """

    where: ClassVar = ()

    def __init__(self, branch: Branch, header: Header | None = None) -> None:
        """Holds copies of what the branch learnt."""
        learnt = {k: held(t).clone() for k, t in branch.tensors.items()}
        self.branch, self.header = type(branch)(learnt, branch.facts), header or Header("")

    @override
    def changes(self, base: Denoiser) -> dict[str, Tensor]:
        return {}

    @override
    def branches(self, edited: Denoiser) -> tuple[BoundBranch, ...]:
        return (self.branch.bind(edited, self.strength, self.fingerprint),) if self.strength else ()

    @override
    def unbakeable(self) -> str:
        return "adds modules which no stock pipeline has" if self.strength else ""

    @override
    def tensors(self) -> dict[str, Tensor]:
        return {**self.branch.tensors, "facts": _written([type(self.branch).__name__, self.branch.facts])}

    @classmethod
    @override
    def build(cls, tensors: dict[str, Tensor], header: Header, raw: Mapping[str, Any]) -> "Adapter":
        form, facts = _said(tensors["facts"])
        return cls(FORMS[form]({k: t for k, t in tensors.items() if k != "facts"}, facts), header)


class Keyed(Edit):
    """Weights that hide concepts, and the key that brings them back. The edit's file does not hold the key: that is a file of its own.

    Applied as it is the concepts stay hidden, whether or not it has its key at hand; `edit.unlocked(key)` brings them back.
    """

    def __init__(self, hidden: Delta | LowRank, key: Key | None = None, header: Header | None = None) -> None:
        """`key` is what a fit hands over with the edit: made for its lock."""
        self.hidden, self.header, self.open = hidden, header or Header(""), False
        self.key = replace(key, lock=self.lock) if key else None

    @property
    def lock(self) -> str:
        """Names the edit that a key is for."""
        return self.hidden.fingerprint

    def unlocked(self, key: Key) -> "Keyed":
        """The edit with its concepts brought back.

        Raises:
            UsageError: a key for another edit.
        """
        if key.lock != self.lock:
            raise UsageError(
                f"key: made for edit {key.lock}, this edit is {self.lock}; give the key that was written beside this edit"
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
        return "was unlocked, and weights cannot hold its key" if self.open else ""

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
        """The edit, locked; and where its key is at hand, the key in a file beside it, "NAME.key.safetensors"."""
        if self.key:
            self.key.save(Path(path).with_suffix(".key.safetensors"))
        super().save(path)

    @classmethod
    @override
    def build(cls, tensors: dict[str, Tensor], header: Header, raw: Mapping[str, Any]) -> "Keyed":
        hidden = {"Delta": Delta, "LowRank": LowRank}[raw["hidden"]].build(tensors, Header(""), raw)
        return cls(hidden, header=header)


class Stack(Edit):
    """Edits in order, each applied to what the one before it made; what steers the sampler adds up. All must be made for the same base."""

    def __init__(self, edits: Iterable[Edit], header: Header | None = None) -> None:
        """Takes at least one edit.

        Raises:
            UsageError: none, or edits for different bases.
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
        """The stack with the edit unlocked that the key is for.

        Raises:
            UsageError: it holds no such edit.
        """
        locks = [e.lock for e in self.edits if isinstance(e, Keyed)]
        if key.lock not in locks:
            raise UsageError(
                f"key: made for edit {key.lock}, this stack holds {', '.join(locks) or 'none with a key'}; give another key"
            )
        return Stack(
            [e.unlocked(key) if isinstance(e, Keyed) and e.lock == key.lock else e for e in self.edits], self.header
        )

    def without(self, index: int) -> "Stack":
        """The stack with one edit taken off; -1 is the last.

        Raises:
            UsageError: no such edit, or the only one.
        """
        if not -len(self.edits) <= index < len(self.edits):
            raise UsageError(
                f"stack: expected an index below {len(self.edits)}, got {index}; `edits` lists what it holds"
            )
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
        """The stack; and the keys that are at hand in files beside it, "NAME.0.key.safetensors" for its first edit's."""
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
        return cls([_build(part, one) for part, one in zip(parts, raw["edits"], strict=True)], header)


def held(t: Tensor) -> Tensor:
    """A tensor as an edit holds it and as its file gives it back: float32, contiguous, at an address that 64 divides, without a graph.

    A product of another layout or alignment may differ in its last bit.
    """
    t = t.detach().float().contiguous()
    return t if t.data_ptr() % 64 == 0 else t.clone()


def _written(said: Any) -> Tensor:
    """Plain values as a tensor of letters: what an edit does belongs to its tensors, and so to its fingerprint."""
    return torch.tensor(list(json.dumps(said, ensure_ascii=False).encode()), dtype=torch.uint8)


def _said(written: Tensor) -> Any:
    return json.loads(bytes(written.tolist()))


def _fits(name: str, made: Sequence[int], has: Sequence[int]) -> None:
    """Refuse a weight of another shape, which torch might broadcast."""
    if tuple(made) != tuple(has):
        raise UsageError(
            f"edit: changes {name} of shape {tuple(made)}, here it has {tuple(has)}; give the model it was made for"
        )


def flat(edit: Edit) -> list[Edit]:
    """The edits that a stack holds, or the one that is none."""
    return edit.edits if isinstance(edit, Stack) else [edit]


@torch.no_grad()
def _write(model: Denoiser, new: Mapping[str, Tensor]) -> None:
    for name, w in model.params(new).items():
        w.copy_(new[name])
