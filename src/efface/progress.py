"""Progress bars on a terminal: one for each stage, with rate, remaining time and the latest loss."""

import contextlib
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


@contextlib.contextmanager
def bar(console: Console) -> Iterator[BarLog]:
    """A log that draws on `console` while the block runs."""
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
