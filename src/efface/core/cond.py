"""Prompt conditioning: a batch of prompts as token embeddings, token ids and masks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from efface.core.errors import UsageError

POSITIONS = ("tokens", "ids", "mask", "words")  # fields of `Cond` with a value for each position


@dataclass(frozen=True)
class Tokens:
    """A batch of prompts as token ids, with the masks of `Cond`; `more` has the same prompts for a second kind of tokenizer."""

    ids: Int[Tensor, "b n"]
    mask: Int[Tensor, "b n"]
    words: Bool[Tensor, "b n"]
    more: "Tokens | None" = None

    @property
    def first(self) -> int:
        """Position of a prompt's first word: 1 after a start token, 0 where the tokenizer has none."""
        return _first(self.mask, self.words)


@dataclass(frozen=True)
class Cond:
    """A batch of prompts as the denoiser reads them: token embeddings (`tokens`), token ids, and masks of positions.

    `mask` is 1 at real tokens (start, prompt, end) and 0 at padding; `words` is true at the prompt's own tokens, between start and end.
    Families with more than one CLIP text encoder have their embeddings side by side. `pooled` is the one vector for each prompt that
    some families read besides; `more` are the token embeddings of a text encoder with another tokenizer (T5 in Stable Diffusion 3).
    """

    tokens: Float[Tensor, "b n d"]
    ids: Int[Tensor, "b n"]
    mask: Int[Tensor, "b n"]
    words: Bool[Tensor, "b n"]
    pooled: Float[Tensor, "b p"] | None = None
    more: "Cond | None" = None

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
        plain = {name: torch.cat([getattr(cond, name) for cond in conds]) for name in POSITIONS}
        pooled, more = [c.pooled for c in conds if c.pooled is not None], [c.more for c in conds if c.more is not None]
        return cls(**plain, pooled=torch.cat(pooled) if pooled else None, more=cls.cat(more) if more else None)

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

    def to(self, device: torch.device) -> "Cond":
        """The same on `device`."""
        return self._each(lambda t: t.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Cond":
        plain = {name: change(getattr(self, name)) for name in POSITIONS}
        pooled = None if self.pooled is None else change(self.pooled)
        return Cond(**plain, pooled=pooled, more=None if self.more is None else self.more._each(change))

    @property
    def vector(self) -> Float[Tensor, "b p"]:
        """`pooled`, in families that read it."""
        assert self.pooled is not None
        return self.pooled

    def at(self, positions: Bool[Tensor, "n"]) -> "Cond":
        """The same prompts with these positions only, as their denoiser reads those."""
        return replace(self, **{name: getattr(self, name)[:, positions] for name in POSITIONS})

    @property
    def segments(self) -> "list[Cond]":
        """The token embeddings of each tokenizer, which have positions of their own: these, and `more` if there are."""
        return [self] if self.more is None else [self, self.more]

    def named(self) -> dict[str, Tensor]:
        """All tensors by name, as files store them; `from_named` is the inverse."""
        found = {name: getattr(self, name) for name in POSITIONS}
        found |= {} if self.pooled is None else {"pooled": self.pooled}
        return found | ({} if self.more is None else {f"more.{k}": t for k, t in self.more.named().items()})

    @classmethod
    def from_named(cls, tensors: Mapping[str, Tensor]) -> "Cond":
        """The inverse of `named`.

        Raises:
            KeyError: a tensor is missing.
        """
        more = {k.removeprefix("more."): t for k, t in tensors.items() if k.startswith("more.")}
        plain = {name: tensors[name] for name in POSITIONS}
        return cls(**plain, pooled=tensors.get("pooled"), more=cls.from_named(more) if more else None)

    # -- positions -------------------------------------------------------------------------------------------------

    @property
    def first(self) -> int:
        """Position of a prompt's first word: 1 after a start token, 0 where the tokenizer has none."""
        return _first(self.mask, self.words)

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
        """Position of each prompt's last token before the end token; the start token's for "", or -1 without one."""
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


def _first(mask: Int[Tensor, "b n"], words: Bool[Tensor, "b n"]) -> int:
    return int((mask[:1].sum() - 1 - words[:1].sum()).clamp(min=0))  # real tokens are start, words, end
