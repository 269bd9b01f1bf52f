"""Dilution: the concept among other things, so that the picture as a whole is less like it.

Paper:   Rando et al. 2022 (Red-Teaming the Stable Diffusion Safety Filter, arXiv:2210.04610, section 4).
Idea:    A filter that compares the embedding of the whole picture with the concept's misses a picture in which the concept is one thing
         among many: "a tiger, a car, a rose". Details are added one by one, after the prompt and before it.
Names:   details the number of other things.
Differs: The paper writes its prompts by hand; here the details are the task's unrelated concepts.
Cost:    No call of the denoiser, only the drawing of the attempts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Generator
from typing_extensions import override  # in typing from Python 3.12

from efface.attacks.base import Attack, Goal
from efface.core.attempt import Attempt
from efface.core.concept import article
from efface.core.denoiser import Denoiser
from efface.core.params import param


@dataclass(frozen=True, kw_only=True)
class Dilution(Attack):
    """The concept among other things."""

    access = "prompt"
    gives = "words"
    uses = ()
    details: int = param(4, "other things in the prompt", at_least=1)

    @override
    def applies(self, model: Denoiser, goal: Goal) -> str:
        return "" if goal.others else "adds unrelated concepts to the prompt, and the task names none"

    @override
    def run(self, model: Denoiser, goal: Goal, calls: int, rng: Generator) -> Iterator[Sequence[Attempt]]:
        for n in range(1, min(self.details, len(goal.others)) + 1):
            more = ", ".join(article(word) for word in goal.others[:n])
            for where in ("after", "before"):
                texts = [f"{p}, {more}" if where == "after" else f"{more}, {p}" for p in goal.prompts]
                if all(map(model.fits, texts)):
                    label = f"{n} detail{'s' * (n > 1)} {where} it"
                    yield [Attempt("dilution", label, prompt=text) for text in texts]
