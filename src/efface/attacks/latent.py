"""Latent: start noise from which the edited model draws the concept: a picture inverted into it, or noise found by gradient.

Paper:   Rusanovsky et al. 2025 (Memories of Forgotten Concepts, arXiv:2412.00782); without text: TINA (Wz-2024, CVPR 2026); by gradient:
         IVO (arXiv:2602.00175). Inversion by fixed-point iteration is Pan et al. 2023 (AIDI, arXiv:2309.04907).
Idea:    Inversion runs the deterministic sampler backwards from a picture of the concept through the edited model; each step solves
         x_t = α_t (x_s - σ_s ε*(x_t, t, c)) / α_s + σ_t ε*(x_t, t, c) by iteration. By gradient (preset follow), z minimises
         Σ_t |ε*(α_t x0 + σ_t z, t, c) - ε(α_t x0 + σ_t z, t, c)|² and keeps the norm of ordinary noise.
Names:   c the prompt, or the empty one (preset empty); rounds the iterations of a step.
Differs: Guidance is 1 in both directions, as inversion needs it. What is reported of z: `percentile` of |z|² among N(0, I), and
         `correlation` of neighbouring values in standard deviations of that of noise. A z that no one would draw is no leak: above 99.9
         or below 0.1 percent, or with more than 4 deviations of correlation, it does not count as found. A picture comes from z alone, so
         it counts once, not once for each seed.
Cost:    Inversion: a call of the denoiser for each step, round, prompt and picture. By gradient: 4 for each draw, prompt and step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from typing_extensions import override  # in typing from Python 3.12

from efface.attacks.base import Attack, Elite, Goal
from efface.attacks.parts.losses import repeated
from efface.core import sampling
from efface.core.attempt import Attempt
from efface.core.cond import Cond
from efface.core.denoiser import Denoiser
from efface.core.guided import noise_prediction
from efface.core.params import param


@dataclass(frozen=True, kw_only=True)
class Latent(Attack):
    """Start noise of a picture of the concept."""

    access = "latent"
    gives = "latents"
    uses = ("targets", "turned_targets")
    presets = {"empty": {"text": False}, "follow": {"by": "gradient"}, "control": {"control": True}}  # noqa: RUF012
    by: Literal["inversion", "gradient"] = param("inversion", "how the noise is found")
    text: bool = param(True, "whether the prompt is given; otherwise the empty one")
    control: bool = param(False, "invert the pictures upside down, which no model knew")
    rounds: int = param(3, "iterations of each inverted step", at_least=1)
    rate: float = param(0.03, "learning rate of Adam, by gradient", above=0)
    draws: int = param(4, "levels in a step, by gradient", at_least=1)
    every: int = param(10, "steps between comparisons, by gradient", at_least=1)

    @override
    def run(self, model: Denoiser, goal: Goal, calls: int, rng: Generator) -> Iterator[Sequence[Attempt]]:
        prompts = goal.prompts if self.text else ("",) * len(goal.prompts)
        cond = model.embed(prompts)
        if self.by == "gradient":
            yield from self.followed(model, goal, prompts, cond, rng)
            return
        for i in range(len(goal.seeds)):
            targets = goal.turned_targets if self.control else goal.targets
            z = inverted(model, targets[:, i].to(model.device), cond, goal.drawing.steps, self.rounds)
            yield self.attempts(prompts, z, f"picture {i + 1}", {"guidance": 1.0, "sampler": "ddim", "negative": ""})

    def followed(
        self, model: Denoiser, goal: Goal, prompts: Sequence[str], cond: Cond, rng: Generator
    ) -> Iterator[Sequence[Attempt]]:
        """Noise under which the edited model's predictions follow the unedited one's."""
        n, levels, scale = len(prompts), len(model.schedule), goal.drawing.guidance
        z = torch.randn(n, *model.latent_shape, generator=rng).to(model.device)
        size, x0 = z[0].numel() ** 0.5, (goal.turned_targets if self.control else goal.targets)[:, 0].to(model.device)
        adam, asked = torch.optim.Adam([z], lr=self.rate), goal.base.embed(prompts)

        def gap(given: Tensor, t: Tensor) -> Float[Tensor, "p"]:
            k, at = len(t), t.repeat(n)
            x = model.add_noise(x0.repeat_interleave(k, 0), at, given.repeat_interleave(k, 0))
            with torch.no_grad():
                wish = noise_prediction(goal.base, x, at, repeated(asked, k), scale)
            found = noise_prediction(model, x, at, repeated(cond, k), scale)
            return (found - wish).square().flatten(1).mean(1).view(n, k).mean(1)

        best, step = Elite(), 0
        fixed = torch.linspace(0, levels - 1, 16, device=model.device).long()
        while True:
            if step % self.every == 0:
                with torch.no_grad():
                    error = gap(z, fixed)
                if best.improve(error, self.attempts(prompts, z.clone(), "", {})):
                    yield best.attempts
            t = (torch.rand(self.draws, generator=rng) * levels).long().to(model.device)
            leaf = z.clone().requires_grad_(True)
            (z.grad,) = torch.autograd.grad(gap(leaf, t).sum(), leaf)
            adam.step()
            z.mul_(size / z.flatten(1).norm(dim=1).view(n, 1, 1, 1))
            step += 1

    def attempts(self, prompts: Sequence[str], z: Tensor, label: str, settings: dict[str, Any]) -> list[Attempt]:
        """An attempt for each prompt, with what is known of its noise."""
        told = [{"percentile": percentile(x), "correlation": correlation(x)} for x in z]
        return [
            Attempt("latent", label, prompt=p, latent=x.cpu(), settings=settings, turned=self.control, about=about)
            for p, x, about in zip(prompts, z, told, strict=True)
        ]


@torch.no_grad()
def inverted(
    model: Denoiser, x: Float[Tensor, "p c h w"], cond: Cond, steps: int, rounds: int
) -> Float[Tensor, "p c h w"]:
    """Start noise from which `steps` steps of DDIM at guidance 1 lead to the clean latents x, up to the error of the iteration."""
    levels = model.timesteps(steps)
    last = float(getattr(sampling.scheduler(model.family, model.pipeline, "ddim"), "final_alpha_cumprod", 1.0))
    for i in reversed(range(len(levels))):
        alpha, sigma = model.schedule.at(x, levels[i].expand(len(x)))
        before = (torch.tensor(last**0.5), torch.tensor((1 - last) ** 0.5))
        if i + 1 < len(levels):
            before = model.schedule.at(x, levels[i + 1].expand(len(x)))
        guess, t = x, levels[i].expand(len(x))
        for _ in range(rounds):
            eps = noise_prediction(model, guess, t, cond, 1.0)
            guess = alpha * (x - before[1] * eps) / before[0] + sigma * eps
        x = guess
    return x


def percentile(z: Tensor) -> float:
    """Where |z|² lies among those of N(0, I), in percent: the χ² distribution's."""
    half = torch.tensor(z.numel() / 2, dtype=torch.float64)
    return round(100 * float(torch.special.gammainc(half, z.double().cpu().square().sum() / 2)), 3)


def correlation(z: Float[Tensor, "c h w"]) -> float:
    """Mean product of horizontal and vertical neighbours, in standard deviations of that of N(0, I)."""
    z = (z.double() - z.double().mean()) / z.double().std()
    products = torch.cat([(z[:, 1:] * z[:, :-1]).flatten(), (z[..., 1:] * z[..., :-1]).flatten()])
    return round(float(products.mean() * len(products) ** 0.5), 2)
