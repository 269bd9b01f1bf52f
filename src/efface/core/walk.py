"""Latents to train on: states on the way from noise to a picture, which the model itself draws."""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from efface.core.cond import Cond
from efface.core.denoiser import Denoiser


def walk(
    model: Denoiser, prompts: Cond, rng: Generator, *, batch: int, reuse: int, steps: int, guidance: float
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless batches of latents (batch c h w), their noise levels (batch), and which prompt each is on its way to (batch).

    Whole trajectories are kept, so that `reuse` batches come from each sampling, every one with noise levels of its own. Let
    checkpoints fall between samplings: one that is continued starts with a new one.

    Args:
        model: draws; asked again for each sampling, so a model in training draws as it is by then.
        prompts: one is picked for each latent.
        rng: draws prompts, seeds and noise levels.
        batch: latents at a time.
        reuse: batches from the same trajectories.
        steps: of the sampler.
        guidance: classifier-free guidance of a trajectory.
    """
    levels, row = model.timesteps(steps), torch.arange(batch)
    while True:
        picked = torch.randint(len(prompts), (batch,), generator=rng)
        seeds = torch.randint(2**31, (batch,), generator=rng).tolist()
        path = model.sample(
            prompts[picked], seeds=seeds, steps=len(levels), guidance=guidance, until=len(levels) - 1, record=True
        )
        for _ in range(reuse):
            k = torch.randint(len(levels), (batch,), generator=rng)
            yield path[k, row], levels[k], picked
