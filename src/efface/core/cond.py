"""What a batch of prompts becomes."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from efface.core.errors import UsageError


@dataclass(frozen=True)
class Cond:
    """What a batch of prompts becomes: token rows, their ids, and a mask of real tokens (SOS, words, EOS; not padding)."""

    tokens: Float[Tensor, "b n d"]
    ids: Int[Tensor, "b n"]
    mask: Int[Tensor, "b n"]

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.tokens)

    def __getitem__(self, index: Any) -> "Cond":
        """The prompts at `index` (a slice, a list or a tensor: always a batch)."""
        return Cond(self.tokens[index], self.ids[index], self.mask[index])

    def __add__(self, other: "Cond") -> "Cond":
        """These prompts, then those of `other`."""
        return Cond(
            torch.cat([self.tokens, other.tokens]), torch.cat([self.ids, other.ids]), torch.cat([self.mask, other.mask])
        )

    def cpu(self) -> "Cond":
        """The same on the CPU, which has float64."""
        return Cond(self.tokens.cpu(), self.ids.cpu(), self.mask.cpu())

    def expand(self, n: int) -> "Cond":
        """One prompt repeated `n` times; `n` prompts as they are.

        Raises:
            UsageError: another number of prompts.
        """
        if len(self) == n:
            return self
        if len(self) != 1:
            raise UsageError(
                f"prompts: expected 1 or {n}, one for each picture, got {len(self)}; give as many prompts as seeds"
            )
        return Cond(*(v.expand(n, *v.shape[1:]) for v in (self.tokens, self.ids, self.mask)))
