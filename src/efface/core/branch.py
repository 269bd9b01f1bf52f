"""Branches: small modules that an adapter edit adds to the outputs of the denoiser's modules."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import override  # in typing from Python 3.12

from efface.core.cond import Cond
from efface.core.denoiser import Denoiser
from efface.core.hooks import Added, BoundBranch


class Branch(ABC):
    """Small modules at named sites ("unet.….attn2.to_k") and their gate. The forms are in core/branches/, one file each.

    `tensors` are their weights in float32 (in training, the autograd leaves themselves); `facts` are other values to save in the file.
    """

    forms: ClassVar[dict[str, type["Branch"]]] = {}

    @override
    def __init_subclass__(cls) -> None:
        Branch.forms[cls.__name__] = cls

    def __init__(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None) -> None:
        """Take tensors and facts as a file stores them."""
        self.tensors, self.facts = dict(tensors), dict(facts or {})

    @abstractmethod
    def additions(self, base: Denoiser) -> Callable[[Cond], dict[str, Added]]:
        """A function from the prompts of one call to what to add at each site; the gates use `base`'s text encoder."""

    def bind(self, base: Denoiser, strength: float = 1.0, fingerprint: str = "") -> BoundBranch:
        """The branch bound to a denoiser at a strength, ready for its `branches`."""
        return BoundBranch(self.additions(base), strength, fingerprint)
