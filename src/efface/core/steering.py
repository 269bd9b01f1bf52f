"""Corrections that an edit adds to the guided noise prediction while sampling; no weight changes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from efface.core.concept import Concept

# (e(∅), e(prompt), e(away), e(towards), guidance scale) -> what to add to the guided noise prediction
Correction = Callable[[Tensor, Tensor, Tensor, Tensor, float | Tensor], Tensor]


@dataclass(frozen=True)
class Replace:
    """The concept as the negative prompt: e(away) + s (e(c) - e(away)) for e(∅) + s (e(c) - e(∅)), hence (1 - s)(e(away) - e(∅))."""

    joins_negative: ClassVar[bool] = True  # the concept and the user's negative prompt are one prompt

    def start(self) -> Correction:
        """A correction without state."""
        return lambda e_null, e_cond, e_away, e_towards, scale: (1 - scale) * (e_away - e_towards)


@dataclass(frozen=True)
class Repel:
    """Safe latent diffusion's third direction (arXiv:2211.05105, eq. 3-8): -s γ, entry by entry, with warm-up and momentum.

    γ = μ (e(away) - e(∅)) + s_m ν,  μ = min(s_S |e(c) - e(away)|, 1) where e(c) - e(away) < λ, else 0,  ν' = β ν + (1 - β) γ
    """

    scale: float  # s_S
    threshold: float  # λ
    warmup: float  # δ, in steps of the sampler
    momentum: float  # s_m
    beta: float  # β_m, decay of ν in a step

    joins_negative: ClassVar[bool] = False

    def start(self) -> Correction:
        """A correction with ν = 0 at step 0; ν accumulates during the warm-up."""
        step, memory = 0, torch.zeros(())

        def correct(e_null: Tensor, e_cond: Tensor, e_away: Tensor, e_towards: Tensor, scale: float | Tensor) -> Tensor:
            nonlocal step, memory
            apart = e_cond - e_away
            gate = torch.where(apart < self.threshold, (self.scale * apart.abs()).clamp(max=1), 0)
            gamma = gate * (e_away - e_towards) + self.momentum * memory.to(apart)
            memory = self.beta * memory.to(apart) + (1 - self.beta) * gamma
            step += 1
            return -scale * gamma if step > self.warmup else torch.zeros_like(gamma)

        return correct


Rule = Replace | Repel
RULES: dict[str, type[Rule]] = {rule.__name__: rule for rule in (Replace, Repel)}


@dataclass(frozen=True)
class Steer:
    """One correction of the sampler: away from one prompt, towards another ("" = ∅), by a rule."""

    away: str
    towards: str
    rule: Rule
    strength: float = 1.0

    def texts(self, negative: str) -> tuple[str, str]:
        """The two prompts whose predictions it needs; the sampler's negative prompt replaces ∅."""
        if self.rule.joins_negative:
            away, towards = (", ".join(filter(None, (text, negative))) for text in (self.away, self.towards))
            return away, towards
        return self.away, self.towards or negative

    def start(self) -> Correction:
        """A correction with fresh state: one for each batch of pictures."""
        correct = self.rule.start()
        return lambda *given: self.strength * correct(*given)


def pairs(erase: Iterable[Concept], fits: Callable[[str], bool]) -> list[tuple[str, str]]:
    """Prompts to steer away from and towards: concepts with the same target in one prompt, separated by commas, in alphabetical order.

    Names that no longer `fits` accepts start another prompt: the text encoder truncates long lists, so their end would not be erased.
    """
    by_target: dict[str, set[str]] = {}
    for c in erase:
        by_target.setdefault(_plain(c.target), set()).update(_plain(phrase) for phrase in c.phrases)
    out = []
    for target, phrases in sorted(by_target.items()):
        group: list[str] = []
        for phrase in sorted(phrases):
            if group and not fits(", ".join([*group, phrase])):
                out.append((", ".join(group), target))
                group = []
            group.append(phrase)
        out.append((", ".join(group), target))
    return out


def _plain(words: str) -> str:
    return " ".join(words.lower().split())
