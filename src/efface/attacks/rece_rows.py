"""RECE rows: the rows whose keys and values in the edited model are nearest to the concept's original ones, in closed form.

Paper:   Gong et al. 2024 (RECE, arXiv:2407.12383, equation 6): the adversarial rows that the method erases in each of its rounds.
Idea:    c' = argmin_z Σ_l |W*_l z - W_l c|² + λ |z|² = (Σ W*ᵀ W* + λ I)⁻¹ (Σ W*ᵀ W) c over all keys and values l, for every row of the
         prompt.
Names:   W and W* the original and the edited weights of the layers that read text, λ `limit`.
Differs: λ is relative to the mean eigenvalue of Σ W*ᵀ W*, so that it means the same on every model, and several are tried; the released
         code inverts in float32, this solves in float64.
Cost:    Milliseconds, no call of the denoiser.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from typing_extensions import override  # in typing from Python 3.12

from efface.attacks.base import Attack, Goal
from efface.core.attempt import Attempt
from efface.core.denoiser import Denoiser

LIMITS = (1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True, kw_only=True)
class RECERows(Attack):
    """Rows in closed form from the original and the edited keys and values."""

    access = "rows"
    gives = "rows"
    uses = ()

    @override
    def applies(self, model: Denoiser, goal: Goal) -> str:
        old, new = weights(goal.base), weights(model)
        if old.shape != new.shape:
            return "needs the unedited weights of the same model"
        return (
            ""
            if not torch.equal(old, new)
            else "undoes changed keys and values, and this model's are the unedited ones"
        )

    @override
    def run(self, model: Denoiser, goal: Goal, calls: int, rng: Generator) -> Iterator[Sequence[Attempt]]:
        old, new, cond = weights(goal.base), weights(model), model.embed(goal.prompts)
        gram, cross = new.T @ new, new.T @ old
        rows, eye = cond.tokens.double().cpu(), torch.eye(len(gram), dtype=torch.float64)
        for limit in LIMITS:
            solve = torch.linalg.solve(gram + limit * gram.trace() / len(gram) * eye, cross)
            moved = replace(cond, tokens=(rows @ solve.T).to(cond.tokens))
            yield [
                Attempt("rece-rows", f"limit {limit:g}", prompt=p, rows=moved[[i]]) for i, p in enumerate(goal.prompts)
            ]


def weights(model: Denoiser) -> Tensor:
    """The weights of every layer that reads text, one below the other, in float64."""
    return torch.cat([layer.weight.detach().double().cpu() for layer in model.text_readers().values()])
