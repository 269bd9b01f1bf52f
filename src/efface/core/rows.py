"""Token embeddings ("rows") of prompts for closed forms: pairs of source and target rows, rows to preserve, and their weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from efface.core.cond import Cond
from efface.core.denoiser import Denoiser
from efface.core.linalg import gram

PART = 256  # preserved prompts that are embedded at once
Leads = Sequence[Sequence[int]]  # for each prompt, the tokens before the concept's own, for each tokenizer


def row_metric(rows: Tensor, weights: Tensor) -> Tensor:
    """Metric (d d) of mean eigenvalue 1 in which the ridge is measured: nine parts the rows' second moment, one part the identity."""
    moment = gram(rows, weights)
    return 0.9 * moment * (len(moment) / moment.trace()) + 0.1 * torch.eye(len(moment), dtype=moment.dtype)


def pair_rows(source: Cond, target: Cond, tokens: str, lead: int | Sequence[int] = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of one prompt, their target rows, and their weights: (n d), (n d), (n), of all text encoders. A start token has no row.

    Args:
        source: a prompt.
        target: the prompt that it is mapped to.
        tokens: "last" token, "last_to_end" of the padding, or "content" (all tokens, end and padding).
        lead: number of tokens before the concept's own, which are unchanged; for each tokenizer, if there are several.
    """
    leads = [lead] if isinstance(lead, int) else lead
    pairs = zip(source.segments, target.segments, leads or [0, 0], strict=False)
    rows, aims, weights = zip(*(_paired(c, g, tokens, n) for c, g, n in pairs), strict=True)
    return torch.cat(rows), torch.cat(aims), torch.cat(weights)


def _paired(source: Cond, target: Cond, tokens: str, lead: int) -> tuple[Tensor, Tensor, Tensor]:
    """As `pair_rows`, for the rows of one tokenizer."""
    c, g, first = source.tokens[0], target.tokens[0], source.first
    n, last, last_g = (
        len(c),
        int(source.last),
        int(target.last),
    )  # "" has last = first - 1: the start token, if there is one
    if tokens != "content":
        last, last_g = max(last, 0), max(last_g, 0)
    if tokens == "last":
        return c[last : last + 1], g[last_g : last_g + 1], torch.ones(1, dtype=torch.float64)
    if tokens == "last_to_end":
        k = n - max(last, last_g)
        return c[last : last + k], g[last_g : last_g + k], torch.ones(k, dtype=torch.float64)
    # tokens before the concept are unchanged ("a" is not part of the tiger); each of its own maps to the target's token at the same
    # relative position, or to the end of a target without own tokens; end to end; padding to padding
    words, goal = (p.word_ids()[0][lead:] for p in (source, target))
    before = first + lead - 1  # the position before the concept's own tokens
    own, free = torch.arange(1, last - before + 1), 0
    share = (last_g - before) / max(last - before, 1)
    places = before + (own * share).ceil().long() if last_g > before else torch.full_like(own, last_g + 1)
    forth, back = within(words, goal), within(goal, words)
    if forth[-1:] == [len(goal)] != [0]:
        # "police car" to "car": a common token to itself, others to the common token before them. "police", before any common token,
        # has no target row and alone can draw the concept: its weight is 0
        places, free = before + torch.tensor(forth), forth.count(0)
    elif back[-1:] == [len(words)] != [0]:  # "car" to "red car": a common token to itself
        places = before + 1 + torch.tensor([back.index(i) for i in own.tolist()])
    k = n - 1 - max(last, last_g)
    words = last - first + 1
    weights = torch.ones(words + k, dtype=torch.float64)
    weights[words + 1 :] = 1 / max(1, k - 1)
    weights[lead : lead + free] = 0
    targets = torch.cat([c[first : before + free + 1], g[places[free:]], g[last_g + 1 : last_g + 1 + k]])
    return c[first : last + 1 + k], targets, weights


def within(words: Sequence[int], goal: Sequence[int]) -> list[int]:
    """Length of the prefix of `goal` that is a subsequence of `words` up to each word: in full if `goal` is a subsequence."""
    counts, at = [], 0
    for word in words:
        at += at < len(goal) and word == goal[at]
        counts.append(at)
    return counts


@dataclass(frozen=True)
class KeptRows:
    """All that a closed form needs of preserved prompts: the Gram matrix of their rows, and how many prompts they are."""

    moment: Float[Tensor, "d d"]
    prompts: int

    @classmethod
    def of(cls, base: Denoiser, texts: Sequence[str], tokens: str) -> "KeptRows":
        """Embeds the texts part by part: ten thousand names take no more memory than a few hundred."""
        width = next(iter(base.text_readers().values())).in_features
        total = torch.zeros(width, width, dtype=torch.float64)
        for i in range(0, len(texts), PART):
            rows, weights = keep_rows(base.embed(texts[i : i + PART]).cpu(), tokens)
            gram(rows, weights, total=total)
        return cls(total, len(texts))


def keep_rows(preserved: Cond, tokens: str) -> tuple[Tensor, Tensor]:
    """Rows to preserve and their weights, over all prompts and text encoders: (n d), (n)."""
    parts = zip(*(_kept(segment, tokens) for segment in preserved.segments), strict=True)
    rows, weights = (torch.cat(part) for part in parts)
    return rows, weights


def _kept(preserved: Cond, tokens: str) -> tuple[Tensor, Tensor]:
    """As `keep_rows`, for the rows of one tokenizer."""
    b, n, d = preserved.tokens.shape
    at, end = torch.arange(n), preserved.end[:, None]
    if tokens == "last":
        weights = (at == end - 1).double()
    elif tokens == "last_to_end":
        weights = torch.ones(b, n, dtype=torch.float64)
    else:
        weights = torch.where(at > end, 1 / (n - 1 - end).clamp(min=1).double(), 1.0)
    used = weights.flatten() > 0
    return preserved.tokens.reshape(b * n, d)[used], weights.flatten()[used]
