"""Identity of a model: an exact fingerprint that identifies it in stores, and a tolerant signature that decides if an edit fits.

A fingerprint is a SHA-256 over every tensor of every part, the parts' configurations, the scheduler's and the tokenizer: two models
that can differ in one picture never share it. A signature is a random projection of the weights that an edit can change: it is equal
up to the rounding of a dtype, and does not depend on wrappers of layers.
"""

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from efface.core.errors import EffaceError
from efface.core.files import from_json, write_text

BUCKETS = 64  # numbers of a signature
ROW = 4096  # values that one pattern of signs covers
SAFE = 6.0  # standard deviations of rounding that still count as the same weights
EXACT = 1e-4  # of a tensor's norm: what the order of a float32 sum may change on another processor
WRAPPERS = re.compile(r"(^|\.)(_orig_mod|base_layer)(?=\.)")  # of torch.compile and of LoRA layers
ADDED = re.compile(r"\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)\b")
NOT_HASHED = {
    "transformers_version",
    "dtype",
    "torch_dtype",
    "architectures",
}  # of a configuration: they change no picture by themselves

_digests: WeakIdKeyDictionary = (
    WeakIdKeyDictionary()
)  # tensor -> (when it was written, its digest): hashed once in a process


# -- fingerprints --------------------------------------------------------------------------------------------------


def fingerprint(parts: Mapping[str, nn.Module], facts: Iterable[object]) -> str:
    """Identifies a model: 16 hex digits of a SHA-256 over its parts' tensors and configurations, and over `facts`.

    Raises:
        EffaceError: weights are not in memory.
    """
    digest = hashlib.sha256()
    for name, one in sorted(digests(tensors(parts)).items()):
        digest.update(f"{name} {one}\n".encode())
    for part, module in sorted(parts.items()):
        digest.update(f"{part} {canonical(configuration(getattr(module, 'config', {})))}\n".encode())
    for fact in facts:
        digest.update(f"{canonical(fact)}\n".encode())
    return digest.hexdigest()[:16]


def digests(given: Mapping[str, Tensor]) -> dict[str, str]:
    """A SHA-256 of each tensor's shape, dtype and bytes. A tensor is hashed again only after an operation has written to it.

    Torch does not count writes through `tensor.data`, so these are missed: give such a tensor new storage instead.

    Raises:
        EffaceError: a tensor is not in memory.
    """
    if missing := next((name for name, t in given.items() if t.is_meta), None):
        raise EffaceError(
            f"model: expected weights in memory, got {missing} on the device 'meta' (offloaded to disk or CPU); "
            "load it without sequential offload"
        )
    todo = {id(t): t for t in given.values() if t not in _digests or _digests[t][0] != _written(t)}
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for t, one in zip(todo.values(), pool.map(_digest, todo.values()), strict=True):
            _digests[t] = (_written(t), one)
    return {name: _digests[t][1] for name, t in given.items()}


def _written(t: Tensor) -> tuple[int, int]:
    """A tensor's version counter and address."""
    return t._version, t.data_ptr()


