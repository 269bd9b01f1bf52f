"""Progress of a stage, with rate, remaining time and the latest loss: bars on a terminal, lines in a file."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from efface.core.log import Log

if TYPE_CHECKING:  # the command line makes a bar before it imports torch
    from torch import Tensor


class Rate(ProgressColumn):
    """Finished units a second."""

    def render(self, task: Task) -> Text:
        """The rate of `task`."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "")


class BarLog(Log):
    """A Log that draws progress bars, from its first stage on."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.progress, self.task = progress, None

    def stage(self, name: str, total: int) -> Callable[[int], None]:
        """Begin a bar; stages follow one another."""
        self.progress.start()
        self.task = task = self.progress.add_task(name, total=total, loss="")
        return lambda n: self.progress.update(task, advance=n)

    def say(self, sentence: str) -> None:
        """Print it, above the bars if there are any."""
        self.progress.console.print(sentence)

    def loss(self, value: "Tensor") -> None:
        """Show the loss next to the bar."""
        if self.task is not None:
            self.progress.update(self.task, loss=f"loss {value.item():.4f}")


class LineLog(Log):
    """A Log that prints a line about the running stage now and then, for output that goes to a file.

    Args:
        console: where lines go.
        every: seconds between two lines.
        clock: seconds.
    """

    def __init__(self, console: Console, every: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.console, self.every, self.clock, self.note = console, every, clock, ""

    def stage(self, name: str, total: int) -> Callable[[int], None]:
        """Begin a stage; a short one prints nothing."""
        done, began = 0, self.clock()
        last, self.note = began, ""

        def advance(n: int) -> None:
            nonlocal done, last
            done, now = done + n, self.clock()
            if now - last >= self.every:
                last, rate = now, done / (now - began)
                left = f", {duration((total - done) / rate)} left" if rate else ""
                self.console.print(f"{name}: {done} of {total}, {rate:.1f}/s{left}{self.note}")

        return advance

    def say(self, sentence: str) -> None:
        """Print it."""
        self.console.print(sentence)

    def loss(self, value: "Tensor") -> None:
        """Show the loss in the next line."""
        self.note = f", loss {value.item():.4f}"


def duration(seconds: float) -> str:
    """Such as "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def bar(console: Console) -> Iterator[Log]:
    """A log that draws on `console` while the block runs; lines where that is no terminal."""
    if not console.is_terminal:
        yield LineLog(console)
        return
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
        console=console,
    )
    try:
        yield BarLog(progress)
    finally:
        if progress.live.is_started:
            progress.stop()
