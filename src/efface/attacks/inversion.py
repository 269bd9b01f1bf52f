"""Concept inversion: a new word, learnt through the edited model from pictures of the concept.

Paper:   Pham et al. 2024 (Circumventing Concept Erasure, arXiv:2308.01508); textual inversion is Gal et al. 2022 (arXiv:2208.01618);
         released code: NYU-DICE-Lab/circumventing-concept-erasure.
Idea:    v* = argmin_v E |ε - ε*(z_t, t, E("a v"))|² over pictures of the concept, where the word vector v stands in place of its name in
         every prompt. What the control reports is missing in the literature: with equal steps, the same search on the pictures upside
         down, which the model never knew; its pictures are turned back before they are judged. Where that succeeds as well, the attack
         taught the concept anew, and its success does not show that the edit left it.
Names:   tokens the vectors of the word, rate Adam's, relative to the root mean square of the word vectors.
Differs: The released code trains 5,000 steps at 0.08 and keeps the last vector; here the best on a bank of fixed draws is kept. It starts
         from the word "art"; here from the concept's kind. Where a gate reads token ids, it reads that word's.
Cost:    3 calls of the denoiser for each draw, prompt and step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator
from typing_extensions import override  # in typing from Python 3.12

from efface.attacks.base import Attack, Elite, Goal
from efface.attacks.parts.losses import Bank, denoising_error
from efface.attacks.parts.words import Slots, without
from efface.core.attempt import Attempt
from efface.core.denoiser import Denoiser
from efface.core.params import param


@dataclass(frozen=True, kw_only=True)
class Inversion(Attack):
    """A word learnt through the edited model."""

    access = "gradients"
    gives = "rows"
    gradients = True
    uses = ("targets", "turned_targets")
    presets = {"control": {"control": True}}  # noqa: RUF012
    tokens: int = param(1, "vectors of the learnt word", at_least=1)
    rate: float = param(0.1, "learning rate of Adam, relative to the word vectors' root mean square", above=0)
    decay: float = param(0.01, "weight decay of Adam", at_least=0)
    draws: int = param(4, "pairs of level and noise in a step and for each prompt", at_least=1)
    control: bool = param(False, "learn from the pictures upside down")
    judged: int = param(16, "pairs on which steps are compared", at_least=1)
    every: int = param(10, "steps between comparisons", at_least=1)

    @override
    def run(self, model: Denoiser, goal: Goal, calls: int, rng: Generator) -> Iterator[Sequence[Attempt]]:
        vectors, targets = model.word_vectors.detach().float(), goal.turned_targets if self.control else goal.targets
        name, kind = model.embed([goal.concept.name, goal.concept.kind]).word_ids()
        slots = Slots.of(model, [without(ids, name, self.tokens) for ids in model.embed(goal.prompts).word_ids()])
        start = torch.tensor(kind[:1], device=vectors.device).repeat(self.tokens)
        read = slots.filled(start.repeat(len(goal.prompts)))  # the ids, which gates read
        own, held_out = vectors[start].clone().requires_grad_(True), Bank.of(model, self.judged, len(goal.seeds), rng)
        scale = float(vectors.square().mean().sqrt())
        adam = torch.optim.AdamW([own], lr=self.rate * scale, weight_decay=self.decay)
        best, step = Elite(), 0
        while True:
            cond = model.encode_tokens(read, slots.vectors(vectors, own.repeat(len(goal.prompts), 1)))
            if step % self.every == 0:
                plain = replace(cond, tokens=cond.tokens.detach())
                with torch.no_grad():
                    error = denoising_error(model, targets, cond, held_out, goal.drawing.guidance)
                found = [
                    Attempt("inversion", prompt=p, rows=plain[[i]], turned=self.control)
                    for i, p in enumerate(goal.prompts)
                ]
                if best.improve(error.mean().expand(len(found)), found):  # one word for all prompts
                    yield best.attempts
            bank = Bank.of(model, self.draws, len(goal.seeds), rng)
            error = denoising_error(model, targets, cond, bank, goal.drawing.guidance).mean()
            (own.grad,) = torch.autograd.grad(error, own)
            adam.step()
            step += 1
