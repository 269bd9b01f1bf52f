"""SLD: safe latent diffusion, a third direction of guidance away from a concept.

Paper:   Schramowski, Brack, Deiseroth, Kersting, CVPR 2023, arXiv:2211.05105, eq. 3-8 and the table of configurations.
Idea:    While sampling, push the guided prediction away from the concept S, at entries where the predictions for prompt and S are close:
             ε̄ = ε(∅) + s_g (ε(c) - ε(∅) - γ),  γ = μ (ε(S) - ε(∅)) + s_m ν,  ν' = β ν + (1 - β) γ
         with μ = min(s_S |ε(c) - ε(S)|, 1) where ε(c) - ε(S) < λ, else 0, entry by entry, and without γ in the first δ steps.
Names:   scale = s_S, threshold = λ, warmup = δ, momentum = s_m, beta = β_m; S is the concepts' names, separated by commas.
Differs: The paper prints max(1, |φ|), but means the code's min. With a target, ε(target) replaces ε(∅) in γ. Concepts with the same
         target share one S, in alphabetical order; names that the text encoder would truncate start another S, and several S add
         their γ. For a prompt equal to S, μ would be 0 and nothing would change, so S ends in a comma. The code does nothing at
         s_g = 1; the equation does, and so do we. On a v-prediction model the rule is applied to ε. δ counts sampling steps, of which
         the paper has 50. Preset "weak20" is diffusers' weak, with s_S = 20; medium is the default.
Cost:    Nothing to train; sampling takes half as long again. No weights change, so other samplers do not apply the edit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Generator
from typing_extensions import override  # in typing from Python 3.12

from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.edit import Guidance
from efface.core.log import Log
from efface.core.params import param
from efface.core.steering import Repel, pairs
from efface.erasers.base import Eraser


@dataclass(frozen=True, kw_only=True)
class SLD(Eraser):
    """Steer sampling away from concepts; default: "medium"."""

    scale: float = param(1000.0, "s_S, factor of |ε(prompt) - ε(concept)| in the push, up to 1", at_least=0)
    threshold: float = param(0.01, "λ, push only where ε(prompt) - ε(concept) is below this")
    warmup: int = param(10, "δ, first sampling steps without a push", at_least=0)
    momentum: float = param(0.3, "s_m, weight of past pushes", at_least=0)
    beta: float = param(0.4, "β_m, decay of the memory of past pushes", at_least=0, at_most=1)

    makes: ClassVar = (Guidance,)
    keeps: ClassVar = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "weak": {"scale": 200.0, "threshold": 0.0, "warmup": 15, "momentum": 0.0, "beta": 0.0},
        "weak20": {"scale": 20.0, "threshold": 0.0, "warmup": 15, "momentum": 0.0, "beta": 0.0},
        "medium": {"scale": 1000.0, "threshold": 0.01, "warmup": 10, "momentum": 0.3, "beta": 0.4},
        "strong": {"scale": 2000.0, "threshold": 0.025, "warmup": 7, "momentum": 0.5, "beta": 0.7},
        "max": {"scale": 5000.0, "threshold": 1.0, "warmup": 0, "momentum": 0.5, "beta": 0.7},
    }

    @override
    def run(
        self, base: Denoiser, erase: tuple[Concept, ...], preserve: tuple[Concept, ...], rng: Generator, log: Log
    ) -> Guidance:
        prompts = [(f"{away},", to and f"{to},") for away, to in pairs(erase, base.fits)]
        return Guidance(prompts, Repel(self.scale, self.threshold, float(self.warmup), self.momentum, self.beta))