def _digest(t: Tensor) -> str:
    digest = hashlib.sha256(f"{tuple(t.shape)} {t.dtype}".encode())
    digest.update(cast(Any, t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def tensors(parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Parameters and buffers of all parts, by the names they have without torch.compile."""
    return {
        f"{part}.{name}".replace("_orig_mod.", ""): t
        for part, module in parts.items()
        for name, t in (*module.named_parameters(), *module.named_buffers())
    }


def configuration(config: Any) -> dict[str, Any]:
    """The entries of a part's or scheduler's configuration that can change a picture."""
    given = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {k: v for k, v in given.items() if not k.startswith("_") and k not in NOT_HASHED}


def tokenizer(given: Any) -> list[Any]:
    """Everything that decides a tokenizer's output: its model, added tokens and length, without the padding of its latest call."""
    length = [given.model_max_length, given.padding_side, given.pad_token_id, given.bos_token_id, given.eos_token_id]
    if (fast := getattr(given, "backend_tokenizer", None)) is not None:
        state = json.loads(fast.to_str())
        return [length, hashlib.sha256(canonical({**state, "padding": None, "truncation": None}).encode()).hexdigest()]
    merges = getattr(given, "bpe_ranks", None) or {}
    return [length, sorted(given.get_vocab().items()), sorted((rank, *pair) for pair, rank in merges.items())]


def canonical(fact: object) -> str:
    """JSON with sorted keys, equal for equal values; arrays become lists, other objects strings."""
    return json.dumps(
        fact, sort_keys=True, ensure_ascii=False, default=lambda v: v.tolist() if hasattr(v, "tolist") else str(v)
    )


# -- kept by file --------------------------------------------------------------------------------------------------


def remember(folder: Path, dtype: torch.dtype, parts: Mapping[str, nn.Module]) -> None:
    """Read the digests of a folder's tensors from the cache, or write them to it; the cache key has file names, sizes and times.

    Args:
        folder: the folder that the tensors were just loaded from.
        dtype: the dtype they were loaded in.
        parts: the networks that have these tensors.
    """
    files = [
        (str(f.relative_to(folder)), f.stat().st_size, f.stat().st_mtime_ns)
        for f in sorted(folder.rglob("*"))
        if f.is_file()
    ]
    key = hashlib.sha256(canonical([str(folder.resolve()), str(dtype), files]).encode()).hexdigest()[:32]
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "efface" / "digests" / f"{key}.json"
    try:
        known = from_json(path.read_bytes())
    except (OSError, ValueError):
        known = {}
    here = tensors(parts)
    if isinstance(known, dict) and known.keys() == here.keys():
        for name, t in here.items():
            _digests[t] = (_written(t), known[name])
        return
    try:
        write_text(path, json.dumps(digests(here)))
    except EffaceError:  # a home that cannot be written: hashed again next time
        return


# -- signatures ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Signature:
    """Signature of weights: a hash of their names and shapes, their coarsest dtype, and their projections by bucket."""

    layout: str
    dtype: str
    counts: tuple[int, ...]  # tensors of each bucket
    values: tuple[float, ...]

    def fits(self, other: "Signature") -> bool:
        """Whether both are of the same weights, up to rounding to the coarser of the two dtypes."""
        if (self.layout, self.counts) != (other.layout, other.counts):
            return False
        eps = max(torch.finfo(getattr(torch, one.dtype)).eps for one in (self, other))
        # rounding is off by up to eps/2 of each value, evenly: eps/√12 in the root mean square, of a projection as of a norm
        unit = max(SAFE * eps / 12**0.5 if eps > EXACT else 0.0, EXACT)
        apart = np.abs(np.array(self.values) - np.array(other.values))
        return bool((apart <= unit * np.sqrt(np.array(self.counts))).all())

    def written(self) -> str:
        """The signature as a string for an edit's header."""
        counts, values = np.array(self.counts, "<u2"), np.array(self.values, "<f4")
        return f"{self.layout}:{self.dtype}:{base64.b64encode(counts.tobytes() + values.tobytes()).decode()}"

    @classmethod
    def read(cls, text: str) -> "Signature":
        """The inverse of `written`.

        Raises:
            ValueError: the text is not a signature.
        """
        layout, dtype, numbers = text.split(":")
        raw = base64.b64decode(numbers, validate=True)
        if len(raw) != 6 * BUCKETS or not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ValueError("signature")
        counts, values = np.frombuffer(raw[: 2 * BUCKETS], "<u2"), np.frombuffer(raw[2 * BUCKETS :], "<f4")
        return cls(layout, dtype, tuple(counts.tolist()), tuple(values.tolist()))


def signature(parts: Mapping[str, nn.Module]) -> Signature:
    """Σ ± w / |w| over each tensor w, with fixed random signs, summed by bucket: it changes by δ if a tensor changes by δ of its norm.

    Wrappers are removed from the names of layers, and LoRA factors are ignored.

    Raises:
        EffaceError: weights are not in memory.
    """
    tensors = {
        f"{part}.{WRAPPERS.sub(r'', name)}".replace("..", "."): p
        for part, module in parts.items()
        for name, p in module.named_parameters()
        if not ADDED.search(name)
    }
    if missing := next((name for name, t in tensors.items() if t.is_meta), None):
        raise EffaceError(
            f"model: expected weights in memory, got {missing} on the device 'meta'; load it without sequential offload"
        )
    layout, counts, values = hashlib.sha256(), np.zeros(BUCKETS, int), np.zeros(BUCKETS)
    kinds = {p.dtype for p in tensors.values() if p.is_floating_point()} or {torch.float32}
    if kinds == {torch.float32}:  # weights of a narrower file, loaded as float32, are as coarse as they were there
        kinds |= {kind for kind in (torch.float16, torch.bfloat16) if _rounded_to(tensors.values(), kind)}
    for name, p in sorted(tensors.items()):
        layout.update(f"{name}{tuple(p.shape)}".encode())
        bucket = hashlib.sha256(name.encode()).digest()[0] % BUCKETS
        counts[bucket] += 1
        values[bucket] += _projection(p)
    coarsest = max(kinds, key=lambda kind: torch.finfo(kind).eps)
    dtype = str(coarsest).removeprefix("torch.")
    return Signature(layout.hexdigest()[:16], dtype, tuple(counts.tolist()), tuple(values.tolist()))


@torch.no_grad()
def _rounded_to(tensors: Iterable[Tensor], kind: torch.dtype) -> bool:
    """Whether every value is one of this dtype's; the first weight that is not ends it, a few thousand values into a float32 model."""
    for p in tensors:
        for part in p.detach().reshape(-1).split(ROW * ROW):
            if not torch.equal(part.to(kind).to(part.dtype), part):
                return False
    return True


@torch.no_grad()
def _projection(p: Tensor) -> float:
    """± w / |w| for random signs: row after row by one pattern, and rows by another."""
    flat, total, square = p.detach().reshape(-1), 0.0, 0.0
    signs, rows = _signs(p.device)
    for i, part in enumerate(flat.split(ROW * ROW)):
        part = part.float()
        whole = part[: len(part) // ROW * ROW].view(-1, ROW)
        last = part[whole.numel() :]
        sums = torch.cat([whole @ signs, (last @ signs[: len(last)])[None]]).double()
        total += float((-1) ** i * (sums * rows[: len(sums)]).sum())
        square += float(part.square().sum(dtype=torch.float64))
    return total / square**0.5 if square else 0.0


@cache
def _signs(device: torch.device) -> tuple[Tensor, Tensor]:
    drawn = torch.randint(2, (2 * ROW + 1,), generator=torch.Generator().manual_seed(0)).mul(2).sub(1).to(device)
    return drawn[:ROW].float(), drawn[ROW:].double()
