"""Branches: small modules of an edit beside the denoiser's own, which add to the outputs of those."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from typing_extensions import override  # in typing from Python 3.12

from efface.core.cond import Cond

if TYPE_CHECKING:
    from efface.core.denoiser import Denoiser

Added = Callable[[Tensor, Tensor], Tensor]  # (a module's input, its output) to what is added to that output


class Branch(ABC):
    """Small modules at named sites ("unet.….attn2.to_k"), and what opens them. Forms are the files of core/branches/.

    `tensors` are their weights, in float32 (the very leaves, while they learn), `facts` what else the file must hold, as plain values.
    """

    forms: ClassVar[dict[str, type["Branch"]]] = {}

    @override
    def __init_subclass__(cls) -> None:
        Branch.forms[cls.__name__] = cls

    def __init__(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None) -> None:
        """As a file holds them."""
        self.tensors, self.facts = dict(tensors), dict(facts or {})

    @abstractmethod
    def at(self, base: "Denoiser") -> Callable[[Cond], dict[str, Added]]:
        """Beside `base`, whose text encoder reads what opens it: for the prompts of one call, what to add at each site."""

    def bind(self, base: "Denoiser", strength: float = 1.0, fingerprint: str = "") -> "Bound":
        """What a denoiser's `branches` hold: `at(base)`, at a strength."""
        return Bound(self.at(base), strength, fingerprint)


@dataclass(frozen=True)
class Bound:
    """A branch beside a denoiser."""

    added: Callable[[Cond], dict[str, Added]]
    strength: float
    fingerprint: str

    def __call__(self, cond: Cond) -> dict[str, Added]:
        """What to add at each site, for the prompts of one call."""
        if self.strength == 1:
            return self.added(cond)
        return {site: _scaled(add, self.strength) for site, add in self.added(cond).items()}


def _scaled(add: Added, strength: float) -> Added:
    return lambda given, out: strength * add(given, out)


@contextlib.contextmanager
def beside(parts: Mapping[str, nn.Module], branches: Sequence[Mapping[str, Added]]) -> Iterator[None]:
    """Within it, what the branches add at a module is added to its output, each seeing the module's own output."""
    at: dict[str, list[Added]] = {}
    for branch in branches:
        for site, add in branch.items():
            at.setdefault(site, []).append(add)
    handles = []
    try:
        for site, adds in at.items():
            part, _, name = site.partition(".")
            handles.append(parts[part].get_submodule(name).register_forward_hook(partial(_hook, adds)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(adds: Sequence[Added], module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
    return sum((add(given[0], out).to(out.dtype) for add in adds), out)
