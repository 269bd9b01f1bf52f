"""UCE: unified concept editing, in closed form.

Paper:   Gandikota et al., WACV 2024, arXiv:2308.14761, eq. 7.
Idea:    Choose each cross-attention projection W so that erased concepts get their targets' keys and values; preserved ones keep theirs:
             min_W'  a Σ_e |W' c_e - W c_t|² + b Σ_p |W' p - W p|² + λ |W' - W|²
         One T serves every key and value, W' = W T, since M = λI + a Σ c cᵀ + b Σ p pᵀ depends on the token embeddings alone.
Names:   erase_scale = a, preserve_scale = b, ridge = λ (`lamb` in the released code); target = guide concept.
Differs: Float64 and one Cholesky factorisation instead of float32 inverses for each layer: M is badly conditioned if many concepts
         are preserved. `tokens="content"` constrains every token of a name, its end and its padding; the padding weighs as much as
         one row, since sixty near-copies would outweigh the name. "" is always preserved, since the unconditional prediction enters
         every picture. The ridge is in units of the rows' mean eigenvalue, so that one value suits every text encoder. Its metric is
         the second moment R of the tokenizer's frequent words, λ |(W' - W) R^½|²: token embeddings fill few directions, and with an
         equal ridge in all directions concepts in no list change too (on Moji, erasing the bus cost a third of the distant concepts).
         Concepts appear as bare names and in prompt templates, whose own words are unchanged. Preset "2023" pairs the last token to
         the end of the padding as the paper's code does, "2025" only the last token as the later code, where an empty target is the
         start token; both have the plain ridge. Preset "2023-tensor" is the released technique "tensor", whose target depends on the
         layer, so that each weight has its own difference. A target inside the name ("police car" to "car") is preserved, common tokens
         map to themselves, and tokens before them ("police") have no constraint: docs/targets-in-names.md has figures.
         Where text enters by one embedder (Stable Diffusion 3, Flux), W is that, so that T acts on the rows themselves; `pooled` (ours)
         maps the vector that these and SDXL read besides.
Cost:    No images, no sampling: under a second on Moji; elsewhere the time to embed a few hundred prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor
from typing_extensions import override  # in typing from Python 3.12

from efface.core.concept import Concept
from efface.core.denoiser import Cond, Denoiser
from efface.core.edit import Delta, TextMap
from efface.core.linalg import gain, text_map
from efface.core.log import Log
from efface.core.params import param
from efface.core.prompts import ConceptPrompts, everyday_prompts, kept_prompts, targets_in_names
from efface.core.rows import KeptRows, Leads, keep_rows, pair_rows, row_metric
from efface.erasers.base import Eraser
from efface.erasers.parts.pooled import pooled_map

RELEASED_2023 = {
    "tokens": "last_to_end", "ridge": 0.5, "ridge_unit": "absolute", "preserve_scale": 0.0, "everyday": 0, "templates": False,
    "pooled": False,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class UCE(Eraser):
    """Erase concepts to a target or to nothing, in closed form."""

    erase_scale: float = param(1.0, "a, weight of an erased concept", above=0)
    preserve_scale: float = param(
        1.0, "b, weight of a preserved concept; 0 means max(0.1, 1/number preserved)", at_least=0
    )
    ridge: float = param(0.1, "λ, pull towards the original weights", above=0)
    ridge_unit: Literal["rows", "absolute"] = param(
        "rows", "unit of λ: the mean eigenvalue of the rows' Gram matrix, or 1"
    )
    tokens: Literal["content", "last_to_end", "last"] = param(
        "content", "rows of a prompt that the closed form constrains"
    )
    everyday: int = param(200, "frequent words that define λ's metric; 0 pulls equally in all directions", at_least=0)
    templates: bool = param(True, "also use prompt templates, not only the bare name")
    pooled: bool = param(True, "also map the pooled vector, in families that read one")
    technique: Literal["replace", "tensor"] = param(
        "replace", "targets: the target's keys and values, or these without their component along the concept's"
    )

    makes: ClassVar = (TextMap, Delta)
    needs: ClassVar = frozenset({"words"})
    where: ClassVar = "xattn.kv"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "2023": RELEASED_2023,
        "2023-tensor": {**RELEASED_2023, "technique": "tensor"},
        "2025": {"tokens": "last", "ridge": 0.5, "ridge_unit": "absolute", "everyday": 0, "templates": False, "pooled": False},
    }  # fmt: skip

    @override
    def run(
        self, base: Denoiser, erase: tuple[Concept, ...], preserve: tuple[Concept, ...], rng: Generator, log: Log
    ) -> TextMap | Delta:
        prompts = ConceptPrompts.of(erase, self.templates)
        embedded, everyday = prompts.embed(base), self.everyday_words(base, prompts)
        inside = targets_in_names(erase) if self.tokens == "content" else ()
        kept = self.preserved(base, (*preserve, *inside))
        given = (embedded.prompts, embedded.targets, kept, embedded.prefix_lengths.tolist(), everyday)
        if self.technique == "tensor":
            return self.subtract(base, *given)
        rows, stay = self.solve(*given), (*preserve, *inside)
        pooled = pooled_map(base, prompts, stay, everyday=self.everyday) if self.pooled else None
        return TextMap(rows.left, rows.right, pooled=pooled)

    def preserved(self, base: Denoiser, preserve: Sequence[Concept], unconditional: bool = True) -> KeptRows:
        """Preserved prompts; without the unconditional prompt as in the later released code, so perhaps none."""
        empty = [""] * (unconditional and self.tokens != "last")
        return KeptRows.of(base, [*kept_prompts(preserve, self.templates), *empty], self.tokens)

    def everyday_words(self, base: Denoiser, *besides: ConceptPrompts) -> Cond | None:
        """Frequent words that define the metric of λ."""
        texts = everyday_prompts(base, self.everyday, *besides)
        return base.embed(texts) if texts else None

    def solve(
        self, erased: Cond, targets: Cond, kept: KeptRows, prefixes: Leads = (), everyday: Cond | None = None
    ) -> TextMap:
        """The map for embedded prompts: `erased[i]` becomes `targets[i]`, except its first `prefixes[i]` tokens; `kept` stays.

        `everyday` prompts define the ridge's metric: the map is pulled towards the identity in their directions.
        """
        c, g, weights = (torch.cat(parts) for parts in zip(*self.paired(erased, targets, prefixes), strict=True))
        return TextMap(*text_map(c, g, *self.system(c, weights, kept, everyday)))

    def subtract(
        self, base: Denoiser, erased: Cond, targets: Cond, kept: KeptRows, prefixes: Leads, everyday: Cond | None
    ) -> Delta:
        """`solve` with targets V = W G - ⟨u, W G⟩ u, u = W C / |W C|, for each projection W, over each prompt's rows C that change."""
        paired = self.paired(erased, targets, prefixes)
        c, g, weights = (torch.cat(parts) for parts in zip(*paired, strict=True))
        y = gain(c, *self.system(c, weights, kept, everyday))
        deltas = {}
        for name, w in base.reader_weights().items():
            w64, missing = w.cpu().double(), torch.zeros(len(c), len(w), dtype=torch.float64)
            for rows, aims, at in zip(*(x.split([len(p[0]) for p in paired]) for x in (c, g, missing)), strict=True):
                moves = (rows != aims).any(1)
                old, new = rows[moves].double() @ w64.T, aims[moves].double() @ w64.T
                u = old / old.norm()
                at[moves] = new - (u * new).sum() * u - old
            deltas[name] = missing.T @ y.T
        return Delta(deltas)

    def paired(self, erased: Cond, targets: Cond, prefixes: Leads = ()) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Rows, target rows and weights of each erased prompt."""
        erased, targets = erased.cpu(), targets.cpu()
        pairs = enumerate(prefixes or [()] * len(erased))
        return [pair_rows(erased[[i]], targets[[i]], self.tokens, prefix) for i, prefix in pairs]

    def system(
        self, c: Tensor, weights: Tensor, preserved: KeptRows, everyday: Cond | None
    ) -> tuple[Tensor, Tensor, float, Tensor | None]:
        """The closed form's other arguments: weights a, Gram matrix K of preserved rows, ridge λ and its metric R."""
        kept = (self.preserve_scale or max(0.1, 1 / max(1, preserved.prompts))) * preserved.moment
        weights = self.erase_scale * weights
        unit = 1.0
        if self.ridge_unit == "rows":
            unit = (kept.trace() + (weights * c.double().square().sum(1)).sum()) / c.shape[1]
        metric = None if everyday is None else row_metric(*keep_rows(everyday.cpu(), self.tokens))
        return weights, kept, float(self.ridge * unit), metric
