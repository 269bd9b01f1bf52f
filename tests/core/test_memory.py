"""Memory at its height, against blocks of known size."""

import sys
from pathlib import Path

import pytest
import torch

from efface.core import memory
from efface.core.memory import peak

MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a stretch of time")
def test_it_sees_what_was_taken_and_given_back() -> None:
    for size in (64, 256):  # far above what an allocator may have lying about
        with peak(torch.device("cpu")) as found:
            block = torch.ones(size * MIB // 4)
            del block
        if found.bytes is None:
            pytest.skip("this system does not let a process reset its high-water mark")
        assert 0.9 * size < found.bytes / MIB < 1.1 * size + 16


def test_an_earlier_height_does_not_count() -> None:
    block = torch.ones(256 * MIB // 4)
    del block
    with peak(torch.device("cpu")) as found:
        pass
    assert (found.bytes or 0) < 16 * MIB


def test_where_the_system_does_not_tell_it_says_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "SELF", tmp_path / "nowhere")
    with peak(torch.device("cpu")) as found:
        pass
    assert found.bytes is None
