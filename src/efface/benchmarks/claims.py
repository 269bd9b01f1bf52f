"""Claims: which process works on which cell of a store. They save work; two processes that make the same cell write the same bytes.

A claim is a file with its owner and the time it was last renewed. A thread renews the claims of this process while it works, so that
work may take longer than a lease. A claim of this machine ends with its process, one of another machine a lease after it was last
renewed: then whoever wants the cell takes it over. Nobody deletes a claim that is another's by now.
"""

import contextlib
import json
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from efface.core.errors import EffaceError
from efface.core.files import from_json, replace_file

LEASE = 3600.0  # seconds after which a claim by another host that nobody renewed counts as abandoned
RENEW = 300.0  # seconds between two renewals

Record = dict[str, Any]


class Claims:
    """The claims in one folder of a file system of fsspec's."""

    def __init__(self, fs: Any, root: str, local: bool) -> None:
        """Nothing is read or written yet."""
        self.fs, self.root, self.local = fs, root, local
        self._mine: dict[str, Record] = {}  # by path
        self._lock, self._thread = threading.Lock(), None

    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[bool]:
        """Whether this process may work on `name` while the block runs; what a dead process claimed is taken over."""
        path = f"{self.root}/{name}.json"
        record = self._take(path)
        try:
            yield record is not None
        finally:
            if record is not None:
                with self._lock:
                    self._mine.pop(path, None)
                self._remove(path, record)

    def abandoned(self, path: str) -> bool:
        """Whether nobody works on a claim any more."""
        owner = self._read(path)
        return owner is None or _ended(owner)

    def drop(self, path: str) -> None:
        """Delete a claim if nobody works on it any more."""
        if (owner := self._read(path)) is not None and _ended(owner):
            self._remove(path, owner)

    def renew(self) -> None:
        """Tell other hosts that this process is still at work; a claim that another took over is let go."""
        with self._lock:
            for path, record in list(self._mine.items()):
                if not _same(self._read(path), record):
                    del self._mine[path]
                    continue
                record["at"] = time.time()
                self._write(path, json.dumps(record).encode())

    def _take(self, path: str) -> Record | None:
        pid = os.getpid()
        record = {
            "host": socket.gethostname(), "pid": pid, "born": born(pid), "at": time.time(), "claim": uuid.uuid4().hex,
        }  # fmt: skip
        for _ in range(2):
            try:
                self._create(path, json.dumps(record).encode())
            except FileExistsError:
                if not self.abandoned(path):
                    return None
                self.drop(path)
                continue
            with self._lock:
                self._mine[path] = record
                if self._thread is None:
                    self._thread = threading.Thread(target=self._keep_renewing, daemon=True)
                    self._thread.start()
            return record
        return None

    def _keep_renewing(self) -> None:
        """Until nothing is held; a full disk or a lost connection is tried again next time."""
        while True:
            time.sleep(RENEW)
            with self._lock:
                if not self._mine:
                    self._thread = None
                    return
            with contextlib.suppress(OSError, EffaceError):
                self.renew()

    def _remove(self, path: str, record: Record) -> None:
        """Delete a claim if it is still this one."""
        if _same(self._read(path), record):
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm_file(path)

    def _read(self, path: str) -> Record | None:
        """The claim at `path`, None where there is none; what is no claim has no owner."""
        try:
            found = from_json(self.fs.cat_file(path))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, path: str, data: bytes) -> None:
        if self.local:
            replace_file(Path(path), lambda part: part.write_bytes(data))
        else:
            self.fs.pipe_file(path, data)

    def _create(self, path: str, data: bytes) -> None:
        """Make a file with its contents, or raise FileExistsError: never an empty or a half one."""
        if not self.local:
            self.fs.pipe_file(path, data, mode="create")
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=Path(path).parent, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as f:
                f.write(data)
            os.link(part, path)
        finally:
            os.unlink(part)


def _same(one: Record | None, other: Record) -> bool:
    """Whether both are the same claim, whenever it was renewed."""
    return one is not None and one.get("claim") == other.get("claim") and one.get("pid") == other.get("pid")


def _ended(owner: Record) -> bool:
    pid, at = owner.get("pid"), owner.get("at")
    if owner.get("host") == socket.gethostname():
        return not isinstance(pid, int) or born(pid) != owner.get("born", "unknown")
    return not isinstance(at, int | float) or time.time() - at > LEASE


def born(pid: int) -> str | None:
    """When a process of this machine started, as the kernel counts; None when it is dead. A pid alone may be another's by now."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else rest[18]  # a zombie works on nothing
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    try:  # no /proc: macOS, Windows
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return "alive"
