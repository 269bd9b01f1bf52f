"""How a method tells of its work: stages, losses, and training steps that a killed run continues from a checkpoint."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:  # a log is made before there is anything to train: torch is imported when there is
    from torch import Tensor


@runtime_checkable
class Resumable(Protocol):
    """What learns, and can be saved and continued bit for bit."""

    def state(self) -> "dict[str, Tensor]":
        """Everything a killed run needs to go on."""
        ...

    def restore(self, flat: "Mapping[str, Tensor]") -> None:
        """The inverse of `state`."""
        ...


class Log:
    """How a method tells the outside about its work. This one is silent and keeps nothing; the command line's draws and saves.

    Args:
        checkpoint: where training state is kept while it runs; None keeps none.
        recipe: names what is trained: a checkpoint of another recipe is not continued.
    """

    def __init__(self, checkpoint: Path | None = None, recipe: str = "") -> None:
        """Nothing is read or written before training starts."""
        self.checkpoint, self.recipe = checkpoint, recipe

    def stage(self, name: str, total: int) -> Callable[[int], None]:
        """Begin a stage of `total` units; the returned function reports finished ones."""
        return lambda n: None

    def loss(self, value: "Tensor") -> None:
        """Note the loss of a step."""

    def steps(self, learners: Resumable | Sequence[Resumable], total: int, every: int = 25) -> Iterator[int]:
        """Count training steps, continuing a checkpoint of the same recipe and keeping one every `every` steps."""
        from efface.core.io import write_tensors

        several = list(learners) if isinstance(learners, Sequence) else [learners]
        start = self._resume(several)
        advance = self.stage("training", total)
        advance(start)
        for step in range(start, total):
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
