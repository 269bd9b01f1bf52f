"""Token embeddings to train on without pictures: of erased concepts, of their targets, and of anchors to preserve (CPE)."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.nn.functional import normalize

from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.prompts import ConceptPrompts, everyday_prompts, kept_prompts


def concept_rows(
    base: Denoiser, erase: Sequence[Concept]
) -> tuple[Float[Tensor, "n p t d"], Float[Tensor, "n p t d"], Int[Tensor, "n"]]:
    """Rows of each concept's prompts, rows of their targets, and the number of prompts; padded by repeating prompts."""
    embedded = ConceptPrompts.of(erase).embed(base)
    counts = embedded.owners.bincount()
    first = (counts.cumsum(0) - counts)[:, None]
    which = first + torch.arange(int(counts.max())) % counts[:, None]
    return embedded.prompts.tokens.float()[which], embedded.targets.tokens.float()[which], counts


def anchor_pool(
    base: Denoiser,
    erase: Sequence[Concept],
    preserve: Sequence[Concept],
    prompts: Float[Tensor, "n p t d"],
    everyday: int,
    near: int,
) -> tuple[Float[Tensor, "a t d"], Int[Tensor, "n k"]]:
    """Rows of "", of preserved concepts and of frequent words, and for each concept the indices of the `near` nearest to its name."""
    spoken = ConceptPrompts.of((replace(c, target="") for c in erase), subjects=False)  # a target may be an anchor
    texts = dict.fromkeys(["", *kept_prompts(preserve), *everyday_prompts(base, everyday, spoken)])
    pool = base.embed(list(texts)).tokens.float()
    close = normalize(prompts[:, 0].flatten(1), dim=1) @ normalize(pool.flatten(1), dim=1).T
    return pool, close.topk(min(near, len(pool))).indices


def mixed(
    pool: Float[Tensor, "a t d"], nearest: Int[Tensor, "n k"], many: int, noise: float, mixup: bool, rng: Generator
) -> Float[Tensor, "n b t d"]:
    """`many` anchors for each concept, with `noise` relative to their root mean square, mixed in pairs; and "", unchanged."""
    n, known = nearest.shape
    which = torch.randint(known, (n, many * (1 + mixup)), generator=rng)
    rows = pool[nearest[torch.arange(n)[:, None], which]]
    rows = rows + noise * pool.square().mean().sqrt() * torch.randn(rows.shape, generator=rng).to(rows)
    if mixup:  # Beta(1, 1) is uniform
        share = torch.rand(n, many, 1, 1, generator=rng).to(rows)
        rows = share * rows[:, :many] + (1 - share) * rows[:, many:]
    return torch.cat([rows, pool[:1].expand(n, 1, -1, -1)], 1)
