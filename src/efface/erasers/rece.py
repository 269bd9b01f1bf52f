"""RECE: reliable and efficient concept erasure, UCE against its own closed-form adversary.

Paper:   Gong et al., ECCV 2024, arXiv:2407.12383.
Idea:    After a UCE edit, find the token embeddings that bring the concept back through the edited projections, erase them too, repeat:
             c' = argmin_z Σ_l |W_l' z - W_l c|² + λ_r |z|²
         Every W_l' = W_l T, so c' = (λ_r I + Tᵀ S T)⁻¹ Tᵀ S c with S = Σ_l W_lᵀ W_l: a loop over d x d matrices, one T at the end.
         As λ_r falls, c' becomes T⁻¹ c: the adversary inverts the edit, and λ_r limits the norm of its rows.
Names:   limit = λ_r (`regular_scale`), rounds = epochs; ridge = λ (`lamb`), erase_scale = a, preserve_scale = b as in UCE.
Differs: Each round solves UCE's problem for the concept and all adversarial rows found so far, from the original weights. The
         released code edits the edited weights again: one round can undo the last, and preserved rows keep the values of the last
         round. Ours attacks the rows that UCE changes, with UCE's weights, not all 77. λ_r is in units of the mean eigenvalue of S: at
         0.01 adversarial rows have about the norm of token embeddings (Moji). The released code selects the round with a detector on
         pictures; ours stops when the adversary comes less than `enough` of the way from the target back to the concept, measured in
         all projections. Presets are the released loop, all rounds, from UCE's preset "2023": "released" for broad concepts (nudity:
         λ_r 0.1, three rounds, "" preserved once a concept), "released-narrow" for a style (λ_r 0.001, one round).
Cost:    No images, no sampling: UCE's time, and a d x d solve or two for each round.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from typing_extensions import override  # in typing from Python 3.12

from efface.core.concept import Concept
from efface.core.denoiser import Cond, Denoiser
from efface.core.edit import TextMap
from efface.core.linalg import gram, text_map
from efface.core.log import Log
from efface.core.params import param
from efface.core.prompts import ConceptPrompts, everyday_prompts, kept_prompts, targets_in_names
from efface.core.rows import KeptRows, Leads, keep_rows, pair_rows, row_metric
from efface.erasers.base import Eraser
from efface.erasers.parts.pooled import pooled_map
from efface.erasers.uce import UCE


@dataclass(frozen=True, kw_only=True)
class RECE(Eraser):
    """UCE, then rounds against adversarial token embeddings."""

    rounds: int = param(3, "maximum adversarial rounds after UCE's edit; 0 is UCE", at_least=0)
    limit: float = param(0.01, "λ_r, ridge of an adversarial row (pull towards 0)", above=0)
    limit_unit: Literal["projections", "absolute"] = param(
        "projections", "unit of λ_r: the mean eigenvalue of Σ WᵀW, or 1"
    )
    enough: float = param(0.5, "stop once at most this share comes back; 0 never stops", at_least=0, at_most=1)
    anchor: Literal["original", "edited"] = param(
        "original", "solve each round for all rows from the original weights, or for the new rows from the edited ones"
    )
    erase_scale: float = param(1.0, "a, weight of an erased concept", above=0)
    preserve_scale: float = param(1.0, "b, weight of a preserved concept", at_least=0)
    empty: Literal["once", "each"] = param("once", 'weight of "": once, or once for each erased prompt')
    ridge: float = param(0.1, "λ of a round: UCE's, or in units of 1 if anchor is edited", above=0)
    templates: bool = param(True, "also use prompt templates, not only the bare name")
    pooled: bool = param(True, "also map the pooled vector, in families that read one, once")

    makes: ClassVar = (TextMap,)
    needs: ClassVar = frozenset({"words"})
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        name: {
            "rounds": rounds, "limit": limit, "limit_unit": "absolute", "enough": 0.0, "anchor": "edited", "preserve_scale": 0.1,
            "empty": empty, "templates": False, "pooled": False,
        }
        for name, rounds, limit, empty in (("released", 3, 0.1, "each"), ("released-narrow", 1, 1e-3, "once"))
    }  # fmt: skip

    @override
    def run(
        self, base: Denoiser, erase: tuple[Concept, ...], preserve: tuple[Concept, ...], rng: Generator, log: Log
    ) -> TextMap:
        prompts = ConceptPrompts.of(erase, self.templates)
        embedded = prompts.embed(base)
        erased, targets = embedded.prompts.cpu(), embedded.targets.cpu()
        inside = targets_in_names(erase) if self.anchor == "original" else ()
        rows = "content" if self.anchor == "original" else "last_to_end"
        kept = KeptRows.of(base, [*kept_prompts((*preserve, *inside), self.templates), ""], rows)
        more = (len(erased) - 1) * (self.empty == "each") * KeptRows.of(base, [""], rows).moment
        k, s = self.preserve_scale * (kept.moment + more), seen(base)
        limit = self.limit * (float(s.trace()) / len(s) if self.limit_unit == "projections" else 1.0)
        if self.anchor == "edited":
            t = self.from_edited(erased, targets, kept, k, s, limit)
        else:
            everyday = base.embed(everyday_prompts(base, UCE().everyday, prompts)).cpu()
            t = self.from_original(erased, targets, k, s, limit, embedded.prefix_lengths.tolist(), everyday)
        eye = torch.eye(len(t), dtype=t.dtype)
        pooled = pooled_map(base, prompts, (*preserve, *inside)) if self.pooled else None
        return TextMap(left=t - eye, right=eye, pooled=pooled)

    def from_original(
        self, erased: Cond, targets: Cond, k: Tensor, s: Tensor, limit: float, prefixes: Leads, everyday: Cond
    ) -> Tensor:
        """T (d d) of one objective over the concept's rows and all adversarial rows, from the original weights."""
        paired = [pair_rows(erased[[i]], targets[[i]], "content", n) for i, n in enumerate(prefixes)]
        c, g, a = (torch.cat(parts).double() for parts in zip(*paired, strict=True))
        a = self.erase_scale * a
        ridge = self.ridge * float(k.trace() + (a * c.square().sum(1)).sum()) / len(k)
        metric = row_metric(*keep_rows(everyday, "content"))
        moved = (c != g).any(1)  # the tokens before a concept are unchanged: there is nothing to bring back
        own = c[moved], g[moved], a[moved]
        t = whole(text_map(c, g, a, k, ridge, metric))
        for _ in range(self.rounds):
            z = adversary(t, s, own[0], limit)
            if self.enough and share(t, s, z, *own) <= self.enough:
                break
            c, g, a = torch.cat([c, z]), torch.cat([g, own[1]]), torch.cat([a, own[2]])
            t = whole(text_map(c, g, a, k, ridge, metric))
        return t

    def from_edited(self, erased: Cond, targets: Cond, kept: KeptRows, k: Tensor, s: Tensor, limit: float) -> Tensor:
        """T (d d) of the released loop: all rows, each round edits the edited weights, W <- W T_round."""
        first = UCE(**{**UCE.presets["2023"], "erase_scale": self.erase_scale}).solve(erased, targets, kept)
        t = whole((first.left.double(), first.right.double()))
        c, g = (cond.tokens.flatten(0, 1).double() for cond in (erased, targets))
        a = torch.full_like(c[:, 0], self.erase_scale)
        for _ in range(self.rounds * bool((c != g).any())):  # a concept equal to its target cannot come back
            z = adversary(t, s, c, limit)
            if self.enough and share(t, s, z, c, g, a) <= self.enough:
                break
            t = t @ whole(text_map(z, g, a, k, self.ridge))
        return t


