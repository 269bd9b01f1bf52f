"""Embeddings appended to the prompts during a prediction, and which prompts of a batch attend to them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from efface.core.cond import POSITIONS, Cond


@dataclass(frozen=True)
class ActiveKey:
    """A key in use: appends the key's rows to prompts that contain its concept, and leaves all other prompts as they are."""

    concepts: Sequence[tuple[list[list[int]], Float[Tensor, "m d"]]]  # token ids of each one's phrases, and its rows
    fingerprint: str

    def __call__(self, cond: Cond, reads: Bool[Tensor, "b n"] | None = None) -> tuple[Cond, Bool[Tensor, "b n"] | None]:
        """The prompts, lengthened if one of them contains a concept, and the positions each attends to; None means all."""
        for phrases, rows in self.concepts:
            named = torch.tensor([_contains(ids, phrases) for ids in cond.ids.tolist()], device=cond.ids.device)
            if named.any():
                cond, reads = lengthen(cond, reads, rows.expand(len(cond), *rows.shape), named)
        return cond, reads


@dataclass(frozen=True)
class AppendedRows:
    """Appends rows to the prompts of a batch, one set each, where `which` is true: to train a key, or to try one."""

    rows: Float[Tensor, "b m d"]
    which: Bool[Tensor, "b"]
    fingerprint: str = ""

    def __call__(self, cond: Cond, reads: Bool[Tensor, "b n"] | None = None) -> tuple[Cond, Bool[Tensor, "b k"]]:
        """As `ActiveKey`, for any prompts."""
        return lengthen(cond, reads, self.rows, self.which.to(cond.ids.device))


def lengthen(
    cond: Cond, reads: Bool[Tensor, "b n"] | None, rows: Float[Tensor, "b m d"], which: Bool[Tensor, "b"]
) -> tuple[Cond, Bool[Tensor, "b k"]]:
    """Prompts with rows appended, one set each, and the positions each prompt attends to: the new rows only where `which` is true."""
    b, m = rows.shape[:2]
    reads = torch.ones_like(cond.ids, dtype=torch.bool) if reads is None else reads
    blank = cond.ids.new_full((b, m), -1)  # no word of the tokenizer
    added = Cond(
        rows.to(cond.tokens), blank, (blank * 0).to(cond.mask.dtype), torch.zeros_like(blank, dtype=torch.bool)
    )
    longer = {name: torch.cat([getattr(cond, name), getattr(added, name)], 1) for name in POSITIONS}
    return replace(cond, **longer), torch.cat([reads, which[:, None].expand(b, m)], 1)


def _contains(ids: list[int], phrases: list[list[int]]) -> bool:
    return any(ids[i : i + len(p)] == p for p in phrases for i in range(len(ids) - len(p) + 1))
