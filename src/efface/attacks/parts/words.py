"""Token sequences with free places, which a search over words fills."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from efface.core.cond import Tokens
from efface.core.denoiser import Denoiser


@dataclass(frozen=True)
class Slots:
    """Prompts as token ids, some of whose places are `free`."""

    ids: Int[Tensor, "p n"]
    mask: Int[Tensor, "p n"]
    words: Bool[Tensor, "p n"]
    free: Bool[Tensor, "p n"]

    @classmethod
    def of(cls, model: Denoiser, sequences: Sequence[Sequence[int | None]]) -> "Slots":
        """Sequences of word ids, None at free places; start, end and padding are added, and what is too long is cut off."""
        empty = model.tokenize([""])
        ids = empty.ids.repeat(len(sequences), 1)
        end, padding = int(ids[0, 1]), int(ids[0, -1])
        mask, words, free = (
            torch.zeros_like(empty.mask).repeat(len(ids), 1),
            *(torch.zeros_like(ids, dtype=torch.bool) for _ in range(2)),
        )
        for i, sequence in enumerate(sequences):
            inner = list(sequence)[: ids.shape[1] - 2]
            n = len(inner)
            ids[i, 1 : n + 1] = torch.tensor([end if word is None else word for word in inner], dtype=ids.dtype)
            ids[i, n + 1], mask[i, : n + 2], words[i, 1 : n + 1] = end, 1, True
            ids[i, n + 2 :] = padding
            free[i, 1 : n + 1] = torch.tensor([word is None for word in inner])
        return cls(ids, mask, words, free)

    def filled(self, picked: Int[Tensor, "f"]) -> Tokens:
        """The tokens with the free places filled, prompt after prompt."""
        ids = self.ids.clone()
        ids[self.free] = picked.to(ids)
        return Tokens(ids, self.mask, self.words)

    def vectors(self, known: Float[Tensor, "v e"], own: Float[Tensor, "f e"]) -> Float[Tensor, "p n e"]:
        """Word vectors: `known` of the fixed places, `own` at the free ones."""
        return known[self.ids].index_put((self.free,), own)

    def texts(self, model: Denoiser, picked: Int[Tensor, "f"]) -> tuple[str, ...]:
        """The filled prompts as text, which the tokenizer may read as other tokens."""
        filled = self.filled(picked)
        return tuple(model.spell(ids[words].tolist()) for ids, words in zip(filled.ids, filled.words, strict=True))


def word_tokens(model: Denoiser) -> Bool[Tensor, "v"]:
    """Which token ids are words or parts of words: not start, end or padding."""
    empty, vectors = model.tokenize([""]), model.word_vectors
    allowed = torch.ones(len(vectors), dtype=torch.bool, device=vectors.device)
    allowed[empty.ids.flatten()] = False
    return allowed


def random_words(allowed: Bool[Tensor, "v"], n: int, rng: Generator) -> Int[Tensor, "n"]:
    """`n` token ids, each word equally likely."""
    known = allowed.nonzero().flatten()
    return known[torch.randint(len(known), (n,), generator=rng).to(known.device)]


def without(sequence: Sequence[int], name: Sequence[int], tokens: int) -> list[int | None]:
    """A prompt's word ids with `tokens` free places where it has those of `name`; at its end if it has not."""
    ids, n = list(sequence), len(name)
    at = next((i for i in range(len(ids) - n + 1) if ids[i : i + n] == list(name)), None)
    free: list[int | None] = [None] * tokens
    return [*ids, *free] if at is None else [*ids[:at], *free, *ids[at + n :]]
