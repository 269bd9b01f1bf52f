"""Context rows appended to prompts within a prediction, and which prompts of a batch attend to them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from efface.core.cond import Cond


@dataclass(frozen=True)
class ActiveKey:
    """A key in its lock: prompts that say a concept are lengthened by its rows, all others read as they did."""

    held: Sequence[tuple[list[list[int]], Float[Tensor, "m d"]]]
    fingerprint: str

    def __call__(self, cond: Cond, reads: Bool[Tensor, "b n"] | None = None) -> tuple[Cond, Bool[Tensor, "b n"] | None]:
        """The prompts, longer where one of them says a concept, and which rows each of them reads; None reads all."""
        for phrases, rows in self.held:
            says = torch.tensor([_says(ids, phrases) for ids in cond.ids.tolist()], device=cond.ids.device)
            if says.any():
                cond, reads = lengthen(cond, reads, rows.expand(len(cond), *rows.shape), says)
        return cond, reads


@dataclass(frozen=True)
class AppendedRows:
    """Rows of its own behind each prompt of a batch where `which` is true: what a key in training is, or one that is tried."""

    rows: Float[Tensor, "b m d"]
    which: Bool[Tensor, "b"]
    fingerprint: str = ""

    def __call__(self, cond: Cond, reads: Bool[Tensor, "b n"] | None = None) -> tuple[Cond, Bool[Tensor, "b k"]]:
        """As `ActiveKey`, whatever the prompts say."""
        return lengthen(cond, reads, self.rows, self.which.to(cond.ids.device))


def lengthen(
    cond: Cond, reads: Bool[Tensor, "b n"] | None, rows: Float[Tensor, "b m d"], which: Bool[Tensor, "b"]
) -> tuple[Cond, Bool[Tensor, "b k"]]:
    """Prompts with rows of their own behind them, and what each reads: those rows only where `which` is true."""
    b, m = rows.shape[:2]
    reads = torch.ones_like(cond.ids, dtype=torch.bool) if reads is None else reads
    blank = cond.ids.new_full((b, m), -1)  # no word of the tokenizer
    added = Cond(
        rows.to(cond.tokens), blank, (blank * 0).to(cond.mask.dtype), torch.zeros_like(blank, dtype=torch.bool)
    )
    longer = Cond(*(torch.cat([getattr(cond, f.name), getattr(added, f.name)], 1) for f in fields(Cond)))
    return longer, torch.cat([reads, which[:, None].expand(b, m)], 1)


def _says(ids: list[int], phrases: list[list[int]]) -> bool:
    return any(ids[i : i + len(p)] == p for p in phrases for i in range(len(ids) - len(p) + 1))
