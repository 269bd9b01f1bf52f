"""Counts what a search costs: pictures through the denoiser, prompts through the text encoder, pictures decoded; ends it at a budget."""

import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from efface.core.denoiser import Denoiser

GRADIENT = 3  # a call whose gradient is taken costs as much as three without


class BudgetSpent(Exception):  # noqa: N818 - it ends a search, which is no error
    """The next call would exceed the budget."""


class Meter:
    """A context that counts the calls of some denoisers' networks, by hooks on the networks themselves.

    A call is one picture through the denoiser: a batch of 8 is 8 calls, and with a gradient 24.
    """

    def __init__(self, models: Iterable[Denoiser], budget: int) -> None:
        """Count these models' calls, up to `budget`."""
        self.models, self.budget = list(models), budget
        self.calls = self.texts = self.pictures = 0
        self.seconds, self._handles, self._started = 0.0, [], None

    def __enter__(self) -> "Meter":
        """Begin to count."""
        self._started = time.perf_counter()
        for module, count in self._networks().values():
            self._handles.append(module.register_forward_pre_hook(count, with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop counting."""
        self.seconds += time.perf_counter() - (self._started or 0)
        self._started = None
        while self._handles:
            self._handles.pop().remove()

    def _networks(self) -> dict[int, tuple[nn.Module, Callable[..., None]]]:
        found = {}
        for model in self.models:
            predicts, *encoders = model.modules().items()
            found[id(predicts[1])] = (predicts[1], self._count_calls)
            found[id(encoders[0][1])] = (
                encoders[0][1],
                self._count_texts,
            )  # a prompt counts once, for all text encoders
            decoder = model.pipeline.vae.decoder
            found[id(decoder)] = (decoder, self._count_pictures)
        return found

    @property
    def _count_calls(self) -> Callable[..., None]:
        def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._started is None:  # a copy of a network keeps its hooks
                return
            given = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
            trained = torch.is_grad_enabled() and any(t.requires_grad for t in (*given, *module.parameters()))
            cost = len(given[0]) * (GRADIENT if trained else 1)
            if self.calls + cost > self.budget:
                raise BudgetSpent
            self.calls += cost

        return count

    @property
    def _count_texts(self) -> Callable[..., None]:
        def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._started is not None:
                self.texts += next(len(v) for v in (*args, *kwargs.values()) if isinstance(v, Tensor))

        return count

    @property
    def _count_pictures(self) -> Callable[..., None]:
        def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._started is not None:
                self.pictures += len(args[0])

        return count
