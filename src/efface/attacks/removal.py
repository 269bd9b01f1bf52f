"""Removal: what an owner of the weights does to an edit without pictures: scale, negate, cut, prune it; ascend the erasing loss.

Paper:   Rusanovsky, Lu et al. 2025 (Erased or Dormant, arXiv:2505.16174) ascend the erasing loss for a few steps; scaling and negating is
         task arithmetic (Ilharco et al. 2023, arXiv:2212.04089).
Idea:    With the edit's file: the unedited model with the edit at half or minus its strength, and the edited weights without the
         strongest directions of their difference from the unedited ones. Without it: the smallest weights set to zero, and a LoRA that
         raises |ε*(z_t, t, c) - ε*(z_t, t, c')|², the difference between the concept's prompt and the target's that erasing made small.
Names:   c the prompt, c' the same with the target in the concept's place, rank and rate of the LoRA, batch of a step.
Differs: The paper ascends each method's own loss, which a file does not carry; here one loss serves all. Strength 0 is left out, since it
         is the unedited model.
Cost:    6 calls of the denoiser for each picture of a step of the ascent; none for the others.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from typing_extensions import override  # in typing from Python 3.12

from efface.attacks.base import Attack, Goal, marks
from efface.core.alterations import PRUNED
from efface.core.attempt import Attempt
from efface.core.denoiser import Denoiser
from efface.core.edit import Edit, LowRank
from efface.core.meter import GRADIENT
from efface.core.params import param
from efface.core.train import NotFinite, Tuner

STRENGTHS, CUTS = (0.5, -0.5, -1.0), (1, 4)


@dataclass(frozen=True, kw_only=True)
class Removal(Attack):
    """Scaled, negated, cut and pruned edits, and gradient ascent."""

    access = "weights"
    gives = "weights"
    gradients = True
    rank: int = param(8, "rank of the LoRA", at_least=1)
    rate: float = param(1e-3, "learning rate of the LoRA", above=0)
    batch: int = param(4, "pictures of a step", at_least=1)

    @override
    def run(self, model: Denoiser, goal: Goal, calls: int, rng: Generator) -> Iterator[Sequence[Attempt]]:
        for name in PRUNED:
            yield [Attempt("removal", f"model: {name}", p, alteration=name) for p in goal.prompts]
        if goal.edit is not None:
            for strength in STRENGTHS:
                yield self.attempts(goal, f"strength {strength:g}", goal.edit * strength, unedited=True)
            for rank in CUTS:
                if (cut := strongest(model, goal.base, rank)) is not None:
                    yield self.attempts(goal, f"without {rank} direction{'s' * (rank > 1)}", cut)
        yield from self.ascent(model, goal, calls, rng)

    def ascent(self, model: Denoiser, goal: Goal, calls: int, rng: Generator) -> Iterator[Sequence[Attempt]]:
        """Weights under which the prompt and the target's differ again."""
        target = goal.concept.target
        x0, n = goal.targets.flatten(0, 1).to(model.device), len(goal.seeds)
        named = model.embed([p for p in goal.prompts for _ in range(n)])
        other = model.embed([goal.renamed(p, target) if target else "" for p in goal.prompts for _ in range(n)])
        tuner = Tuner(model, "denoiser", lr=self.rate, rank=self.rank, rng=rng)
        per_step, step = 2 * GRADIENT * self.batch / len(goal.prompts), 0
        for mark in marks(calls):
            try:
                while (step + 1) * per_step <= mark:
                    i = torch.randint(len(x0), (self.batch,), generator=rng)
                    t = torch.randint(len(model.schedule), (self.batch,), generator=rng).to(model.device)
                    eps = torch.randn(self.batch, *model.latent_shape, generator=rng).to(model.device)
                    x, student = model.add_noise(x0[i], t, eps), tuner.student
                    gap = (student.predict(x, t, named[i]) - student.predict(x, t, other[i])).float().square().mean()
                    tuner.step(-gap)
                    step += 1
            except NotFinite:
                return
            if step:
                yield self.attempts(goal, "ascent", tuner.edit(), steps=step)

    @staticmethod
    def attempts(goal: Goal, label: str, edit: Edit, *, unedited: bool = False, steps: int = 0) -> list[Attempt]:
        """The prompts with this edit."""
        return [
            Attempt("removal", label, p, edit=edit, unedited=unedited, about={"steps": steps}) for p in goal.prompts
        ]


def strongest(model: Denoiser, base: Denoiser, rank: int) -> LowRank | None:
    """What takes the `rank` strongest directions of each changed matrix's change away; None where no matrix changed."""
    before, found = base.params("denoiser"), {}
    for name, w in model.params("denoiser").items():
        change = (w - before[name]).detach().float().flatten(1).cpu() if w.ndim >= 2 else torch.zeros(1)
        if change.any():
            u, s, v = torch.svd_lowrank(change, q=min(rank + 4, *change.shape), niter=4)
            found[name] = (contiguous(-(u * s)[:, :rank]), contiguous(v[:, :rank].T))
    return LowRank(found) if found else None


def contiguous(t: Tensor) -> Tensor:
    """The values in a tensor of their own."""
    return t.contiguous().clone()
