"""Peak memory of a piece of work."""

import contextlib
import ctypes
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

SELF = Path("/proc/self")


@dataclass
class Peak:
    """Peak bytes above those in use at the start; None where the system does not report them."""

    bytes: int | None = None


@contextlib.contextmanager
def peak(device: torch.device) -> Iterator[Peak]:
    """A context that measures the peak memory of its body: a GPU's allocations, or this process's resident memory (Linux only).

    Memory that earlier work freed and the allocator kept is returned to the system first: else the body would reuse it uncounted.
    """
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
        (SELF / "clear_refs").write_text("5")  # resets the high-water mark
        return _resident("VmRSS")
    except OSError:  # another system, or one that forbids it
        return None


def _trim() -> None:
    """Make glibc return freed memory to the system; other C libraries neither have nor need this call."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _resident(what: str) -> int:
    found = re.search(rf"{what}:\s+(\d+) kB", (SELF / "status").read_text())
    if not found:
        raise OSError(f"{SELF / 'status'} has no {what}")
    return 1024 * int(found[1])
