"""Memory at its height, against blocks of known size."""

import os
from pathlib import Path

import pytest
import torch

from efface.core import memory
from efface.core.memory import peak

MIB = 2**20


telling = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="this system tells no peak of a stretch of time"
)


@telling
def test_it_sees_what_was_taken_and_given_back() -> None:
    for size in (64, 256):  # far above what an allocator may have lying about
        with peak(torch.device("cpu")) as found:
            block = torch.ones(size * MIB // 4)
            del block
        assert found.bytes is not None
        assert 0.9 * size < found.bytes / MIB < 1.1 * size + 16


@telling
def test_an_earlier_height_does_not_count() -> None:
    block = torch.ones(256 * MIB // 4)
    del block
    with peak(torch.device("cpu")) as found:
        pass
    assert found.bytes is not None
    assert found.bytes < 16 * MIB


@telling
def test_the_same_work_takes_as_much_again_after_much_other_work() -> None:
    """Small blocks stay with the allocator when they are freed: work that reuses them must not seem to need nothing."""

    def work() -> int:
        with peak(torch.device("cpu")) as found:
            blocks = [
                torch.ones(10_000) for _ in range(2000)
            ]  # 76 MiB, each below the size that the system takes back at once
            assert len(blocks) == 2000
            del blocks
        assert found.bytes is not None
        return found.bytes

    first, again = work(), work()
    assert 60 * MIB < first < 110 * MIB
    assert again == pytest.approx(first, rel=0.15)


def test_where_the_system_does_not_tell_it_says_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "SELF", tmp_path / "nowhere")
    with peak(torch.device("cpu")) as found:
        pass
    assert found.bytes is None
