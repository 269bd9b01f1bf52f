"""Negative prompt: the concept replaces the empty prompt in classifier-free guidance.

Paper:   Ho & Salimans, NeurIPS 2021 workshop, arXiv:2207.12598, eq. 6, with the concept for ∅: every benchmark's plainest baseline.
Idea:    Guidance pushes away from the prediction for ∅; replace ∅ by the concept n:
             ε̄ = ε(n) + s (ε(c) - ε(n)) = ε(∅) + s (ε(c) - ε(∅)) + (1 - s) (ε(n) - ε(∅))
Names:   s = the sampler's guidance scale; the edit's strength scales the last term.
Differs: Concepts with the same target share one prompt, separated by commas, as many as the text encoder reads; several prompts add
         their last terms. The user's negative prompt comes after them, and is truncated first. With a target, the last term is
         (1 - s) (ε(n) - ε(target)), which is 0 for equal prompts.
Cost:    Nothing to train; sampling takes half as long again. At s = 1 it does nothing. No weights change.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Generator
from typing_extensions import override  # in typing from Python 3.12

from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.edit import Guidance
from efface.core.log import Log
from efface.core.steering import Replace, pairs
from efface.erasers.base import Eraser


@dataclass(frozen=True, kw_only=True)
class NegativePrompt(Eraser):
    """Sample with the concepts as the negative prompt."""

    makes: ClassVar = (Guidance,)
    keeps: ClassVar = False

    @override
    def run(
        self, base: Denoiser, erase: tuple[Concept, ...], preserve: tuple[Concept, ...], rng: Generator, log: Log
    ) -> Guidance:
        return Guidance(pairs(erase, base.fits), Replace())
