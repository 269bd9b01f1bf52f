"""Inverse: the rows that an edit of the text embeddings maps back to the prompt's own.

Paper:   Bui et al. 2025 (KPOP, arXiv:2510.03302, section 2) and Gong et al. 2024 (RECE, arXiv:2407.12383) note that a closed-form edit
         W' = W T leaves the knowledge behind T; the inverse map is ours.
Idea:    An edit that multiplies every row e of a prompt by T = I + L Rᵀ is undone by the rows e T⁻¹: the denoiser then computes, to
         rounding, what the unedited one does. By Woodbury T⁻¹ = I - L (I + Rᵀ L)⁻¹ Rᵀ; rank r, exact, no search. Where T is singular
         (a direction was projected out) the pseudo-inverse gives the nearest rows.
Names:   T the edit's map, L and R its factors (`left`, `right`), tolerance the singular values that count as zero.
Differs: The user must be able to give the model rows; it cannot be typed.
Cost:    Milliseconds, no call of the denoiser.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from typing_extensions import override  # in typing from Python 3.12

from efface.attacks.base import Attack, Goal
from efface.core.attempt import Attempt
from efface.core.cond import Cond
from efface.core.denoiser import Denoiser
from efface.core.edit import TextMap, flat
from efface.core.params import param


@dataclass(frozen=True, kw_only=True)
class Inverse(Attack):
    """The inverse of a linear map of the text embeddings."""

    access = "rows"
    gives = "rows"
    uses = ()
    tolerance: float = param(
        1e-6, "singular values below this, relative to the largest, count as zero", above=0, at_most=1
    )

    @override
    def applies(self, model: Denoiser, goal: Goal) -> str:
        if goal.edit is None:
            return "needs the edit's file, which a model made elsewhere does not have"
        if not all(isinstance(one, TextMap) for one in flat(goal.edit)):
            return "undoes linear maps of the text embeddings only, and this edit is of another kind"
        return ""

    @override
    def run(self, model: Denoiser, goal: Goal, calls: int, rng: Generator) -> Iterator[Sequence[Attempt]]:
        cond = self.undone(model.embed([goal.drawing.negative, *goal.prompts]), goal)
        negative = None if model.family.distilled(model.pipeline) else cond[[0]]
        yield [
            Attempt("inverse", prompt=p, rows=cond[[i]], negative_rows=negative)
            for i, p in enumerate(goal.prompts, start=1)
        ]

    def undone(self, cond: Cond, goal: Goal) -> Cond:
        """The prompts that the edits' maps, of rows and of pooled vectors, turn into these."""
        maps = [one for one in flat(goal.edit) if isinstance(one, TextMap)] if goal.edit else []
        rows = self.inverse([(one.left, one.right, one.strength) for one in maps])
        vectors = self.inverse([(*one.pooled, one.strength) for one in maps if one.pooled is not None])
        more = None if cond.more is None else replace(cond.more, tokens=_times(cond.more.tokens, rows))
        pooled = None if cond.pooled is None else _times(cond.pooled, vectors)
        return replace(cond, tokens=_times(cond.tokens, rows), pooled=pooled, more=more)

    def inverse(self, maps: Sequence[tuple[Tensor, Tensor, float]]) -> Tensor | None:
        """T⁻¹, where a layer with weight W reads W T e: T is the product of the edits' maps, the last one next to e; None without any."""
        whole = None
        for left, right, strength in maps:
            here = torch.eye(len(left), dtype=torch.float64) + strength * left.double() @ right.double().T
            whole = here if whole is None else whole @ here
        return None if whole is None else torch.linalg.pinv(whole, rtol=self.tolerance)


def _times(given: Tensor, undo: Tensor | None) -> Tensor:
    return given if undo is None else (given.double().cpu() @ undo.T).to(given)
