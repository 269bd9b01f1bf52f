"""P4D: a prompt under which the edited model predicts the noise that the unedited model predicts under the concept's own.

Paper:   Chin et al. 2024 (P4D, arXiv:2309.06135, section 3); released code: joycenerd/P4D. The projection is that of Wen et al. 2023
         (PEZ, arXiv:2302.03668).
Idea:    Free tokens have continuous vectors v. A step reads the nearest words (by cosine) of v, takes the gradient in them of
         |ε*(z_t, t, P*) - ε(z_t, t, P)|² on pictures of the concept, and moves v with it. N writes a whole prompt of free tokens; K keeps
         the prompt and puts a free token before every third of its own (preset k). A prompt counts for the paper's union if either does.
Names:   N and K `form` whole and between, P and P* the prompt and the found one, rate and decay AdamW's.
Differs: The released code keeps the prompt whose picture is nearest by CLIP to a target picture; here the one with the least error on a
         bank of fixed draws, without pictures. It encodes pictures in [0, 1] where [-1, 1] is meant, and takes one draw in a step
         (preset released). Its frozen tokens are decayed by AdamW; here only free tokens move. Preset prefix is what most later papers
         call P4D: five free tokens before the prompt, as UnlearnDiffAtk's authors have it.
Cost:    4 calls of the denoiser for each draw, prompt and step: 3 of the edited model, 1 of the unedited one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.nn.functional import normalize
from typing_extensions import override  # in typing from Python 3.12

from efface.attacks.base import Attack, Elite, Goal
from efface.attacks.parts.losses import Bank, prediction_gap, repeated
from efface.attacks.parts.words import Slots, random_words, word_tokens
from efface.core.attempt import Attempt
from efface.core.denoiser import Denoiser
from efface.core.guided import noise_prediction
from efface.core.params import param

GAP = 3  # K: own tokens between two free ones


@dataclass(frozen=True, kw_only=True)
class P4D(Attack):
    """Words with which the edited model predicts what the unedited one does."""

    access = "gradients"
    gives = "words"
    gradients = True
    presets = {  # noqa: RUF012
        "k": {"form": "between"}, "prefix": {"form": "prefix", "tokens": 5, "rate": 0.01},
        "released": {"scaled": False, "draws": 1},
    }  # fmt: skip
    form: Literal["whole", "between", "prefix"] = param(
        "whole", "which tokens are free: all, one in front of every third, or a prefix"
    )
    tokens: int = param(16, "N: free tokens of a whole prompt or a prefix", at_least=1)
    rate: float = param(0.1, "learning rate of AdamW", above=0)
    decay: float = param(0.1, "weight decay of AdamW", at_least=0)
    draws: int = param(2, "pairs of level and noise in a step", at_least=1)
    scaled: bool = param(True, "whether target pictures are scaled to [-1, 1] before they are encoded")
    judged: int = param(16, "pairs on which prompts are compared", at_least=1)
    every: int = param(10, "steps between comparisons", at_least=1)

    @override
    def applies(self, model: Denoiser, goal: Goal) -> str:
        longest = max(map(len, self.sequences(model, goal)))
        room = model.tokenize([""]).ids.shape[1] - 2
        return (
            f"needs {longest} tokens and the text encoder reads {room}; give shorter prompts" if longest > room else ""
        )

    @override
    def run(self, model: Denoiser, goal: Goal, calls: int, rng: Generator) -> Iterator[Sequence[Attempt]]:
        slots, vectors, allowed = (
            Slots.of(model, self.sequences(model, goal)),
            model.word_vectors.detach().float(),
            word_tokens(model),
        )
        targets, asked, scale = self.targets(goal), goal.base.embed(goal.prompts), goal.drawing.guidance
        own = vectors[random_words(allowed, int(slots.free.sum()), rng)].clone()  # (f e)
        adam = torch.optim.AdamW([own], lr=self.rate, weight_decay=self.decay)

        def drawn(bank: Bank) -> tuple[Tensor, Tensor, Tensor]:
            x, t, _ = bank.noisy(goal.base, targets)
            with torch.no_grad():
                return x, t, noise_prediction(goal.base, x, t, repeated(asked, len(bank)), scale)

        x, t, wish = drawn(Bank.of(model, self.judged, len(goal.seeds), rng))
        best, known, step = Elite(), set(), 0
        while True:
            picked = nearest(own, vectors, allowed)
            if step % self.every == 0 and (texts := slots.texts(model, picked)) not in known:
                known.add(texts)  # the same texts have the same error
                with torch.no_grad():
                    error = prediction_gap(model, wish, x, t, model.embed(texts), self.judged, scale)
                if best.improve(error, [Attempt("p4d", prompt=text) for text in texts]):
                    yield best.attempts
            given, level, aim = drawn(Bank.of(model, self.draws, len(goal.seeds), rng))
            words = vectors[picked].requires_grad_(True)
            cond = model.encode_tokens(slots.filled(picked), slots.vectors(vectors, words))
            gap = prediction_gap(model, aim, given, level, cond, self.draws, scale).sum()
            (own.grad,) = torch.autograd.grad(gap, words)
            adam.step()
            step += 1

    def sequences(self, model: Denoiser, goal: Goal) -> list[list[int | None]]:
        """The prompts' word ids, None where a token is free."""
        tokens = model.tokenize(goal.prompts)
        plain = [ids[words].tolist() for ids, words in zip(tokens.ids, tokens.words, strict=True)]
        if self.form == "between":
            return [between(ids) for ids in plain]
        free: list[int | None] = [None] * self.tokens
        return [free if self.form == "whole" else [*free, *ids] for ids in plain]

    def targets(self, goal: Goal) -> Float[Tensor, "p s c h w"]:
        """Clean latents of the concept, encoded as the released code does if not `scaled`."""
        if self.scaled:
            return goal.targets
        pictures = goal.base.decode(goal.targets.flatten(0, 1))
        return goal.base.encode((pictures + 1) / 2).view_as(goal.targets)  # of [0, 1], taken for [-1, 1]


def between(ids: Sequence[int]) -> list[int | None]:
    """A free place before every third token, and one after the last."""
    found: list[int | None] = []
    for i in range(len(ids) // GAP + 1):
        found += [None, *ids[i * GAP : (i + 1) * GAP]]
    return found


def nearest(own: Float[Tensor, "f e"], vectors: Float[Tensor, "v e"], allowed: Tensor) -> Int[Tensor, "f"]:
    """The word whose vector has the largest cosine to each of `own`."""
    cosine = normalize(own, dim=-1) @ normalize(vectors, dim=-1).T
    return cosine.masked_fill(~allowed, -2).argmax(-1)
