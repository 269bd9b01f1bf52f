"""Text-encoder mapping: fine-tune the text encoder to embed the concept's prompts as the target's.

Paper:   The talk on Bui et al., NeurIPS 2024, arXiv:2410.15618, eq. 2: the baseline that any user can undo.
Idea:    Train the text encoder τ_φ to embed the concept's prompt as the target's, near its original weights:
             L = | τ_φ'(c_e) - τ_φ(c_t) |² + b | τ_φ'(c_p) - τ_φ(c_p) |² + λ |φ' - φ|² / |φ|²
         The denoiser does not change and is not run.
Names:   preserve_scale = b, trust = λ; target = c_t.
Differs: There is no released code. As written the target changes too, and an encoder that embeds everything alike is optimal: our
         target is the frozen encoder's. Prompts are paired row by row as in UCE, padding weighs as much as one row, and the start
         token, equal in every prompt, is left out. c_p (ours) are "", the preserved concepts and everyday words: eq. 2 preserves only
         the weights, and a fine-tuned encoder forgets related concepts. λ is in units of the encoder's own norm. The concept is erased
         in the text encoder alone: with the stock encoder (the same in every Stable Diffusion 1.x) the edited model draws it again, and
         embeddings found by optimisation do not pass the encoder.
Cost:    No pictures, no sampling: half a minute for Moji on two cores.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from typing_extensions import override  # in typing from Python 3.12

from efface.core.concept import Concept
from efface.core.denoiser import Cond, Denoiser
from efface.core.edit import Delta, LowRank
from efface.core.errors import UsageError
from efface.core.log import Log
from efface.core.params import param
from efface.core.prompts import ConceptPrompts, everyday_prompts, kept_prompts
from efface.core.rows import keep_rows, pair_rows
from efface.core.train import Tuner
from efface.erasers.base import Eraser


@dataclass(frozen=True, kw_only=True)
class TextMapping(Eraser):
    """Fine-tune the text encoder to embed a concept as its target."""

    where: Literal["text", "text.layers", "text.embeddings"] = param(
        "text.layers", "weights to train: all, the layers' matrices, or the token embeddings"
    )
    preserve_scale: float = param(1.0, 'b, weight of "", preserved concepts and everyday words', at_least=0)
    trust: float = param(1.0, "λ, pull towards the original weights", at_least=0)
    steps: int = param(200, "training steps", at_least=0)
    lr: float = param(2e-4, "Adam's learning rate", above=0)
    batch: int = param(
        16, "prompts in a step: of the concept, of preserved concepts, and of everyday words, each", at_least=1
    )
    everyday: int = param(200, "frequent words to preserve as well", at_least=0)
    rank: int = param(0, "train LoRA factors of this rank; 0 trains whole weights", at_least=0)
    templates: bool = param(True, "also use prompt templates, not only the bare name")

    makes: ClassVar = (Delta, LowRank)
    needs: ClassVar = frozenset({"words"})

    @override
    def run(
        self, base: Denoiser, erase: tuple[Concept, ...], preserve: tuple[Concept, ...], rng: Generator, log: Log
    ) -> Delta | LowRank:
        tuner = Tuner(base, self.where, lr=self.lr, rank=self.rank, rng=rng)
        prompts = ConceptPrompts.of(erase, self.templates)
        embedded = prompts.embed(base)
        kept = ["", *kept_prompts(preserve, self.templates)]
        pools = [prompts.prompts, kept, everyday_prompts(base, self.everyday, prompts)]
        aims = [
            aligned(embedded.prompts, embedded.targets, embedded.prefix_lengths[:, 0].tolist()),
            *(unchanged(base, pool) for pool in pools[1:] if pool),
        ]
        before, now = (list(model.params(self.where).values()) for model in (base, tuner.student))
        size = sum(w.square().sum() for w in before)
        log.recipe = self.recipe(base, erase, preserve)
        for _ in log.steps(tuner, self.steps):
            missed = []
            for pool, (goal, weights, vectors) in zip(pools, aims, strict=False):
                picked = torch.randperm(len(pool), generator=rng)[: self.batch]
                cond = tuner.student.embed([pool[i] for i in picked], grad=True)
                if not cond.tokens.requires_grad:
                    raise UsageError(
                        f"TextMapping.fit: trains CLIP text encoders, and {base.family.name} reads its prompts through T5; use uce"
                    )
                off = (cond.tokens.float() - goal[picked]).square().mean(-1)
                missed.append((weights[picked] * off).sum() / weights[picked].sum())
                if cond.pooled is not None and vectors is not None:
                    missed[-1] = missed[-1] + (cond.pooled.float() - vectors[picked]).square().mean()
            moved = sum((a - b).square().sum() for a, b in zip(now, before, strict=True)) / size
            loss = missed[0] + self.preserve_scale * sum(missed[1:]) + self.trust * moved
            tuner.step(loss)
            log.loss(loss.detach())
        return tuner.edit()


def aligned(
    sources: Cond, targets: Cond, prefixes: Sequence[int]
) -> tuple[Float[Tensor, "p n d"], Float[Tensor, "p n"], Float[Tensor, "p v"] | None]:
    """The target of each row of a concept's prompt, and its weight; and the target of its pooled vector, where there is one.

    Rows without a target have weight 0. Rows of a text encoder that is not trained (T5) are left out.
    """
    device, sources, targets = sources.tokens.device, sources.cpu(), targets.cpu()
    goal, weights = sources.tokens.float().clone(), torch.zeros(sources.mask.shape)
    first = sources.first
    weights[:, :first] = 1
    for i, prefix in enumerate(prefixes):
        source, target = (replace(c[[i]], more=None) for c in (sources, targets))
        _, aims, w = pair_rows(source, target, "content", prefix)
        goal[i, first : len(aims) + first], weights[i, first : len(w) + first] = aims.float(), w.float()
    pooled = None if targets.pooled is None else targets.pooled.float().to(device)
    return goal.to(device), weights.to(device), pooled


def unchanged(
    base: Denoiser, prompts: Sequence[str]
) -> tuple[Float[Tensor, "p n d"], Float[Tensor, "p n"], Float[Tensor, "p v"] | None]:
    """The rows of preserved prompts, their weights, and their pooled vectors, where there are."""
    cond = replace(base.embed(prompts).cpu(), more=None)
    weights = keep_rows(cond, "content")[1].view(cond.mask.shape)
    pooled = None if cond.pooled is None else cond.pooled.float().to(base.device)
    return cond.tokens.float().to(base.device), weights.float().to(base.device), pooled
