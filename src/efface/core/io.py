"""Reading and writing of tensor files: safetensors only, written atomically, with a clear message for every damaged file."""

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

from efface.core.files import replace_file, replace_folder, writable
from efface.core.header import KEY, read_header, wrote


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header as one safetensors file, atomically.

    Raises:
        UsageError: a file that efface did not write is there.
        EffaceError: it cannot be written.
    """
    writable(path, lambda there: wrote(there) not in ("", "LoRA"))
    flat = {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}

    def write(part: Path) -> None:
        with _disk_errors():
            save_file(flat, part, metadata={KEY: json.dumps(header)})

    replace_file(path, write)


def write_pipeline(path: Path, pipeline: DiffusionPipeline, variant: str | None = None) -> None:
    """Write a pipeline as a diffusers folder, atomically; `path` is new or empty; `variant` is a part of the weight files' names."""

    def write(part: Path) -> None:
        with _disk_errors():
            pipeline.save_pretrained(part, variant=variant)

    replace_folder(path, write)


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """Reports safetensors' errors as disk errors, which most of them are."""
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
    shapes, header = read_header(path)
    with safe_open(path, "pt") as f:
        # copied: a mapped file's tensors lie where its header ends, and BLAS may add in another order there than in aligned memory
        return {k: f.get_tensor(k).clone() for k in shapes}, header
