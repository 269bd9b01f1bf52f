"""Trainings, watched: which predictions each loss was made of, and where a run was cut off."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from efface.core.denoiser import Cond, Denoiser
from efface.core.log import Log


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


def interrupted_and_resumed(fit: Callable[[Log], object], path: Path, stop: int, start: int) -> tuple[object, object]:
    """What a training gives straight through, and what it gives cut off before its step `stop` ends and continued at `start`."""
    straight = fit(Log())
    with pytest.raises(KeyboardInterrupt):
        fit(Watch(None, path, stop=stop))
    log = Watch(None, path)
    resumed = fit(log)
    assert log.advanced[0] == start
    assert not path.exists()
    return straight, resumed
