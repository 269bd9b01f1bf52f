"""UCE's closed form with mixtures as targets: a prompt's embeddings plus a share of other prompts' (Debias)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from efface.core.denoiser import Denoiser
from efface.core.edit import Delta, TextMap
from efface.core.linalg import gain, text_map


@dataclass(frozen=True)
class Part:
    """One prompt of a concept: its rows c, the rows a_k of the same prompt with each attribute, and their weights."""

    concept: int
    rows: Float[Tensor, "n d"]
    others: Float[Tensor, "k n d"]
    weights: Float[Tensor, "n"]


@dataclass(frozen=True)
class Mixture:
    """The closed form for any β. `system` are `text_map`'s arguments after rows and targets: weights, preserved rows, λ, its metric."""

    parts: Sequence[Part]
    system: tuple[Tensor, Tensor, float, Tensor | None]

    def of_rows(self, beta: Float[Tensor, "concepts k"]) -> TextMap:
        """Map rows to c + Σ_k β_k (a_k - c), in every projection."""
        c = torch.cat([p.rows for p in self.parts]).double()
        steps = [torch.einsum("k,knd->nd", beta[p.concept].double(), (p.others - p.rows).double()) for p in self.parts]
        return TextMap(*text_map(c, c + torch.cat(steps), *self.system))

    def of_outputs(self, base: Denoiser, betas: Float[Tensor, "rounds concepts k"]) -> Delta:
        """Give each projection the output v - Σ_k β_k o, with v = o, then v <- v + β_k |v| u_k / |u_k| for each k in turn (as released).

        o and u_k are its outputs for c and a_k in the previous round.
        """
        y = gain(torch.cat([p.rows for p in self.parts]), *self.system)
        deltas = {}
        for name, w in base.reader_weights().items():
            now = w.detach().cpu().double()
            for beta in betas.double():
                now = now + torch.cat([_towards(p, beta[p.concept], now) for p in self.parts]).T @ y.T
            deltas[name] = now - w.detach().cpu().double()
        return Delta(deltas)


def _towards(part: Part, beta: Float[Tensor, "k"], w: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Change of a prompt's outputs, v - Σ_k β_k o - o, for the rows that differ; norms are over all of them together."""
    step, differ = torch.zeros(len(part.rows), len(w), dtype=w.dtype), (part.others != part.rows).any(0).any(1)
    o, others = part.rows[differ].double() @ w.T, part.others[:, differ].double() @ w.T
    v = o
    for b, u in zip(beta, others, strict=True):
        v = v + b * (v.norm() / u.norm()) * u
    step[differ] = v - beta.sum() * o - o
    return step
