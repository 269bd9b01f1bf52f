"""Reads the JSON header of a file that efface wrote, without its tensors and without torch."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from efface.core.errors import EffaceError, UsageError
from efface.core.files import from_json

KEY = "efface"  # the metadata entry that holds an edit's header


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
        header = from_json(metadata.get(KEY, "{}"))
    except (SafetensorError, ValueError) as error:
        with path.open("rb") as f:  # only now: a header of 128 bytes starts like a pickle
            start = f.read(2)
        if start == b"PK" or start[:1] == b"\x80":
            raise UsageError(
                f"{path}: this is a pickle (.pt, .ckpt, .bin), which can run code; efface reads safetensors only"
            ) from None
        raise EffaceError(f"{path}: damaged, or not a safetensors file ({error}); copy or make it again") from error
    if not isinstance(header, dict):
        raise EffaceError(f"{path}: damaged (its header is not a JSON object); copy or make it again")
    if KEY not in metadata:
        raise UsageError(
            f"{path}: a safetensors file, but not an edit of efface (no {KEY!r} header); give one `efface erase` wrote"
        )
    return shapes, header


def wrote(path: Path) -> str:
    """What efface wrote there: the kind of an edit, "Key", "Attempt", "LoRA" for an export, "training"; "" for anything else."""
    try:
        with safe_open(path, "np") as f:
            metadata = f.metadata() or {}
        if "efface.recipe" in metadata:
            return "LoRA"
        header = from_json(metadata.get(KEY, "null"))
    except (SafetensorError, OSError, ValueError):
        return ""
    return str(header.get("kind", "training")) if isinstance(header, dict) else ""
