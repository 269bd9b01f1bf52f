"""Files: safetensors only, written aside and renamed, read with a sentence for everything that can be wrong."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from efface.core.errors import EffaceError, UsageError

KEY = "efface"  # the metadata entry that holds an edit's header


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: a reader sees the old file or the new one.

    Raises:
        EffaceError: the folder cannot be made or written, or the disk is full.
    """
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        part = Path(name)
        write(part)
        part.chmod(0o666 & ~_umask())
        part.replace(path)
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        why = "no space left on the disk; free some or write elsewhere" if full else f"{error}; write elsewhere"
        raise EffaceError(f"{path}: cannot be written: {why} (nothing was changed)") from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def replace_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary folder beside `path`, then rename it.

    Raises:
        UsageError: `path` exists and is no empty folder: nothing of the user's is overwritten.
        EffaceError: it cannot be written.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise UsageError(f"{path}: exists already; give a new folder, or empty this one")
    part = path.with_name(f".{path.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        write(part)
        if path.is_dir():
            path.rmdir()
        part.replace(path)
    except (OSError, SafetensorError) as error:
        raise EffaceError(
            f"{path}: cannot be written: {error}; free some space or write elsewhere (nothing was changed)"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    replace_file(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Tensors and a JSON header as one safetensors file, whole or not at all."""
    flat = {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}
    replace_file(path, lambda part: save_file(flat, part, metadata={KEY: json.dumps(header)}))


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
            metadata, tensors = f.metadata() or {}, {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
        header = json.loads(metadata.get(KEY, "{}"))
    except (SafetensorError, ValueError) as error:
        with path.open("rb") as f:  # only now: a header of 128 bytes starts like a pickle
            start = f.read(2)
        if start == b"PK" or start[:1] == b"\x80":
            raise UsageError(
                f"{path}: this is a pickle (.pt, .ckpt, .bin), which can run code; efface reads safetensors only"
            ) from None
        raise EffaceError(f"{path}: damaged or no safetensors file ({error}); copy or make it again") from error
    if KEY not in metadata:
        raise UsageError(
            f"{path}: a safetensors file, but not an edit of efface (no {KEY!r} header); give one `efface erase` wrote"
        )
    return tensors, header
