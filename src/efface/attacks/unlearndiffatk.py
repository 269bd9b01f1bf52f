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
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor
from typing_extensions import override  # in typing from Python 3.12

from efface.attacks.base import Attack, Elite, Goal
from efface.attacks.losses import Bank, denoising_error
from efface.core.attempt import Attempt
from efface.core.cond import Tokens
from efface.core.denoiser import Denoiser
from efface.core.params import param

LEVELS, STAY = 50, 40  # of the released order: so many levels, so many steps at each


@dataclass(frozen=True, kw_only=True)
class UnlearnDiffAtk(Attack):
    """Adversarial words by projected gradient on their distributions."""

    access = "weights"
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
        return f"a prompt leaves no room for {self.tokens} more tokens; give shorter prompts" if full else ""

    @override
    def run(self, model: Denoiser, goal: Goal, calls: int, rng: Generator) -> Iterator[Sequence[Attempt]]:
        plain, vectors, targets = model.tokenize(goal.prompts), model.word_vectors.detach().float(), goal.targets
        held_out = Bank.of(model, self.judged, len(goal.seeds), rng)
        allowed = torch.ones(len(vectors), device=vectors.device)
        allowed[plain.ids[~plain.words]] = 0  # start, end and padding are no words
        chance = (allowed / allowed.sum()).repeat(len(plain.ids), self.tokens, 1)  # (p k v)
        adam = torch.optim.Adam([chance], lr=self.rate, weight_decay=self.decay)
        best, known, step = Elite(), {}, 0
        while True:
            if step % self.every == 0:
                texts = tuple(
                    model.spell(ids[words].tolist())
                    for ids, words in zip(*self.added(plain, chance.argmax(-1)), strict=True)
                )
                if texts not in known:  # the same texts have the same error
                    with torch.no_grad():
                        error = denoising_error(model, targets, model.embed(texts), held_out, goal.drawing.guidance)
                    known[texts] = error
                    if best.improve(error, [Attempt("unlearndiffatk", prompt=text) for text in texts]):
                        yield best.attempts
            bank = self.bank(model, len(goal.seeds), step, rng)
            picked = torch.multinomial(chance.flatten(0, 1).cpu(), 1, generator=rng).view(chance.shape[:2])
            picked = picked.to(chance.device)
            ids, words = self.added(plain, picked)
            own = vectors[picked].requires_grad_(True)
            rows = vectors[ids].index_put((inside(plain, self.at(plain), self.tokens),), own.flatten(0, 1))
            mask = moved(plain.mask, self.at(plain), self.tokens, 1)
            cond = model.encode_tokens(Tokens(ids, mask, words), rows)
            error = denoising_error(model, targets, cond, bank, goal.drawing.guidance).sum()
            (slope,) = torch.autograd.grad(error, own)
            chance.grad = (slope @ vectors.T).clamp(-1, 1)
            adam.step()
            with torch.no_grad():
                chance.copy_(simplex(chance - (1 - allowed)))  # what is no word stays out
            step += 1

    def at(self, plain: Tokens) -> Int[Tensor, "p"]:
        """Where the added tokens begin: after the start token, or at the end token's place."""
        end = plain.mask.sum(1) - 1
        return torch.ones_like(end) if self.where == "prefix" else end

    def added(self, plain: Tokens, picked: Int[Tensor, "p k"]) -> tuple[Int[Tensor, "p n"], Bool[Tensor, "p n"]]:
        """Token ids with the picked ones in their place, and which of them are words."""
        at = self.at(plain)
        ids = moved(plain.ids, at, self.tokens, 0)
        ids[inside(plain, at, self.tokens)] = picked.flatten()
        return ids, moved(plain.words, at, self.tokens, 1)

    def bank(self, model: Denoiser, pictures: int, step: int, rng: Generator) -> Bank:
        """A step's draws."""
        bank = Bank.of(model, self.draws, pictures, rng)
        if self.order == "sequential":
            bank.t.fill_((10 + 20 * (step // STAY % LEVELS)) * len(model.schedule) // 1000)
        return bank


def inside(plain: Tokens, at: Int[Tensor, "p"], k: int) -> Bool[Tensor, "p n"]:
    """The positions of `k` added tokens that begin at `at`."""
    place = torch.arange(plain.ids.shape[1], device=at.device)
    return (place >= at[:, None]) & (place < at[:, None] + k)


def moved(given: Tensor, at: Int[Tensor, "p"], k: int, fill: int) -> Tensor:
    """Values (p n) with `k` places filled in at `at`; the last `k` fall out."""
    place = torch.arange(given.shape[1], device=at.device).expand(given.shape)
    found = given.gather(1, torch.where(place < at[:, None], place, place - k).clamp(min=0))
    return torch.where((place >= at[:, None]) & (place < at[:, None] + k), torch.as_tensor(fill).to(given), found)


def simplex(x: Float[Tensor, "*b v"]) -> Float[Tensor, "*b v"]:
    """The nearest point whose values are at least 0 and add up to 1 (Held, Wolfe and Crowder 1974)."""
    ordered = x.sort(-1, descending=True).values
    excess = (ordered.cumsum(-1) - 1) / torch.arange(1, x.shape[-1] + 1, device=x.device)
    n = (ordered > excess).sum(-1, keepdim=True)
    return (x - excess.gather(-1, n - 1)).clamp(min=0)
