"""Atomic writing of files and folders: under a temporary name first, then renamed. Nothing here needs torch."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from efface.core.errors import EffaceError, UsageError

FILES = (errno.EEXIST, errno.ENOTDIR)  # how systems say that a folder in a path is a file


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a temporary file in the folder of `path`, then rename it: a reader sees the old file or the new one.

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
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def replace_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a temporary folder next to `path`, then rename it.

    Raises:
        UsageError: `path` exists and is not an empty folder: user files are never overwritten.
        EffaceError: it cannot be written.
    """
    refuse_folder(path)
    part = None
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.absolute().parent))
        write(part)
        part.chmod(0o777 & ~_umask())
        if path.is_dir():
            path.rmdir()
        part.rename(path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another process was quicker
            raise UsageError(f"{path}: exists already; give a new folder, or empty this one") from error
        raise _unwritable(path, error) from error
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def refuse_folder(path: Path) -> None:
    """Refuse, before long work, a folder with files in it, or one that cannot be written.

    Raises:
        UsageError: `path` exists and is not an empty folder.
        EffaceError: the folder around it cannot be made or written.
    """
    try:
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise UsageError(f"{path}: exists already; give a new folder, or empty this one")
        _try(path.absolute())
    except OSError as error:
        raise _unwritable(path, error) from error


def writable_folder(path: Path) -> None:
    """Refuse, before long work, a folder that cannot be made or written; files in it may stay.

    Raises:
        UsageError: `path`, or a part of it, is a file.
        EffaceError: the folder cannot be made or written.
    """
    try:
        _try(path / "file")
    except OSError as error:
        raise _unwritable(path, error) from error


def writable(path: Path, ours: Callable[[Path], bool] = lambda path: True) -> None:
    """Refuse, before long work, a path that cannot be written, or a file there that efface did not write.

    Args:
        path: of the file to be.
        ours: whether the file that is there is one that this command wrote before.

    Raises:
        UsageError: `path` is a folder, or a file of somebody else.
        EffaceError: its folder cannot be made or written.
    """
    try:
        if path.is_dir():
            raise UsageError(f"{path}: expected a file's name, got a folder; give a name in it")
        if path.is_file() and path.stat().st_size and not ours(path):
            raise UsageError(
                f"{path}: exists, and this command did not write it; give another name, or delete it first"
            )
        _try(path)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> EffaceError:
    """Why nothing can be written to `path`, and what to do."""
    if file := next((part for part in (path, *path.parents) if part.is_file()), None) if error.errno in FILES else None:
        return UsageError(f"{path}: cannot be written: {file} is a file, not a folder; give a path in a folder")
    full = error.errno == errno.ENOSPC
    why = "no space left on the disk; free some or write elsewhere" if full else f"{error}; write elsewhere"
    return EffaceError(f"{path}: cannot be written: {why} (nothing was changed)")


def _try(path: Path) -> None:
    """Write and delete a file in the folder of `path`, or in the nearest one around it that is there."""
    near = next(folder for folder in path.absolute().parents if folder.exists())
    handle, trial = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".trial", dir=near)
    os.close(handle)
    Path(trial).unlink()


def mentions(word: bytes) -> Callable[[Path], bool]:
    """Whether a file has `word` near its start or end, where efface's pages and pictures name their maker."""

    def check(path: Path) -> bool:
        data = path.read_bytes()
        return word in data[:8192] or word in data[-8192:]

    return check


def read_text(path: Path) -> str:
    """Text of a user's file.

    Raises:
        UsageError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: expected text in UTF-8, got other bytes; save it as UTF-8") from error


def from_json(data: str | bytes) -> Any:
    """What JSON of a file that others may have changed holds.

    Raises:
        ValueError: it is no JSON, not UTF-8, or nested deeper than Python's stack.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    replace_file(path, lambda part: part.write_text(text, encoding="utf-8"))
