"""Receler: small adapters on the cross-attention outputs erase a concept, locally in the picture and against adversarial soft prompts.

Paper:   Huang et al., ECCV 2024, arXiv:2311.17717, with the released code's settings.
Idea:    Train adapters E, which add to the output o of every cross-attention, towards ESD's target, on prompts c with adversarial
         vectors p (a soft prompt that brings the concept back) after their tokens, and penalise output outside the concept's region:
             L = | e_E(x_t, c ⊕ p, t) - (e(x_t, ∅, t) - η (e(x_t, c, t) - e(x_t, ∅, t))) |² + λ mean_l |E(o_l) (1 - M_l)|²
             p minimises | e_E(x_t, c ⊕ p, t) - e(x_t, c, t) |²,  M: mask of the frozen model's attention to the concept
Names:   localise = λ, threshold gives M; width = rank of E, vectors = length of p, adversarial_steps = inner steps (50).
Differs: The released code writes p into a copy and never uses it: preset "released" has no p, and like the code one latent of the
         edited model in a step, 500 steps at 3e-4, bare names, nothing preserved. The code's latents are 39 to 58 noise levels cleaner
         than the level it gives the model; its masks at layers below 16 x 16 are nearest neighbours, ours area averages. In ours half
         of the latents have their own p, and half the plain prompt. The code's one p starts in [0, 1) with weight decay in Adam's
         gradient, which outweighs so small a loss; ours start at the norm of token embeddings, without decay, new for each trajectory.
         The paper does not constrain other prompts: `keep` preserves predictions for "", preserved concepts and everyday words.
Cost:    A minute and a half for Moji on one core, minutes on a GPU for Stable Diffusion.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from typing_extensions import override  # in typing from Python 3.12

from efface.core.attention import grid, heat, own, recorded, resized
from efface.core.branches.bottlenecks import Bottlenecks, noted
from efface.core.concept import Concept
from efface.core.cond import Cond
from efface.core.denoiser import Denoiser
from efface.core.edit import Adapter
from efface.core.log import Log
from efface.core.params import param
from efface.core.prompts import ConceptPrompts, everyday_prompts, kept_prompts, negative_guidance_target
from efface.core.train import Learner
from efface.core.walk import walk
from efface.erasers.base import Eraser


@dataclass(frozen=True, kw_only=True)
class Receler(Eraser):
    """Train adapters that erase despite adversarial padding."""

    width: int = param(128, "hidden units of each adapter", at_least=1)
    eta: float = param(1.0, "η, strength of the negative guidance away from the concept", at_least=0)
    steps: int = param(60, "training steps", at_least=0)
    lr: float = param(2e-3, "Adam's learning rate", above=0)
    batch: int = param(6, "noisy latents in a step", at_least=1)
    localise: float = param(0.1, "λ, weight of the adapters' output outside the concept's region", at_least=0)
    threshold: float = param(0.1, "attention, from 0 to 1, that marks the concept's region", at_least=0, at_most=1)
    keep: float = param(1.0, "weight of preserving the predictions for other prompts", at_least=0)
    everyday: int = param(200, "frequent words among those prompts", at_least=0)
    vectors: int = param(16, "token embeddings after a prompt's end that the adversary replaces", at_least=1)
    adversarial_steps: int = param(3, "adversary's steps before each training step; 0 trains without it", at_least=0)
    adversarial_lr: float = param(0.3, "adversary's learning rate, in standard deviations of token embeddings", above=0)
    source: Literal["base", "edited"] = param("base", "model that samples the latents")
    reuse: int = param(20, "steps that share the sampled trajectories", at_least=1)
    sampler_steps: int = param(25, "DDIM steps of a trajectory", at_least=2)
    guidance: float = param(3.0, "guidance scale of a trajectory", at_least=1)
    templates: bool = param(True, "also use prompt templates, not only the bare name")

    makes: ClassVar = (Adapter,)
    needs: ClassVar = frozenset({"drawing", "cross-attention"})
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "released": {
            "steps": 500, "lr": 3e-4, "batch": 1, "source": "edited", "reuse": 1, "sampler_steps": 50, "keep": 0.0,
            "adversarial_steps": 0, "templates": False,
        },
    }  # fmt: skip

    @override
    def run(
        self, base: Denoiser, erase: tuple[Concept, ...], preserve: tuple[Concept, ...], rng: Generator, log: Log
    ) -> Adapter:
        prompts = ConceptPrompts.of(erase, self.templates)
        embedded, kept = prompts.embed(base), self.kept(base, erase, preserve)
        own_tokens = own(embedded.prompts, [base.embed([name]) for name in prompts.names])
        branch, added = Bottlenecks.new(base, self.width, rng), {}
        learner = Learner(branch.tensors, lr=self.lr, rng=rng)
        student = base.fork(())
        student.branches = (*base.branches, noted(branch.bind(base), added))
        latents = walk(
            student if self.source == "edited" else base, embedded.prompts, rng,
            batch=self.batch, reuse=self.reuse, steps=self.sampler_steps, guidance=self.guidance,
        )  # fmt: skip
        half = (self.batch + 1) // 2
        hard = half if self.adversarial_steps else 0  # how many latents get adversarial prompts
        adversaries = self.adversaries(embedded.prompts, hard, rng)
        log.recipe = self.recipe(base, erase, preserve)
        for step in log.steps(
            learner, self.steps, self.reuse * -(-25 // self.reuse)
        ):  # checkpoints between trajectories
            (x, t, picked), (vectors, adversary) = next(latents), next(adversaries)
            cond, shape = embedded.prompts[picked], (x.shape[2], x.shape[3])
            with torch.no_grad():
                with recorded(base, own_tokens[picked]) as maps:
                    e_cond = base.predict(x, t, cond)
                goal = negative_guidance_target(base, x, t, e_cond, embedded, picked, self.eta)
                masks = (heat(maps, shape) >= self.threshold).float()
            for _ in range(self.adversarial_steps):
                worst = after(cond[:hard], vectors)
                adversary.step((student.predict(x[:hard], t[:hard], worst) - e_cond[:hard]).square().mean())
            worst = after(cond[:hard], vectors.detach())
            loss = (student.predict(x, t, worst + cond[hard:]) - goal).square().mean()
            loss = loss + self.localise * outside(added, masks, shape)
            if self.keep:
                kind = kept[step % len(kept)]
                other = kind[torch.randint(len(kind), (half,), generator=rng)]
                with torch.no_grad():
                    e_other = base.predict(x[:half], t[:half], other)
                loss = loss + self.keep * (student.predict(x[:half], t[:half], other) - e_other).square().mean()
            learner.step(loss)
            log.loss(loss.detach())
        return Adapter(branch)

    def adversaries(self, prompts: Cond, count: int, rng: Generator) -> Iterator[tuple[Tensor, Learner]]:
        """Adversarial vectors for `count` prompts, as large as token embeddings, and their optimiser: new ones for new trajectories."""
        size, width = float(prompts.tokens.std()), prompts.tokens.shape[2]
        while True:
            vectors = size * torch.randn(count, self.vectors, width, generator=rng)
            yield from repeat((vectors, Learner({"vectors": vectors}, lr=self.adversarial_lr * size)), self.reuse)

    def kept(self, base: Denoiser, erase: tuple[Concept, ...], preserve: tuple[Concept, ...]) -> list[Cond]:
        """Prompts to preserve, in three groups: "", the preserved concepts, everyday words."""
        everyday = everyday_prompts(base, self.everyday, ConceptPrompts.of(erase, templates=False))
        return [base.embed(kind) for kind in ([""], kept_prompts(preserve, self.templates), everyday) if kind]


def after(prompts: Cond, vectors: Float[Tensor, "b k d"]) -> Cond:
    """Prompts ⊕ p: the rows after a prompt's tokens (end and first padding) are replaced by the vectors, as many as fit."""
    place = torch.arange(prompts.ids.shape[1], device=prompts.ids.device) - prompts.end[:, None]
    inside, which = (place >= 0) & (place < vectors.shape[1]), place.clamp(0, vectors.shape[1] - 1)
    rows = vectors.to(prompts.tokens)[torch.arange(len(vectors))[:, None], which]
    return replace(prompts, tokens=torch.where(inside[..., None], rows, prompts.tokens))


def outside(added: Mapping[str, Tensor], masks: Float[Tensor, "b h w"], shape: tuple[int, int]) -> Float[Tensor, ""]:
    """L_reg: the mean square of the adapters' output outside the concept, averaged over positions, then pictures, then layers."""
    total = torch.zeros((), device=masks.device)
    for o in added.values():
        free = 1 - resized(masks, grid(o[:, None], shape))
        total = total + (o.square().mean(2) * free**2).sum(1).div(free.sum(1) + 1e-9).mean() / len(added)
    return total
