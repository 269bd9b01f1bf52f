"""Soft: perturbed rows of the encoded prompt, in a ball around the prompt's own, by projected gradient.

Paper:   Kim et al. 2024 (RACE, arXiv:2405.16341, section 3), Zhang et al. 2024 (AdvUnlearn, arXiv:2405.15234): the attacks that both
         train against; projected gradient is Madry et al. 2018 (arXiv:1706.06083).
Idea:    Minimise over |δ| ≤ r the error |ε - ε*(z_t, t, c + δ)|² with which the edited model denoises pictures of the concept.
         Steps follow the normalised gradient; each is projected on the ball.
Names:   radius r, relative to the size of each row; norm of a row's δ; rate the length of a step, as a share of r; draws the pairs of
         level and noise in a step; universal one δ for all prompts.
Differs: RACE perturbs in one sign step from one level; here levels and noise are drawn anew in each step, and of all steps the one
         with the least error on a bank of other draws is kept. The start token's row, which is the same in every prompt, stays.
         Who gives rows also decides which token ids a gate reads (preset evasion): gates by name then see an empty prompt.
Cost:    3 calls of the denoiser for each draw, prompt and step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Generator, Tensor
from typing_extensions import override  # in typing from Python 3.12

from efface.attacks.base import Attack, Elite, Goal
from efface.attacks.parts.losses import Bank, denoising_error
from efface.core.attempt import Attempt
from efface.core.denoiser import Denoiser
from efface.core.params import param


@dataclass(frozen=True, kw_only=True)
class Soft(Attack):
    """Projected gradient on the encoded prompt."""

    access = "rows"
    gives = "rows"
    gradients = True
    uses = ("targets", "turned_targets")
    presets = {  # noqa: RUF012
        "linf": {"norm": "linf"},
        "universal": {"universal": True},
        "evasion": {"evasion": True},
        "control": {"control": True},
    }
    radius: float = param(1.0, "r: of a row's change, relative to the row's norm", above=0)
    norm: Literal["l2", "linf"] = param("l2", "norm of a row's change; linf: relative to the row's root mean square")
    rate: float = param(0.1, "length of a step, relative to r", above=0, at_most=1)
    draws: int = param(4, "pairs of level and noise in a step", at_least=1)
    judged: int = param(16, "pairs on which steps are compared", at_least=1)
    every: int = param(10, "steps between comparisons", at_least=1)
    universal: bool = param(False, "one change for all prompts")
    control: bool = param(False, "search for the pictures upside down, which no model knew")
    evasion: bool = param(False, "tell gates that read token ids that the prompt is empty")

    @override
    def run(self, model: Denoiser, goal: Goal, calls: int, rng: Generator) -> Iterator[Sequence[Attempt]]:
        cond, targets = model.embed(goal.prompts), goal.turned_targets if self.control else goal.targets
        if self.evasion:
            nothing = model.embed([""])[[0] * len(cond)]
            cond = replace(nothing, tokens=cond.tokens)
        held_out = Bank.of(model, self.judged, len(goal.seeds), rng)
        size = cond.tokens.norm(dim=-1, keepdim=True)
        limit = self.radius * (size if self.norm == "l2" else size / cond.tokens.shape[-1] ** 0.5)
        limit[:, 0] = 0
        if self.universal:
            limit = limit.amin(0, keepdim=True)
        delta, best, step = torch.zeros_like(limit.expand(*limit.shape[:2], cond.tokens.shape[-1])), Elite(), 0
        while True:
            if step % self.every == 0:
                moved = replace(cond, tokens=cond.tokens + delta)
                with torch.no_grad():
                    error = denoising_error(model, targets, moved, held_out, goal.drawing.guidance)
                found = [
                    Attempt("soft", prompt=p, rows=moved[[i]], turned=self.control) for i, p in enumerate(goal.prompts)
                ]
                if best.improve(error, found):
                    yield best.attempts
            bank = Bank.of(model, self.draws, len(goal.seeds), rng)
            free = delta.clone().requires_grad_(True)
            moved = replace(cond, tokens=cond.tokens + free)
            error = denoising_error(model, targets, moved, bank, goal.drawing.guidance).sum()
            (slope,) = torch.autograd.grad(error, free)
            delta = self.projected(delta - self.rate * self.steepest(slope, limit), limit)
            step += 1

    def steepest(self, slope: Tensor, limit: Tensor) -> Tensor:
        """The change of each row within its ball that raises the error most, to first order."""
        if self.norm == "linf":
            return limit * slope.sign()
        return limit * slope / slope.norm(dim=-1, keepdim=True).clamp(min=1e-20)

    def projected(self, delta: Tensor, limit: Tensor) -> Tensor:
        """The nearest change in each row's ball."""
        if self.norm == "linf":
            return delta.clamp(-limit, limit)
        return delta * (limit / delta.norm(dim=-1, keepdim=True).clamp(min=1e-20)).clamp(max=1)
