"""Progress and checkpoints of a fit: stages, losses, and training steps that an interrupted run continues."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:  # the command line makes a log before it imports torch
    from torch import Tensor


@runtime_checkable
class Resumable(Protocol):
    """Training state that can be saved and continued bit for bit."""

    def state(self) -> "dict[str, Tensor]":
        """Everything an interrupted run needs to continue."""
        ...

    def restore(self, flat: "Mapping[str, Tensor]") -> None:
        """The inverse of `state`."""
        ...


class Log:
    """Receives a method's progress. This class prints nothing; the command line's subclass draws progress bars.

    Args:
        checkpoint: file for the training state while a fit runs; None saves none.
        recipe: identifies the training: a checkpoint of another recipe is not continued.
    """

    def __init__(self, checkpoint: Path | None = None, recipe: str = "") -> None:
        """Set the checkpoint; no file is read or written before training starts."""
        self.checkpoint, self.recipe, self.step = checkpoint, recipe, 0  # the step that is being trained

    def stage(self, name: str, total: int) -> Callable[[int], None]:
        """Begin a stage of `total` units; call the returned function with the number of finished units."""
        return lambda n: None

    def say(self, sentence: str) -> None:
        """Tell the user a choice that was made for them."""

    def loss(self, value: "Tensor") -> None:
        """Report the loss of a step."""

    def steps(self, learners: Resumable | Sequence[Resumable], total: int, every: int = 25) -> Iterator[int]:
        """Yield the indices of training steps, from a checkpoint of the same recipe if there is one; save one every `every` steps."""
        from efface.core.io import write_tensors

        several = list(learners) if isinstance(learners, Sequence) else [learners]
        start = self._resume(several)
        advance = self.stage("training", total)
        advance(start)
        for step in range(start, total):
            self.step = step + 1
            yield step
            if self.checkpoint and (step + 1) % every == 0:
                flat = {f"{i}|{k}": v for i, learner in enumerate(several) for k, v in learner.state().items()}
                write_tensors(self.checkpoint, flat, {"step": step + 1, "recipe": self.recipe})
            advance(1)
        if self.checkpoint:
            self.checkpoint.unlink(missing_ok=True)

    def _resume(self, learners: Sequence[Resumable]) -> int:
        from efface.core.io import read_tensors

        if not self.checkpoint or not self.checkpoint.exists():
            return 0
        tensors, header = read_tensors(self.checkpoint)
        if header.get("recipe") != self.recipe:
            return 0
        for i, learner in enumerate(learners):
            mine = f"{i}|"
            learner.restore({k.removeprefix(mine): v for k, v in tensors.items() if k.startswith(mine)})
        return int(header["step"])
