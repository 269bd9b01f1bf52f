"""Branches: small modules of an edit beside the denoiser's own, which add to the outputs of those."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import override  # in typing from Python 3.12

from efface.core.cond import Cond
from efface.core.denoiser import Denoiser
from efface.core.hooks import Added, BoundBranch


class Branch(ABC):
    """Small modules at named sites ("unet.….attn2.to_k") and their gate. Forms are the files of core/branches/.

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
    def additions(self, base: Denoiser) -> Callable[[Cond], dict[str, Added]]:
        """Beside `base`, whose text encoder reads what opens it: for the prompts of one call, what to add at each site."""

    def bind(self, base: Denoiser, strength: float = 1.0, fingerprint: str = "") -> BoundBranch:
        """What a denoiser's `branches` hold: `additions(base)`, at a strength."""
        return BoundBranch(self.additions(base), strength, fingerprint)
