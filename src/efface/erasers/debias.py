"""Debias: give a concept's pictures attributes in desired shares, which are measured on pictures.

Paper:   Gandikota et al., WACV 2024, arXiv:2308.14761, section on debiasing.
Idea:    Draw the concept, classify the pictures, and add a share of each attribute that is too rare to the concept's embedding:
             v = W (c + Σ_k β_k (a_k - c)),  β_k <- β_k + rate (desired_k - share_k)
         by UCE's closed form, until every share is within `tolerance`. A concept that already is takes no step in that round.
Names:   attributes = a_k, ratios = desired ratios, rate = step size, rounds = iterations; the solver's λ, a and b are UCE's.
Differs: The paper adds Σ_k β_k a_k: equal if all pictures show an attribute, since its β add up to 0; ours also allows a classifier
         with other labels. Attributes are combined with the concept ("female doctor", `wording`): Moji's tiger between two styles is
         a tiger in 15 of 16 pictures, with the bare styles in 8 of 16 (β = 0.25 each). Presets "2023" and "2025" use bare attributes.
         "2023" mixes the outputs of each projection, v <- v + β_k |v| u_k / |u_k| for each k in turn from v = o (in the code by
         accident: its o is its v), minus Σ_k β_k o, in steps of 0.1 from the last round's weights, with b = 0.1 and without "". What
         is within tolerance has a = 1 in that round; in the code it also has b from then on and is not measured again. "2025" steps by
         1 from the original weights: its code's targets add up, also by accident. They draw with guidance 7.5, fifty and ten pictures
         a round; the code of 2023 has five prompts for a concept, each with its β. Without attributes or classifier β is the ratios.
Cost:    Pictures: rounds x batch for each concept, a minute or two on Moji. An interrupted run repeats at most one round.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor
from typing_extensions import override  # in typing from Python 3.12

from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.edit import Delta, TextMap
from efface.core.errors import UsageError, nearest
from efface.core.log import Log
from efface.core.params import param
from efface.core.prompts import ConceptPrompts
from efface.core.train import Learner
from efface.erasers.base import Eraser
from efface.erasers.parts.mixture import Mixture, Part
from efface.erasers.uce import UCE


@dataclass(frozen=True, kw_only=True)
class Debias(Eraser):
    """Give a concept's pictures attributes in desired shares."""

    attributes: str = param("", "attributes, separated by commas; none uses the target, without measuring")
    ratios: str = param("", "desired shares, separated by commas, in any unit; none is equal shares")
    wording: str = param("{attribute} {concept}", "prompt with an attribute and the concept")
    classifier: str = param("clip:openai/clip-vit-base-patch32", "classifier of the attributes; none measures nothing")
    rounds: int = param(8, "maximum rounds of drawing and classifying pictures", at_least=0)
    rate: float = param(0.3, "step size of β per missing share", above=0)
    tolerance: float = param(0.1, "tolerated distance of a share from the desired one", above=0, at_most=1)
    batch: int = param(24, "pictures of each concept in a round", at_least=1)
    sampler_steps: int = param(15, "DDIM steps of a picture", at_least=1)
    guidance: float = param(3.0, "guidance scale of a picture", at_least=1)
    mixes: Literal["rows", "outputs"] = param("rows", "mix token embeddings, or their keys and values")
    solver: Literal["uce", "uce-2023", "uce-2025"] = param("uce", "preset of UCE that gives rows, weights and ridge")
    preserve_scale: float = param(0.0, "b, weight of a preserved concept; 0 uses the solver's", at_least=0)
    keep_empty: bool = param(True, 'also preserve "" if the solver does')

    makes: ClassVar = (TextMap, Delta)
    needs: ClassVar = frozenset({"drawing", "classifier"})
    where: ClassVar = "xattn.kv"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        name: {
            "wording": "{attribute}", "rounds": 30, "rate": rate, "tolerance": 0.05, "batch": batch, "sampler_steps": 20, "guidance": 7.5,
            "mixes": mixes, "solver": f"uce-{name}", "preserve_scale": b, "keep_empty": False,
        }
        for name, rate, mixes, batch, b in (("2023", 0.1, "outputs", 50, 0.1), ("2025", 1.0, "rows", 10, 0.0))
    }  # fmt: skip

    @override
    def run(
        self, base: Denoiser, erase: tuple[Concept, ...], preserve: tuple[Concept, ...], rng: Generator, log: Log
    ) -> TextMap | Delta:
        attributes = [a.strip() for a in self.attributes.split(",") if a.strip()]
        desired, mixture = self.desired(attributes), self.mixture(base, attributes, erase, preserve)

        def edit(steps: Tensor) -> TextMap | Delta:
            return mixture.of_outputs(base, steps) if self.mixes == "outputs" else mixture.of_rows(steps.sum(0))

        if not attributes or not self.classifier:
            return edit(desired.expand(1, len(erase), -1))
        judge, steps = self.judge(attributes), torch.zeros(self.rounds, len(erase), len(attributes))
        learner = Learner({"steps": steps}, lr=self.rate, rng=rng)  # no training: only saves `steps` in checkpoints
        log.recipe = self.recipe(base, erase, preserve)
        for i in log.steps(learner, self.rounds, every=1):
            if i and not steps[i - 1].any():
                continue  # in the previous round every share was within tolerance
            edited = edit(steps[:i].detach())(base)
            lacking = desired - torch.stack([self.shares(edited, c, attributes, judge, rng) for c in erase])
            steps.data[i] = self.rate * lacking * (lacking.abs().amax(1, keepdim=True) >= self.tolerance)
            log.loss(lacking.abs().max())
        return edit(steps.detach())

    def mixture(
        self, base: Denoiser, attributes: Sequence[str], erase: Sequence[Concept], preserve: Sequence[Concept]
    ) -> Mixture:
        """The rows of every prompt of the concepts, and of the same prompts with each attribute."""
        uce, parts, worded = self.uce, [], [self.wording.replace("{attribute}", a) for a in attributes]
        goals = [[replace(c, target=w.replace("{concept}", c.name)) for c in erase] for w in worded] or [erase]
        prompts = [ConceptPrompts.of(goal, uce.templates) for goal in goals]
        embedded = (p.embed(base) for p in prompts)
        paired = (uce.paired(e.prompts, e.targets, e.prefix_lengths.tolist()) for e in embedded)
        for owner, pairs in zip(prompts[0].owners, zip(*paired, strict=True), strict=True):
            rows, _, weights = min(pairs, key=lambda pair: len(pair[0]))  # the rows that all attributes have
            parts.append(Part(owner, rows, torch.stack([g[: len(rows)] for _, g, _ in pairs]), weights))
        rows, weights = torch.cat([p.rows for p in parts]), torch.cat([p.weights for p in parts])
        kept = uce.preserved(base, preserve, self.keep_empty)
        return Mixture(parts, uce.system(rows, weights, kept, uce.everyday_words(base, *prompts)))

    def desired(self, attributes: Sequence[str]) -> Tensor:
        """The share of each attribute, adding up to 1."""
        if len(set(attributes)) < len(attributes) or "{attribute}" not in self.wording:
            raise UsageError(
                f"Debias.attributes: expected different embeddings, got {self.attributes!r} in {self.wording!r}; give other attributes"
            )
        count = max(1, len(attributes))
        given = self.ratios.split(",") if self.ratios else ["1"] * count
        if len(given) != count or not all(re.fullmatch(r" *\d*\.?\d+ *", r) and float(r) for r in given):
            raise UsageError(
                f"Debias.ratios: expected a number above 0 for each of {len(attributes)} attributes, got {self.ratios!r}; give 1,1 or such"
            )
        shares = torch.tensor([float(r) for r in given])
        return shares / shares.sum()

    def judge(self, attributes: list[str]) -> Any:
        """The classifier, which must have a label for every attribute: β of an undetected one would grow without end."""
        from efface.metrics.detectors import detector

        judge: Any = detector(self.classifier, attributes)
        if other := next((a for a in attributes if a not in getattr(judge, "labels", attributes)), None):
            raise UsageError(f"Debias.attributes: {self.classifier} has no {other!r}; {nearest(other, judge.labels)}")
        return judge

    def shares(self, model: Denoiser, concept: Concept, attributes: list[str], judge: Any, rng: Generator) -> Tensor:
        """The share of each attribute among new pictures of a concept, drawn with all its prompts in turn."""
        ways = ConceptPrompts.of([concept], self.uce.templates, subjects=False).prompts
        prompts = [ways[i % len(ways)] for i in range(self.batch)]
        seeds = torch.randint(2**31, (self.batch,), generator=rng).tolist()
        pictures = model.images(prompts, seeds, steps=self.sampler_steps, guidance=self.guidance)
        seen = [best[0][0] for best in judge.top(pictures, 1)]
        return torch.tensor([seen.count(a) / len(seen) for a in attributes])

    @property
    def uce(self) -> UCE:
        """The solver."""
        own = {"preserve_scale": self.preserve_scale} if self.preserve_scale else {}
        return UCE(**{**UCE.presets.get(self.solver.partition("-")[2], {}), **own})
