"""How much memory a piece of work takes at its height."""

import contextlib
import ctypes
import gc
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

SELF = Path("/proc/self")


@dataclass
class Peak:
    """Bytes at the height of it above those in use when it began; None where the system does not tell."""

    bytes: int | None = None


@contextlib.contextmanager
def peak(device: torch.device) -> Iterator[Peak]:
    """Within it memory is watched: a GPU's own, or what this process has resident (Linux alone tells that for a stretch of time).

    What earlier work freed and the allocator kept is given back first: else this work would use it and seem to need nothing.
    """
    gc.collect()
    _trim()
    found, before = Peak(), _start(device)
    yield found
    if before is not None:
        high = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM")
        found.bytes = max(0, high - before)


def _start(device: torch.device) -> int | None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        (SELF / "clear_refs").write_text("5")  # the high-water mark begins anew
        return _resident("VmRSS")
    except OSError:  # another system, or one that forbids it
        return None


def _trim() -> None:
    """Have glibc return freed memory to the system; other C libraries have no such call, nor need it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _resident(what: str) -> int:
    found = re.search(rf"{what}:\s+(\d+) kB", (SELF / "status").read_text())
    if not found:
        raise OSError(f"{SELF / 'status'} has no {what}")
    return 1024 * int(found[1])
