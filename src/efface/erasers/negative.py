"""Negative prompt: the concept replaces the empty prompt in classifier-free guidance.

Paper:   Ho & Salimans, NeurIPS 2021 workshop, arXiv:2207.12598, eq. 6, with the concept for ∅: every benchmark's plainest baseline.
Idea:    Guidance leads away from what stands for ∅; let the concept n stand there:
             ε̄ = ε(n) + s (ε(c) - ε(n)) = ε(∅) + s (ε(c) - ε(∅)) + (1 - s) (ε(n) - ε(∅))
Names:   s = the sampler's guidance scale; the edit's strength is how much of the way n takes from ∅, 1 is all of it.
Differs: Concepts of one target share one prompt, separated by commas, as many as the text encoder reads; several prompts add their
         last terms. A negative prompt that the user gives stands behind them, and is what a full text encoder cuts off. With a
         target, the last term is (1 - s) (ε(n) - ε(target)), which is nothing where they say the same.
Cost:    Nothing to train; half as much again for each picture. At s = 1 it does nothing; weights stay as they are.
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
    cost: ClassVar = "nothing to train, sampling costs half as much again"

    @override
    def run(
        self, base: Denoiser, erase: tuple[Concept, ...], preserve: tuple[Concept, ...], rng: Generator, log: Log
    ) -> Guidance:
        return Guidance(pairs(erase, base.fits), Replace())
