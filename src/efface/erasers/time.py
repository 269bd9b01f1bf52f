"""TIME: text-to-image model editing, in closed form.

Paper:   Orgad, Kawar and Belinkov, ICCV 2023, arXiv:2303.08084.
Idea:    Choose each cross-attention projection W so that token i of a source prompt gets the key and value of token a(i) of a destination:
             min_W'  Σ_i w_i |W' c_i - W g_a(i)|² + b Σ_p |W' p - W p|² + λ |W' - W|²
         One T serves every key and value, W' = W T, since the minimiser is linear in W (Σ_p is ours).
Names:   source = the concept, destination = its target; ridge = λ (`lamb`); preserve_scale = b; alignment = a.
Differs: a is the longest common subsequence of the two prompts. The released code searches forward for each word and crashes if the
         destination lacks one ("tiger" to "cat"). Ours pairs words without a partner with those in the same gap, last with last, or
         else with the next token, so that an empty target is the end of "". Both treat "an" as "a". Words before a concept are
         unchanged. The paper preserves nothing, so that its "", which enters every picture, drifts; ours preserves "" and the given
         concepts. The padding weighs as much as one row, since dozens of near-copies would outweigh the word. λ is in units of the
         rows' mean eigenvalue, so that one value suits every text encoder. Concepts also appear in prompt templates. Preset
         "released" has the released alignment (with our fallback where that crashes), λ = 0.1 in units of 1, every row with weight 1,
         keys and values, no templates, nothing preserved. Several concepts share one solve; the released code makes one edit at a time.
Cost:    No images, no sampling: under a second on Moji.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor
from typing_extensions import override  # in typing from Python 3.12

from efface.core.concept import Concept
from efface.core.denoiser import Cond, Denoiser
from efface.core.edit import TextMap
from efface.core.linalg import text_map
from efface.core.log import Log
from efface.core.params import param
from efface.core.prompts import ConceptPrompts, kept_prompts, targets_in_names
from efface.core.rows import KeptRows
from efface.erasers.base import Eraser
from efface.erasers.parts.pooled import pooled_map


@dataclass(frozen=True, kw_only=True)
class TIME(Eraser):
    """Map one prompt to another, word by word, in closed form."""

    alignment: Literal["subsequence", "forward"] = param(
        "subsequence", "pairing of the prompts' words: longest common subsequence, or next equal word"
    )
    preserve_scale: float = param(1.0, 'b, weight of "" and of a preserved concept; 0 protects nothing', at_least=0)
    ridge: float = param(0.1, "λ, pull towards the original weights", above=0)
    ridge_unit: Literal["rows", "absolute"] = param(
        "rows", "unit of λ: the mean eigenvalue of the rows' Gram matrix, or 1"
    )
    padding: Literal["one", "each"] = param("one", "weight of the padding: of one row in all, or of one row each")
    templates: bool = param(True, "also use prompt templates, not only the bare name")
    pooled: bool = param(True, "also map the pooled vector, in families that read one")

    makes: ClassVar = (TextMap,)
    needs: ClassVar = frozenset({"words"})
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "released": {
            "alignment": "forward", "preserve_scale": 0.0, "ridge": 0.1, "ridge_unit": "absolute", "padding": "each",
            "templates": False, "pooled": False,
        },
    }  # fmt: skip

    @override
    def run(
        self, base: Denoiser, erase: tuple[Concept, ...], preserve: tuple[Concept, ...], rng: Generator, log: Log
    ) -> TextMap:
        prompts = ConceptPrompts.of(erase, self.templates)
        embedded = prompts.embed(base)
        sources, targets = embedded.prompts.cpu(), embedded.targets.cpu()
        articles = base.embed(["an", "a"])
        an, a = articles.ids[:, articles.first].tolist()
        prefixes = enumerate(embedded.prefix_lengths.tolist())
        parts = [
            self.rows(source, target, prefix, (an, a) if k == 0 else (-1, -1))
            for i, leads in prefixes
            for k, (source, target, prefix) in enumerate(
                zip(sources[[i]].segments, targets[[i]].segments, leads, strict=True)
            )
        ]
        c, g, weights = (torch.cat(part) for part in zip(*parts, strict=True))
        inside = targets_in_names(erase) if self.alignment == "subsequence" else ()
        kept = KeptRows.of(base, ["", *kept_prompts((*preserve, *inside), self.templates)], "content")
        protected = self.preserve_scale * kept.moment
        unit = 1.0
        if self.ridge_unit == "rows":
            unit = (protected.trace() + (weights * c.double().square().sum(1)).sum()) / c.shape[1]
        left, right = text_map(c, g, weights, protected, float(self.ridge * unit))
        return TextMap(left, right, pooled=pooled_map(base, prompts, (*preserve, *inside)) if self.pooled else None)

    def rows(self, source: Cond, target: Cond, prefix: int, an_a: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """All rows of one prompt, their target rows, and their weights: (n d), (n d), (n)."""
        c, n, end = source.tokens[0], source.tokens.shape[1], int(source.end)
        words, goal = (p.word_ids()[0] for p in (source, target))
        # both forms of the article count as one word
        words, goal = ([an_a[1] if word == an_a[0] else word for word in text] for text in (words, goal))
        inner = subsequence(words, goal) if self.alignment == "subsequence" else forward(words, goal)
        # end token to end token, then padding to padding
        first = source.first  # places count as if a start token came before
        after = [min(len(goal) + first + k, n - 1) for k in range(n - end)]
        aims = target.tokens[0][[*[0] * first, *(place - 1 + first for place in inner), *after]]
        aims[first : prefix + first] = c[first : prefix + first]
        weights = torch.ones(n, dtype=torch.float64)
        if self.padding == "one":
            weights[end + 1 :] = 1 / max(1, n - 1 - end)
        return c, aims, weights


def subsequence(source: Sequence[int], target: Sequence[int]) -> list[int]:
    """The target row of each source word, by the longest common subsequence; rows count from 1."""
    m, k = len(source), len(target)
    longest = [[0] * (k + 1) for _ in range(m + 1)]  # of source[i:] and target[j:]
    for i in reversed(range(m)):
        for j in reversed(range(k)):
            shorter = max(longest[i + 1][j], longest[i][j + 1])
            longest[i][j] = longest[i + 1][j + 1] + 1 if source[i] == target[j] else shorter
    shared, i, j = [], 0, 0
    while i < m and j < k:
        if source[i] == target[j]:
            shared.append((i, j))
            i, j = i + 1, j + 1
        elif longest[i + 1][j] >= longest[i][j + 1]:
            i += 1
        else:
            j += 1
    places, i, j = [], -1, -1  # the last words with a partner
    for next_i, next_j in [*shared, (m, k)]:
        alone, instead = next_i - i - 1, next_j - j - 1
        for x in range(1, alone + 1):
            places.append(j + 1 - (-x * instead // alone) if instead else next_j + 1)
        places.append(next_j + 1)
        i, j = next_i, next_j
    return places[:m]


def forward(source: Sequence[int], target: Sequence[int]) -> list[int]:
    """The released alignment: each word is paired with the next equal one, or else with the last word."""
    places, at = [], 0
    for word in source:
        found = [j for j in range(at, len(target)) if target[j] == word]
        at = found[0] + 1 if found else at
        places.append(at if found else max(len(target), 1))
    return places
