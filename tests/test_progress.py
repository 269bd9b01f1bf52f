"""Progress: bars on a terminal; in a file, lines with what is done, the rate and what is left."""

import io

import pytest
import torch
from rich.console import Console

from efface.progress import BarLog, LineLog, bar, duration


def test_a_file_gets_lines_now_and_then() -> None:
    now, out = 0.0, io.StringIO()
    log = LineLog(Console(file=out, width=200), every=30.0, clock=lambda: now)
    advance = log.stage("training", 100)
    for now in (10.0, 20.0, 30.0, 40.0, 60.0):  # noqa: B007, the clock reads it
        log.loss(torch.tensor(0.25))
        advance(10)
    assert out.getvalue().splitlines() == [
        "training: 30 of 100, 1.0/s, 70 s left, loss 0.2500",
        "training: 50 of 100, 0.8/s, 60 s left, loss 0.2500",
    ]
    log.stage("pictures", 5)(5)
    log.say("A sentence.")
    assert out.getvalue().splitlines()[2:] == ["A sentence."]


@pytest.mark.parametrize(("terminal", "kind"), [(True, BarLog), (False, LineLog)])
def test_what_draws_depends_on_the_console(terminal: bool, kind: type) -> None:
    with bar(Console(file=io.StringIO(), force_terminal=terminal)) as log:
        assert isinstance(log, kind)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (89.0, "89 s"), (90.0, "2 min"), (5399.0, "90 min"), (5400.0, "1.5 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
