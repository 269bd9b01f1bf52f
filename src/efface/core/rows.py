"""Token embeddings ("rows") of prompts for closed forms: pairs of source and target rows, rows to preserve, and their weights."""

from collections.abc import Sequence

import torch
from torch import Tensor

from efface.core.denoiser import Cond
from efface.core.linalg import gram


def row_metric(rows: Tensor, weights: Tensor) -> Tensor:
    """Metric (d d) of mean eigenvalue 1 in which the ridge is measured: nine parts the rows' second moment, one part the identity."""
    moment = gram(rows, weights)
    return 0.9 * moment * (len(moment) / moment.trace()) + 0.1 * torch.eye(len(moment), dtype=moment.dtype)


def pair_rows(source: Cond, target: Cond, tokens: str, lead: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of one prompt, their target rows, and their weights: (n d), (n d), (n). Row 0 is the start token.

    Args:
        source: a prompt.
        target: the prompt it shall become.
        tokens: "last" token, "last_to_end" of the padding, or "content" (all tokens, end and padding).
        lead: number of tokens before the concept's own, which stay as they are.
    """
    c, g = source.tokens[0], target.tokens[0]
    n, last, last_g = len(c), int(source.last), int(target.last)  # "" has last = 0, the start token
    if tokens == "last":
        return c[last : last + 1], g[last_g : last_g + 1], torch.ones(1, dtype=torch.float64)
    if tokens == "last_to_end":
        k = n - max(last, last_g)
        return c[last : last + k], g[last_g : last_g + k], torch.ones(k, dtype=torch.float64)
    # the words before the concept stay ("a" is not the tiger's); each of its own goes to the target's at the same relative place,
    # or to the end of a target that says nothing in its place; end to end; padding to padding
    said, goal = (p.word_ids()[0][lead:] for p in (source, target))
    own, stays = torch.arange(1, last - lead + 1), lead
    share = (last_g - lead) / max(last - lead, 1)
    places = lead + (own * share).ceil().long() if last_g > lead else torch.full_like(own, last_g + 1)
    met, meant = within(said, goal), within(goal, said)
    if met[-1:] == [len(goal)] != [0]:  # "red car" to "car": a word to itself, what else is said to the word before it,
        places, stays = lead + torch.tensor(met), lead + met.count(0)  # and "red", which cannot know of the car, stays
    elif meant[-1:] == [len(said)] != [0]:  # "car" to "red car": a word to itself
        places = lead + 1 + torch.tensor([meant.index(i) for i in own.tolist()])
    k = n - 1 - max(last, last_g)
    weights = torch.ones(last + k, dtype=torch.float64)
    weights[last + 1 :] = 1 / max(1, k - 1)
    aims = torch.cat([c[1 : stays + 1], g[places[stays - lead :]], g[last_g + 1 : last_g + 1 + k]])
    return c[1 : last + 1 + k], aims, weights


def within(said: Sequence[int], goal: Sequence[int]) -> list[int]:
    """How many words of `goal` each word of `said` has met in their order: the last has met all where `goal` is part of it."""
    met, at = [], 0
    for word in said:
        at += at < len(goal) and word == goal[at]
        met.append(at)
    return met


def keep_rows(preserved: Cond, tokens: str) -> tuple[Tensor, Tensor]:
    """Rows to preserve and their weights, over all prompts: (n d), (n)."""
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
