"""Tensor files: safetensors only, written whole or not at all, read with a sentence for everything that can be wrong."""

import contextlib
import errno
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from efface.core.errors import EffaceError, UsageError
from efface.core.files import replace_file, replace_folder

KEY = "efface"  # the metadata entry that holds an edit's header


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Tensors and a JSON header as one safetensors file, whole or not at all."""
    flat = {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}

    def write(part: Path) -> None:
        with _disk_errors():
            save_file(flat, part, metadata={KEY: json.dumps(header)})

    replace_file(path, write)


def write_pipeline(path: Path, pipeline: DiffusionPipeline) -> None:
    """A pipeline as a diffusers folder, whole or not at all; `path` is new or empty."""

    def write(part: Path) -> None:
        with _disk_errors():
            pipeline.save_pretrained(part)

    replace_folder(path, write)


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """What safetensors calls its own errors is mostly the disk's."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(errno.ENOSPC if "No space left" in str(error) else errno.EIO, str(error)) from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and JSON header of a file that `write_tensors` wrote.

    Raises:
        UsageError: no such file, a pickle, or a safetensors file that is not efface's.
        EffaceError: the file is damaged.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give the path of a .safetensors file that efface wrote")
    try:
        with safe_open(path, "pt") as f:
            # copied: a mapped file's tensors lie where its header ends, and BLAS may add in another order there than in aligned memory
            metadata, tensors = f.metadata() or {}, {k: f.get_tensor(k).clone() for k in f.keys()}  # noqa: SIM118
        header = json.loads(metadata.get(KEY, "{}"))
    except (SafetensorError, ValueError) as error:
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
    return tensors, header
