"""Debias: a concept becomes a mixture of attributes, in shares that are measured on pictures.

Paper:   Gandikota et al., WACV 2024, arXiv:2308.14761, section on debiasing.
Idea:    Draw the concept, count what a classifier sees, and let the concept read as itself and a little more of what is too rare:
             v = W (c + Σ_k β_k (a_k - c)),  β_k <- β_k + rate (desired_k - share_k)
         by UCE's closed form, until every share is within `tolerance`. A concept that is takes no step in that round.
Names:   attributes = a_k, ratios = desired ratios, rate = step size, rounds = iterations; the solver's λ, a and b are UCE's.
Differs: The paper adds Σ_k β_k a_k: the same where all pictures show an attribute, since its β add up to 0; ours also stands a
         classifier that knows more. An attribute is said of the concept ("female doctor", `wording`), not alone: Moji's tiger between
         two styles is a tiger in 15 of 16 pictures, with the styles alone in 8 of 16 (β = 0.25 each). Presets "2023" and
         "2025" say it alone. "2023" mixes what each projection makes of the rows, v = o + Σ_k β_k (|o| u_k / |u_k| - o), as a step
         of 0.1 from the weights of the last round; what is within tolerance is held at a = 1 for that round, in the code at b for
         good. "2025" steps by 1 from the original weights, as its code does, whose targets add up by accident. They draw with
         guidance 7.5, fifty and ten pictures a round; their code says a concept in five prompts, each with β of its own. Without
         attributes or classifier nothing is measured: β is the ratios, and a concept without attributes becomes its target.
Cost:    Pictures: rounds x batch for each concept, a minute or two on Moji. A killed run repeats at most one round.
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
from efface.core.train import Learner
from efface.erasers.base import Eraser
from efface.erasers.parts.mixture import Mixture, Part
from efface.erasers.uce import UCE


@dataclass(frozen=True, kw_only=True)
class Debias(Eraser):
    """Give a concept attributes in the shares that are asked for."""

    attributes: str = param(
        "", "what pictures shall show, separated by commas; none is the concept's target, unmeasured"
    )
    ratios: str = param("", "their shares, separated by commas, in any unit; none is equal shares")
    wording: str = param("{attribute} {concept}", "how an attribute is said of a concept")
    classifier: str = param(
        "clip:openai/clip-vit-base-patch32", "detector that tells the attributes apart; none mixes them unmeasured"
    )
    rounds: int = param(8, "times that pictures are drawn and counted, at most", at_least=0)
    rate: float = param(0.3, "how far β goes for what a share lacks", above=0)
    tolerance: float = param(0.1, "how far a share may be from what is asked for", above=0, at_most=1)
    batch: int = param(24, "pictures of each concept a round", at_least=1)
    sampler_steps: int = param(15, "DDIM steps of a picture", at_least=1)
    guidance: float = param(3.0, "classifier-free guidance of a picture", at_least=1)
    mixes: Literal["rows", "outputs"] = param("rows", "mix text rows, or what each projection makes of them")
    solver: Literal["uce", "uce-2023", "uce-2025"] = param("uce", "whose rows, weights and ridge the closed form has")

    makes: ClassVar = (TextMap, Delta)
    needs: ClassVar = frozenset({"drawing", "classifier"})
    where: ClassVar = "xattn.kv"
    cost: ClassVar = "minutes of drawing"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        name: {
            "wording": "{attribute}", "rounds": 30, "rate": rate, "tolerance": 0.05, "batch": batch, "sampler_steps": 20, "guidance": 7.5,
            "mixes": mixes, "solver": f"uce-{name}",
        }
        for name, rate, mixes, batch in (("2023", 0.1, "outputs", 50), ("2025", 1.0, "rows", 10))
    }  # fmt: skip

    @override
    def run(
        self, base: Denoiser, erase: tuple[Concept, ...], preserve: tuple[Concept, ...], rng: Generator, log: Log
    ) -> TextMap | Delta:
        asked = [a.strip() for a in self.attributes.split(",") if a.strip()]
        desired, mixture = self.desired(asked), self.mixture(base, asked, erase, preserve)

        def edit(steps: Tensor) -> TextMap | Delta:
            return mixture.of_outputs(base, steps) if self.mixes == "outputs" else mixture.of_rows(steps.sum(0))

        if not asked or not self.classifier:
            return edit(desired.expand(1, len(erase), -1))
        judge, steps = self.judge(asked), torch.zeros(self.rounds, len(erase), len(asked))
        learner = Learner({"steps": steps}, lr=self.rate, rng=rng)  # learns nothing, but keeps this over a kill
        log.recipe = self.recipe(base, erase, preserve)
        for i in log.steps(learner, self.rounds, every=1):
            if i and not steps[i - 1].any():
                continue  # the round before found every share as asked for
            edited = edit(steps[:i].detach())(base)
            lacking = desired - torch.stack([self.shares(edited, c, asked, judge, rng) for c in erase])
            steps.data[i] = self.rate * lacking * (lacking.abs().amax(1, keepdim=True) >= self.tolerance)
            log.loss(lacking.abs().max())
        return edit(steps.detach())

    def mixture(
        self, base: Denoiser, asked: Sequence[str], erase: Sequence[Concept], preserve: Sequence[Concept]
    ) -> Mixture:
        """The rows of every prompt of the concepts, and those of each attribute said of them."""
        uce, parts, said = self.uce, [], []
        for i, c in enumerate(erase):
            goals = [self.wording.replace("{attribute}", a).replace("{concept}", c.name) for a in asked] or [c.target]
            ways = zip(*(replace(c, target=g).pairs(uce.phrases, things=True) for g in goals), strict=True)
            for way, lead in zip(ways, uce.leads(base, c), strict=True):
                texts = [way[0][0], *(goal for _, goal in way)]
                words, said = base.embed(texts), said + texts
                paired = uce.paired(words[[0] * len(way)], words[1:], [lead] * len(way))
                rows, _, weights = min(paired, key=lambda pair: len(pair[0]))  # the rows that every attribute has
                parts.append(Part(i, rows, torch.stack([g[: len(rows)] for _, g, _ in paired]), weights))
        rows, weights = (torch.cat(each) for each in ([p.rows for p in parts], [p.weights for p in parts]))
        kept = base.embed(["", *uce.kept(preserve)])[1:]  # the later code may keep nothing at all
        return Mixture(parts, uce.system(rows, weights, kept, uce.everyday_prompts(base, said)))

    def desired(self, asked: Sequence[str]) -> Tensor:
        """The share of each attribute, adding up to 1."""
        if len(set(asked)) < len(asked) or "{attribute}" not in self.wording:
            raise UsageError(
                f"Debias.attributes: expected some that read unlike, got {self.attributes!r} said as {self.wording!r}; give others"
            )
        given = self.ratios.split(",") if self.ratios else ["1"] * max(1, len(asked))
        if len(given) != max(1, len(asked)) or not all(re.fullmatch(r" *\d*\.?\d+ *", r) and float(r) for r in given):
            raise UsageError(
                f"Debias.ratios: expected a number above 0 for each of {len(asked)} attributes, got {self.ratios!r}; give 1,1, say"
            )
        shares = torch.tensor([float(r) for r in given])
        return shares / shares.sum()

    def judge(self, asked: list[str]) -> Any:
        """The classifier, which must know every attribute: one that it never sees would be added without end."""
        from efface.metrics.detectors import detector

        judge: Any = detector(self.classifier, asked)
        for a in asked:
            if a not in getattr(judge, "labels", asked):
                raise UsageError(f"Debias.attributes: {self.classifier} has no {a!r}; {nearest(a, judge.labels)}")
        return judge

    def shares(self, model: Denoiser, concept: Concept, asked: list[str], judge: Any, rng: Generator) -> Tensor:
        """The share of each attribute among new pictures of a concept, which is said in all its ways in turn."""
        said = [prompt for prompt, _ in concept.pairs(self.uce.phrases)]
        prompts = [said[i % len(said)] for i in range(self.batch)]
        seeds = torch.randint(2**31, (self.batch,), generator=rng).tolist()
        pictures = model.images(prompts, seeds, steps=self.sampler_steps, guidance=self.guidance)
        seen = [best[0][0] for best in judge.top(pictures, 1)]
        return torch.tensor([seen.count(a) / len(seen) for a in asked])

    @property
    def uce(self) -> UCE:
        """The solver."""
        return UCE(**UCE.presets.get(self.solver.partition("-")[2], {}))
