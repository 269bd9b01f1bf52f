"""UCE: unified concept editing, in closed form.

Paper:   Gandikota et al., WACV 2024, arXiv:2308.14761, eq. 7.
Idea:    Choose each cross-attention projection W so that an erased concept reads as its target and a preserved one as itself:
             min_W'  a Σ_e |W' c_e - W c_t|² + b Σ_p |W' p - W p|² + λ |W' - W|²
         One T serves every key and value, W' = W T, since M = λI + a Σ c cᵀ + b Σ p pᵀ depends on the words alone.
Names:   erase_scale = a, preserve_scale = b, ridge = λ (`lamb` in the released code); target = guide concept.
Differs: Float64 and one Cholesky instead of float32 inverses layer by layer: with many preserved concepts M is badly conditioned.
         Our rows (`tokens="content"`) constrain every word of a name, its end and its padding, with the padding weighing as much
         as one row: sixty near-copies would swamp the word. "" is always preserved, since the unconditional branch enters every
         picture. The ridge is in units of the rows' mean eigenvalue, so that one value suits every text encoder, and its metric
         is where everyday words lie: λ |(W' - W) R^½|², R the second moment of the tokenizer's frequent words. Text rows fill few
         directions; a pull that is equal in all lets whatever no list named move along (on Moji, erasing the bus cost a third of
         the distant concepts). Concepts are said bare and in a few plain phrases, whose own words stay. Preset "2023" pairs last
         word to end of padding as the paper's code, "2025" only the last word as the later code, where an empty target means the
         start token; both keep the plain ridge.
Cost:    No images, no sampling: under a second on Moji, and what it takes to embed a few hundred prompts elsewhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor
from typing_extensions import override  # in typing from Python 3.12

from efface.core.concept import Concept, article
from efface.core.denoiser import Cond, Denoiser
from efface.core.edit import TextMap
from efface.core.linalg import gram, text_map
from efface.core.params import param
from efface.core.train import Log
from efface.erasers.base import Eraser


@dataclass(frozen=True, kw_only=True)
class UCE(Eraser):
    """Erase to a target or to nothing, many concepts at once, in closed form."""

    erase_scale: float = param(1.0, "a, weight of an erased concept", above=0)
    preserve_scale: float = param(
        1.0, "b, weight of a preserved concept; 0 means max(0.1, 1/number preserved)", at_least=0
    )
    ridge: float = param(0.1, "λ, pull towards the original weights", above=0)
    ridge_unit: Literal["rows", "absolute"] = param(
        "rows", "λ in units of the mean eigenvalue of the rows' Gram matrix, or as it is"
    )
    tokens: Literal["content", "last_to_end", "last"] = param("content", "rows of a prompt that are constrained")
    everyday: int = param(200, "frequent words that λ holds in place; 0 pulls equally in all directions", at_least=0)
    phrases: bool = param(True, "say each concept in a few plain phrases as well, not only bare")

    makes: ClassVar = (TextMap,)
    cost: ClassVar = "seconds, words only"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "2023": {
            "tokens": "last_to_end", "ridge": 0.5, "ridge_unit": "absolute", "preserve_scale": 0.0, "everyday": 0, "phrases": False,
        },
        "2025": {"tokens": "last", "ridge": 0.5, "ridge_unit": "absolute", "everyday": 0, "phrases": False},
    }  # fmt: skip

    @override
    def run(
        self, base: Denoiser, erase: tuple[Concept, ...], preserve: tuple[Concept, ...], rng: Generator, log: Log
    ) -> TextMap:
        pairs = [pair for c in erase for pair in c.pairs(self.phrases, things=True)]
        kept = [text for c in preserve for text, _ in c.pairs(self.phrases)]
        if self.tokens != "last":  # the later code leaves the unconditional prompt unprotected
            kept.append("")
        words = base.embed([text for pair in pairs for text in pair] + kept)
        leads = base.embed([text for c in erase for text in c.leads(self.phrases, things=True)]).mask.sum(1) - 2
        said = {w for pair in pairs for text in pair for w in text.lower().split()}
        others = [w for w in base.words(self.everyday + len(said)) if w not in said][: self.everyday]
        everyday = base.embed([text for w in others for text in (w, article(w))]) if others else None
        return self.solve(
            words[: 2 * len(pairs) : 2],
            words[1 : 2 * len(pairs) : 2],
            words[2 * len(pairs) :],
            leads.tolist(),
            everyday,
        )

    def solve(
        self, erased: Cond, targets: Cond, preserved: Cond, leads: Sequence[int] = (), everyday: Cond | None = None
    ) -> TextMap:
        """The map for embedded prompts: `erased[i]` reads as `targets[i]` but for its first `leads[i]` words, `preserved` as itself.

        `everyday` prompts shape the ridge: the map is pulled towards the identity where they lie.
        """
        erased, targets, preserved = erased.cpu(), targets.cpu(), preserved.cpu()
        leads = leads or [0] * len(erased)
        paired = [pair_rows(erased[[i]], targets[[i]], self.tokens, lead) for i, lead in enumerate(leads)]
        c, g, weights = (torch.cat(parts) for parts in zip(*paired, strict=True))
        rows, row_weights = keep_rows(preserved, self.tokens)
        b = self.preserve_scale or max(0.1, 1 / max(1, len(preserved)))
        kept = gram(rows, b * row_weights)
        weights = self.erase_scale * weights
        unit = (
            (kept.trace() + (weights * c.double().square().sum(1)).sum()) / c.shape[1]
            if self.ridge_unit == "rows"
            else 1.0
        )
        metric = None if everyday is None else spread(*keep_rows(everyday.cpu(), self.tokens))
        return TextMap(*text_map(c, g, weights, kept, float(self.ridge * unit), metric))


def spread(rows: Tensor, weights: Tensor) -> Tensor:
    """Where rows lie, as a metric (d d) of mean eigenvalue 1: nine parts their second moment, one part the identity."""
    moment = gram(rows, weights)
    return 0.9 * moment * (len(moment) / moment.trace()) + 0.1 * torch.eye(len(moment), dtype=moment.dtype)


def pair_rows(source: Cond, target: Cond, tokens: str, lead: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of one prompt, the rows they shall read as, and their weights: (n d), (n d), (n). Row 0 is the start token."""
    c, g = source.tokens[0], target.tokens[0]
    n, last, last_g = len(c), int(source.mask.sum()) - 2, int(target.mask.sum()) - 2  # "" has last = 0, the start token
    if tokens == "last":
        return c[last : last + 1], g[last_g : last_g + 1], torch.ones(1, dtype=torch.float64)
    if tokens == "last_to_end":
        k = n - max(last, last_g)
        return c[last : last + k], g[last_g : last_g + k], torch.ones(k, dtype=torch.float64)
    # the words before the concept stay ("a" is not the tiger's); each of its own goes to the target's at the same relative place,
    # or to the end of an empty target; end to end; padding to padding
    own = torch.arange(1, last - lead + 1)
    share = (last_g - lead) / max(last - lead, 1)
    places = lead + (own * share).ceil().long() if last_g else torch.ones_like(own)
    k = n - 1 - max(last, last_g)
    weights = torch.ones(last + k, dtype=torch.float64)
    weights[last + 1 :] = 1 / max(1, k - 1)
    aims = torch.cat([c[1 : lead + 1], g[places], g[last_g + 1 : last_g + 1 + k]])
    return c[1 : last + 1 + k], aims, weights


def keep_rows(preserved: Cond, tokens: str) -> tuple[Tensor, Tensor]:
    """Rows that shall stay and their weights, over all prompts: (n d), (n)."""
    b, n, d = preserved.tokens.shape
    at, end = torch.arange(n), preserved.mask.sum(1, keepdim=True) - 1
    if tokens == "last":
        weights = (at == end - 1).double()
    elif tokens == "last_to_end":
        weights = torch.ones(b, n, dtype=torch.float64)
    else:
        weights = torch.where(at > end, 1 / (n - 1 - end).clamp(min=1).double(), 1.0)
    used = weights.flatten() > 0
    return preserved.tokens.reshape(b * n, d)[used], weights.flatten()[used]
