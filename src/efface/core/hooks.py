"""Forward hooks, for one prediction, that add the outputs of branches to the outputs of a denoiser's modules."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from efface.core.cond import Cond

Added = Callable[[Tensor, Tensor], Tensor]  # (a module's input, its output) -> what to add to that output


@dataclass(frozen=True)
class BoundBranch:
    """A branch bound to a denoiser, at a strength."""

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
def hooked(parts: Mapping[str, nn.Module], branches: Sequence[Mapping[str, Added]]) -> Iterator[None]:
    """A context in which the branches add to the outputs of their modules; each branch sees the module's unchanged output."""
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


@contextlib.contextmanager
def replaced_output(module: nn.Module, out: Tensor | None) -> Iterator[None]:
    """A context in which a module returns `out`, in its own dtype; None changes nothing."""
    if out is None:
        yield
        return
    handle = module.register_forward_hook(lambda _, given, was: out.to(was.dtype))
    try:
        yield
    finally:
        handle.remove()


def _hook(adds: Sequence[Added], module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
    return sum((add(given[0], out).to(out.dtype) for add in adds), out)