def seen(base: Denoiser) -> Float[Tensor, "d d"]:
    """S = Σ WᵀW over every layer that reads token embeddings: xᵀ S x = Σ |W x|²."""
    rows = torch.cat([w.cpu() for w in base.reader_weights().values()])
    return gram(rows, torch.ones_like(rows[:, 0]))


def whole(factors: tuple[Tensor, Tensor]) -> Float[Tensor, "d d"]:
    """T = I + left rightᵀ."""
    left, right = factors
    return torch.eye(len(left), dtype=left.dtype) + left @ right.T


def adversary(t: Tensor, s: Tensor, c: Float[Tensor, "n d"], limit: float) -> Float[Tensor, "n d"]:
    """Adversarial rows: their edited keys and values are c's original ones: argmin_z Σ_l |W_l T z - W_l c|² + λ_r |z|²."""
    normal = limit * torch.eye(len(t), dtype=t.dtype) + t.T @ s @ t
    return torch.cholesky_solve(t.T @ s @ c.T, torch.linalg.cholesky(normal)).T


def share(t: Tensor, s: Tensor, z: Tensor, c: Tensor, g: Tensor, weights: Tensor) -> float:
    """How far rows z are on the way from target rows g back to the concept's rows c, in all projections: 0 is g, 1 is c."""
    missed, way = ((weights * ((x @ s) * x).sum(1)).sum().sqrt() for x in (z @ t.T - c, g - c))
    return 1 - float(missed / way) if way else 0.0
