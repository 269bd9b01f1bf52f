"""Trainings, watched: which predictions each loss was made of, and where a run was cut off."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor

from efface.core.denoiser import Cond, Denoiser
from efface.core.log import Log

Fitted = TypeVar("Fitted")


@dataclass
class Call:
    """One call of predict."""

    model: Denoiser
    x: Tensor
    t: Tensor
    ids: Tensor
    rows: Tensor
    out: np.ndarray
    learns: bool  # whether gradients were asked for


class Watch(Log):
    """Losses of a training, and every prediction since the one before; `stop` interrupts it after that many."""

    def __init__(
        self, calls: list[Call] | None = None, checkpoint: Path | None = None, stop: int | None = None
    ) -> None:
        super().__init__(checkpoint)
        self.calls, self.stop = [] if calls is None else calls, stop
        self.losses: list[float] = []
        self.used: list[list[Call]] = []
        self.advanced: list[int] = []  # the first is the step that training started from

    def stage(self, name: str, total: int) -> Callable[[int], None]:
        return self.advanced.append

    def loss(self, value: Tensor) -> None:
        self.losses.append(float(value))
        self.used.append(self.calls.copy())
        self.calls.clear()
        if len(self.losses) == self.stop:
            raise KeyboardInterrupt


def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """A log that sees every prediction."""
    calls: list[Call] = []
    predict = Denoiser.predict

    def noted(self: Denoiser, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        out = predict(self, x, t, cond)
        asked = cond.expand(len(x))
        learns, rows = torch.is_grad_enabled(), asked.tokens.detach()
        calls.append(Call(self, x, t, asked.ids, rows, out.detach().double().numpy(), learns))
        return out

    monkeypatch.setattr(Denoiser, "predict", noted)
    return Watch(calls)


def texts(base: Denoiser, known: list[str], ids: Tensor) -> list[str]:
    """The prompts that token ids are of, among known ones."""
    rows = {tuple(row.tolist()): text for text, row in zip(known, base.embed(known).ids, strict=True)}
    return [rows[tuple(row.tolist())] for row in ids]


class Kept(Watch):
    """Copies its checkpoint after so many losses: what a run that is killed there leaves behind."""

    def __init__(self, checkpoint: Path, stop: int) -> None:
        super().__init__(None, checkpoint)
        self.stop_at, self.copy = stop, checkpoint.with_name("kept.safetensors")

    def loss(self, value: Tensor) -> None:
        super().loss(value)
        if len(self.losses) == self.stop_at:
            shutil.copy(self.checkpoint, self.copy)  # pyright: ignore[reportArgumentType]


def killed_and_resumed(fit: Callable[[Log], Fitted], path: Path, stop: int, start: int) -> tuple[Fitted, Fitted, Path]:
    """What a training gives straight through, what it gives continued by one that was killed in its step `stop`, and the checkpoint's copy.

    Both come from one training, so that its steps are taken once. Ctrl-C, which leaves the same checkpoint, is said once for all
    methods in tests/core/test_train.py, and for the command line in tests/cli/test_cli.py.
    """
    first = Kept(path, stop)
    straight = fit(first)
    assert not path.exists()
    spare = shutil.copy(first.copy, path.with_name("spare.safetensors"))
    log = Watch(None, first.copy)
    resumed = fit(log)
    assert log.advanced[0] == start
    assert len(log.losses) == len(first.losses) - start
    assert not first.copy.exists()
    return straight, resumed, spare
