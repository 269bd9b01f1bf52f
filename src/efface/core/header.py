"""The recipe in an edit's file, and how it is read without its tensors: nothing here needs torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from efface.core.concept import Concept
from efface.core.errors import EffaceError, UsageError

KEY = "efface"  # the metadata entry that holds an edit's header


@dataclass(frozen=True)
class Header:
    """The recipe that travels with an edit: enough to make it again and to know what it is for."""

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    erase: tuple[Concept, ...] = ()
    preserve: tuple[str, ...] = ()
    base: str = ""  # fingerprint of the weights it was made for
    model: str = ""  # what the user called that model
    seed: int = 0
    version: str = ""
    created: str = ""
    seconds: float = 0.0
    notes: Mapping[str, Any] = field(default_factory=dict)  # what the method found on its way, as plain values
    memory: int | None = None  # bytes that fitting took at its height

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> "Header":
        """From JSON; unknown entries of a newer minor version are left out."""
        known = {f.name for f in fields(cls)}
        kept = {k: v for k, v in raw.items() if k in known}
        kept["erase"] = tuple(Concept(**{**c, "prompts": tuple(c["prompts"])}) for c in raw.get("erase", ()))
        return cls(**{**kept, "preserve": tuple(raw.get("preserve", ()))})


def read_header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """Shapes of the tensors and JSON header of a file that efface wrote; no tensor is read.

    Raises:
        UsageError: no such file, a pickle, or a safetensors file that is not efface's.
        EffaceError: the file is damaged.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give the path of a .safetensors file that efface wrote")
    try:
        with safe_open(path, "np") as f:
            metadata = f.metadata() or {}
            shapes = {k: tuple(f.get_slice(k).get_shape()) for k in f.keys()}  # noqa: SIM118
        header = json.loads(metadata.get(KEY, "{}"))
    except (SafetensorError, ValueError, RecursionError) as error:
        with path.open("rb") as f:  # only now: a header of 128 bytes starts like a pickle
            start = f.read(2)
        if start == b"PK" or start[:1] == b"\x80":
            raise UsageError(
                f"{path}: this is a pickle (.pt, .ckpt, .bin), which can run code; efface reads safetensors only"
            ) from None
        raise EffaceError(f"{path}: damaged or no safetensors file ({error}); copy or make it again") from error
    if not isinstance(header, dict):
        raise EffaceError(f"{path}: damaged (its header is no table); copy or make it again")
    if KEY not in metadata:
        raise UsageError(
            f"{path}: a safetensors file, but not an edit of efface (no {KEY!r} header); give one `efface erase` wrote"
        )
    return shapes, header
