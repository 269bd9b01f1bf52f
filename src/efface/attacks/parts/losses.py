"""What gradient attacks minimise: how badly a model denoises pictures of the concept under a prompt, on fixed levels and noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from efface.core.cond import Cond
from efface.core.denoiser import Denoiser
from efface.core.guided import noise_prediction


@dataclass(frozen=True)
class Bank:
    """Fixed draws of noise level, noise and picture: candidates that are compared on one bank differ in nothing else.

    Each draw has a level `t`, unit noise `eps` and which of a prompt's target pictures it uses.
    """

    t: Int[Tensor, "k"]
    eps: Float[Tensor, "k c h w"]
    which: Int[Tensor, "k"]

    @classmethod
    def of(cls, model: Denoiser, k: int, pictures: int, rng: Generator) -> "Bank":
        """`k` draws, one level from each of k equal parts of the schedule."""
        levels = len(model.schedule)
        places = (torch.arange(k) + torch.rand(k, generator=rng)) / k
        eps = torch.randn(k, *model.latent_shape, generator=rng)
        return cls((places * levels).long().to(model.device), eps.to(model.device), torch.arange(k) % pictures)

    def __len__(self) -> int:
        """Number of draws."""
        return len(self.t)

    def __getitem__(self, index: Sequence[int]) -> "Bank":
        """The draws at these indices."""
        return Bank(self.t[list(index)], self.eps[list(index)], self.which[list(index)])

    def noisy(self, model: Denoiser, targets: Float[Tensor, "p s c h w"]) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents, levels and noise, prompt after prompt: (p k c h w) as one batch."""
        x0 = targets[:, self.which].to(model.device)
        p = len(x0)
        t, eps = self.t.repeat(p), self.eps.repeat(p, 1, 1, 1)
        return model.add_noise(x0.flatten(0, 1), t, eps), t, eps


def denoising_error(
    model: Denoiser, targets: Float[Tensor, "p s c h w"], cond: Cond, bank: Bank, guidance: float
) -> Float[Tensor, "p"]:
    """Mean squared error of the predicted noise for each prompt, over the bank: low if the model draws `targets` under the prompt."""
    x, t, eps = bank.noisy(model, targets)
    pred = noise_prediction(model, x, t, repeated(cond, len(bank)), guidance)
    return (pred - eps).square().flatten(1).mean(1).view(-1, len(bank)).mean(1)


def prediction_gap(
    model: Denoiser, wish: Float[Tensor, "b c h w"], x: Tensor, t: Tensor, cond: Cond, k: int, guidance: float
) -> Float[Tensor, "p"]:
    """Mean squared difference between the model's predicted noise and `wish`, for each prompt over its `k` draws."""
    pred = noise_prediction(model, x, t, repeated(cond, k), guidance)
    return (pred - wish).square().flatten(1).mean(1).view(-1, k).mean(1)


def repeated(cond: Cond, k: int) -> Cond:
    """Each prompt `k` times, prompt after prompt."""
    return cond[torch.arange(len(cond), device=cond.ids.device).repeat_interleave(k)]
