"""UnlearnDiffAtk: a few words before or after the prompt, under which the edited model denoises pictures of the concept.

Paper:   Zhang et al. 2024 (UnlearnDiffAtk, arXiv:2310.11868, equations 6 and 8); released code: OPTML-Group/Diffusion-MU-Attack.
Idea:    Each of k added tokens is a distribution over the vocabulary. A step draws tokens from it, takes the gradient of the denoising
         error |ε - ε*(z_t, t, c)|² in a token's one-hot vector (straight through the draw), steps with Adam, and projects on the simplex.
         The likeliest tokens, read again as text, are the attack; the unedited model is not needed.
Names:   tokens k, where the place of the tokens, rate and decay Adam's.
Differs: The released code takes the levels one after the other, 40 steps each, and draws a picture after each level (`order` sequential,
         preset released); here a step's levels are spread, and the best text on a bank of fixed draws is kept, without pictures. Prompts
         are attacked together, which changes none of them.
Cost:    3 calls of the denoiser for each draw, prompt and step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from typing_extensions import override  # in typing from Python 3.12

from efface.attacks.base import Attack, Elite, Goal
from efface.attacks.parts.losses import Bank, denoising_error
from efface.attacks.parts.words import Slots, word_tokens
from efface.core.attempt import Attempt
from efface.core.denoiser import Denoiser
from efface.core.params import param

LEVELS, STAY = 50, 40  # of the released order: so many levels, so many steps at each


@dataclass(frozen=True, kw_only=True)
class UnlearnDiffAtk(Attack):
    """Adversarial words by projected gradient on their distributions."""

    access = "gradients"
    gives = "words"
    gradients = True
    presets = {"released": {"draws": 1, "order": "sequential"}, "suffix": {"where": "suffix"}}  # noqa: RUF012
    tokens: int = param(3, "k: tokens that are added; the paper has 5 for nudity", at_least=1)
    where: Literal["prefix", "suffix"] = param("prefix", "place of the tokens")
    rate: float = param(0.01, "learning rate of Adam", above=0)
    decay: float = param(0.1, "weight decay of Adam", at_least=0)
    draws: int = param(2, "pairs of level and noise in a step", at_least=1)
    order: Literal["spread", "sequential"] = param("spread", "levels of the steps")
    judged: int = param(16, "pairs on which texts are compared", at_least=1)
    every: int = param(20, "steps between comparisons", at_least=1)

    @override
    def applies(self, model: Denoiser, goal: Goal) -> str:
        full = model.tokenize(goal.prompts).mask[:, -self.tokens - 1 :].any()
        return f"needs room for {self.tokens} more tokens in each prompt; give shorter prompts" if full else ""

    @override
    def run(self, model: Denoiser, goal: Goal, calls: int, rng: Generator) -> Iterator[Sequence[Attempt]]:
        slots, vectors, targets = self.slots(model, goal.prompts), model.word_vectors.detach().float(), goal.targets
        held_out = Bank.of(model, self.judged, len(goal.seeds), rng)
        allowed = word_tokens(model).float()
        chance = (allowed / allowed.sum()).repeat(len(goal.prompts) * self.tokens, 1)  # (p·k v)
        adam = torch.optim.Adam([chance], lr=self.rate, weight_decay=self.decay)
        best, known, step = Elite(), set(), 0
        while True:
            if step % self.every == 0 and (texts := slots.texts(model, chance.argmax(-1))) not in known:
                known.add(texts)  # the same texts have the same error
                with torch.no_grad():
                    error = denoising_error(model, targets, model.embed(texts), held_out, goal.drawing.guidance)
                if best.improve(error, [Attempt("unlearndiffatk", prompt=text) for text in texts]):
                    yield best.attempts
            bank = self.bank(model, len(goal.seeds), step, rng)
            picked = torch.multinomial(chance.cpu(), 1, generator=rng)[:, 0].to(chance.device)
            own = vectors[picked].requires_grad_(True)
            cond = model.encode_tokens(slots.filled(picked), slots.vectors(vectors, own))
            error = denoising_error(model, targets, cond, bank, goal.drawing.guidance).sum()
            (slope,) = torch.autograd.grad(error, own)
            chance.grad = (slope @ vectors.T).clamp(-1, 1)
            adam.step()
            with torch.no_grad():
                chance.copy_(simplex(chance - (1 - allowed)))  # what is no word stays out
            step += 1

    def slots(self, model: Denoiser, prompts: Sequence[str]) -> Slots:
        """The prompts with free places before or after their own tokens."""
        free: list[int | None] = [None] * self.tokens
        plain = model.tokenize(prompts)
        own = [ids[words].tolist() for ids, words in zip(plain.ids, plain.words, strict=True)]
        return Slots.of(model, [[*free, *ids] if self.where == "prefix" else [*ids, *free] for ids in own])

    def bank(self, model: Denoiser, pictures: int, step: int, rng: Generator) -> Bank:
        """A step's draws."""
        bank = Bank.of(model, self.draws, pictures, rng)
        if self.order == "sequential":
            bank.t.fill_((10 + 20 * (step // STAY % LEVELS)) * len(model.schedule) // 1000)
        return bank


def simplex(x: Float[Tensor, "*b v"]) -> Float[Tensor, "*b v"]:
    """The nearest point whose values are at least 0 and add up to 1 (Held, Wolfe and Crowder 1974)."""
    ordered = x.sort(-1, descending=True).values
    excess = (ordered.cumsum(-1) - 1) / torch.arange(1, x.shape[-1] + 1, device=x.device)
    n = (ordered > excess).sum(-1, keepdim=True)
    return (x - excess.gather(-1, n - 1)).clamp(min=0)
