"""Prompt conditioning: a batch of prompts as token embeddings, token ids and masks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from efface.core.errors import UsageError


@dataclass(frozen=True)
class Tokens:
    """A batch of prompts as token ids, with the masks of `Cond`."""

    ids: Int[Tensor, "b n"]
    mask: Int[Tensor, "b n"]
    words: Bool[Tensor, "b n"]


@dataclass(frozen=True)
class Cond:
    """A batch of prompts as the denoiser reads them: token embeddings (`tokens`), token ids, and masks of positions.

    `mask` is 1 at real tokens (start, prompt, end) and 0 at padding; `words` is true at the prompt's own tokens, between start and end.
    """

    tokens: Float[Tensor, "b n d"]
    ids: Int[Tensor, "b n"]
    mask: Int[Tensor, "b n"]
    words: Bool[Tensor, "b n"]

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.tokens)

    def __getitem__(self, index: Any) -> "Cond":
        """The prompts at `index` (a slice, a list or a tensor: always a batch)."""
        return self._each(lambda t: t[index])

    def __add__(self, other: "Cond") -> "Cond":
        """These prompts, then those of `other`."""
        return Cond.cat([self, other])

    @classmethod
    def cat(cls, conds: Sequence["Cond"]) -> "Cond":
        """The prompts of all of these, in order; at least one."""
        return cls(*(torch.cat([getattr(cond, f.name) for cond in conds]) for f in fields(cls)))

    def cpu(self) -> "Cond":
        """The same on the CPU, which has float64."""
        return self._each(Tensor.cpu)

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
        return self._each(lambda t: t.expand(n, *t.shape[1:]))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Cond":
        return Cond(*(change(getattr(self, f.name)) for f in fields(self)))

    # -- positions -------------------------------------------------------------------------------------------------

    @property
    def counts(self) -> Int[Tensor, "b"]:
        """Number of tokens of each prompt, without start, end and padding; 0 for ""."""
        return self.words.sum(1)

    @property
    def end(self) -> Int[Tensor, "b"]:
        """Position of each prompt's end token: the first one, if padding uses the end token too."""
        return self.mask.sum(1) - 1

    @property
    def last(self) -> Int[Tensor, "b"]:
        """Position of each prompt's last token before the end token; the start token's for ""."""
        return self.end - 1

    @property
    def full(self) -> Bool[Tensor, "b"]:
        """Whether a prompt has no padding: it may have been truncated."""
        return self.mask[:, -1] == 1

    @property
    def from_end(self) -> Bool[Tensor, "b n"]:
        """True at the end token and all positions after it: under causal attention these depend on the whole prompt."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) >= self.end[:, None]

    @property
    def end_tokens(self) -> Bool[Tensor, "b n"]:
        """True at every end token: also at the padding if that is the end token (Stable Diffusion 1)."""
        return self.ids == self.ids.gather(1, self.end[:, None])

    def word_ids(self) -> list[list[int]]:
        """Token ids of each prompt, without start, end and padding."""
        return [ids[inside].tolist() for ids, inside in zip(self.ids, self.words, strict=True)]
