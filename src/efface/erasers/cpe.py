"""CPE: concept pinpoint eraser, a token gate added to every cross-attention key and value.

Paper:   Lee et al., ICLR 2025, arXiv:2506.22806, eq. 8 to 12 and algorithm 1.
Idea:    Add a residual that is not linear in the prompt, with a gate that opens only for the concept, and train it on keys and
         values, without running the denoiser:
             P(E) = W E + σ(e w) e D U,   e = softmax(E Q (E K)ᵀ) E
             L = |P(E_t) - P₀(E_s) - η (P₀(E_s) - P₀(E_t))|² + a λ |P(E_a) - P₀(E_a)|²
         RARE: rounds of an attack (embeddings added to the concept's that undo the erasure) and of a defence against them.
Names:   target = surrogate E_s, anchors E_a = preserved concepts, everyday words and "", with noise and mixup; gate_rank, site_rank = s₁,
         s₂; anchor_weight = λ_anchor; rounds = stages - 1.
Differs: Distances of keys and values are computed from products of the factors: the same numbers, without any key or value.
         All concepts are trained at once, independently. Defences are against the attacks of all rounds, the code's against the last;
         its unused attack after the last defence is left out. Q and K differ (the code uses Q for both). The paper's softmax
         constant √(m-1)/m is not a bound, ½ is; the true bound weighs keys some two hundred times as much as values, and little is
         erased (on Moji 6 of 8 tigers remained), so λ compares keys with keys and values with values over layers. U is in units of a
         site's outputs and λ has mean 1, so that one setting suits every model. Anchors are everyday words, not a language model's
         list. Mixup can create an erased combination: for "tiger in noto style", with "tiger in blob style" and "cat in noto style"
         preserved, nothing is erased; without mixup about half. Preset "released": the code's shapes and numbers, in these units.
         Not in it: all adversaries of a round in every step of a defence, in one template (ours samples both); a new 8-bit AdamW for
         each stage, with five warm-up steps and two cosines in the first stage (ours: one Adam, one cosine a stage); Kaiming
         initialisation, for gates over d²; the residual divided by its rank, which is 1.
Cost:    No images: some twenty seconds on Moji; the paper's takes two minutes a concept on a GPU, seven with RARE.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from typing_extensions import override  # in typing from Python 3.12

from efface.core.branches.gates import Sites
from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.edit import Adapter, Stack
from efface.core.log import Log
from efface.core.params import param
from efface.core.train import Learner
from efface.erasers.base import Eraser
from efface.erasers.parts.anchors import anchor_pool, concept_rows, mixed
from efface.erasers.parts.lipschitz import of_sites
from efface.erasers.parts.pooled import only_pooled


@dataclass(frozen=True, kw_only=True)
class CPE(Eraser):
    """Train adapters with gates that open at a concept's tokens."""

    steps: int = param(100, "training steps of a stage", at_least=0)
    opening: int = param(4, "number of stages of the first erasure", at_least=1)
    rounds: int = param(1, "rounds of one attack stage and one defence stage", at_least=0)
    lr: float = param(3e-3, "Adam's learning rate in the first erasure; defences use a tenth", above=0)
    batch: int = param(2, "prompts of each concept in a step", at_least=1)
    eta: float = param(0.5, "η, how far beyond the target, away from the concept", at_least=0)
    anchor_weight: float = param(300.0, "weight of the anchors", at_least=0)
    anchors: int = param(8, "anchors of each concept in a step", at_least=1)
    near: int = param(1000, "number of prompts nearest to the concept to draw anchors from", at_least=1)
    everyday: int = param(400, "frequent words among the anchors", at_least=0)
    noise: float = param(0.25, "noise on anchors, in units of their root mean square", at_least=0)
    mixup: bool = param(True, "mix anchors in pairs; switch off for a combination of preserved concepts")
    gate_rank: int = param(8, "s₁, rank of the gate's attention", at_least=1)
    site_rank: int = param(2, "s₂, rank of the residual at each site", at_least=1)
    attacks: int = param(4, "adversarial embeddings in a round", at_least=1)
    attack_lr: float = param(1e-2, "Adam's learning rate in attacks", above=0)
    bank: bool = param(True, "defend against the attacks of all rounds, not only the last")
    bound: Literal["layers", "theorem", "released", "none"] = param(
        "layers",
        "λ of each layer's anchors: relative to all keys or all values, or by the theorem (keys get nearly all)",
    )
    tied: bool = param(False, "one projection for queries and keys of the gate")
    pooled: bool = param(True, "also map the pooled vector, in families that read one, in closed form")

    makes: ClassVar = (Adapter, Stack)
    needs: ClassVar = frozenset({"words"})
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "released": {
            "steps": 450, "rounds": 4, "lr": 3e-4, "batch": 1, "eta": 0.3, "anchor_weight": 1e5, "anchors": 32, "near": 150,
            "gate_rank": 16, "site_rank": 1, "attacks": 16, "bank": False, "bound": "released", "tied": True,
            "pooled": False,
        },
    }  # fmt: skip

    @override
    def run(
        self, base: Denoiser, erase: tuple[Concept, ...], preserve: tuple[Concept, ...], rng: Generator, log: Log
    ) -> Adapter | Stack:
        sites, (prompts, targets, counts) = Sites.of(base), concept_rows(base, erase)
        pool, nearest = anchor_pool(base, erase, preserve, prompts, self.everyday, self.near)
        careful = sites.even * self.coefficients(base, sites, pool)
        even = careful if self.bound == "released" else sites.even  # the released code has λ in every term
        n, _, *shape = prompts.shape
        every = torch.arange(n)[:, None]

        def pick(many: int) -> tuple[Tensor, Tensor]:
            which = (torch.rand(n, many, generator=rng) * counts[:, None]).long()
            return prompts[every, which], targets[every, which]

        leaves = sites.leaves(n, self.gate_rank, self.site_rank, self.tied, rng)
        starts = torch.randn(self.rounds, n, self.attacks, *shape, generator=rng).to(prompts) / 1000
        gates = Learner(leaves, lr=self.lr, rng=rng)
        attacks = [Learner({"delta": delta}, lr=self.attack_lr) for delta in starts]
        log.recipe, plan = self.recipe(base, erase, preserve), self.plan()
        for step in log.steps([gates, *attacks], len(plan)):
            stage, fall = plan[step]
            if stage % 2:  # attack: the gates are frozen; train embeddings that undo them
                attack, (rows, _) = attacks[stage // 2], pick(self.attacks)
                added, still = attack.leaves["delta"], {k: leaf.detach() for k, leaf in leaves.items()}
                loss, learner = sites.miss(still, rows + added, -added, even), attack
            else:
                rows, to = pick(self.batch)
                wish = (1 + self.eta) * (to - rows)
                kept = mixed(pool, nearest, self.anchors, self.noise, self.mixup, rng)
                loss = self.anchor_weight * sites.miss(leaves, kept, None, careful)
                loss = loss + sites.miss(leaves, rows, wish, even)
                if stage:
                    met = attacks[0 if self.bank else stage // 2 - 1 : stage // 2]
                    added = torch.cat([a.leaves["delta"].detach() for a in met], 1)
                    added = added[every, torch.randint(added.shape[1], (n, self.batch), generator=rng)]
                    loss = loss + sites.miss(leaves, rows + added, wish - added, even)
                learner = gates
            (group,) = learner.adam.param_groups
            group["lr"] = fall * (self.attack_lr if stage % 2 else self.lr * (0.1 if stage else 1))
            learner.step(loss.sum())
            log.loss(loss.detach().mean())
        gates, pooled = Adapter(sites.branch(leaves)), only_pooled(base, erase, preserve) if self.pooled else None
        return gates if pooled is None else gates + pooled

    def coefficients(self, base: Denoiser, sites: Sites, pool: Float[Tensor, "a t d"]) -> Float[Tensor, "m"]:
        """λ of each site, of mean 1."""
        if self.bound == "none" or not base.cross_attentions():
            return torch.ones_like(sites.even)
        bounds = torch.tensor(of_sites(base, sites.widths, pool, self.bound == "released")).to(pool)
        if self.bound == "layers":
            for kind in (torch.tensor([site.endswith(kv) for site in sites.widths]) for kv in ("to_k", "to_v")):
                bounds[kind] /= bounds[kind].mean()
        return bounds / bounds.mean()

    def plan(self) -> list[tuple[int, float]]:
        """For each step its stage (0 erases, odd ones attack, even ones defend) and the factor of the learning rate, a cosine."""
        lengths = [self.opening * self.steps, *[self.steps] * 2 * self.rounds]
        return [
            (stage, 0.5 + 0.5 * math.cos(math.pi * i / length))
            for stage, length in enumerate(lengths)
            for i in range(length)
        ]
