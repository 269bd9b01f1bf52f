"""Training latents: partly denoised pictures from the model's own sampling trajectories."""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from efface.core.cond import Cond
from efface.core.denoiser import Denoiser


def walk(
    model: Denoiser, prompts: Cond, rng: Generator, *, batch: int, reuse: int, steps: int, guidance: float
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield batches without end: latents (batch c h w), their noise levels (batch), and the index of each latent's prompt (batch).

    Whole trajectories are kept: each sampling gives `reuse` batches, every one with new noise levels. Save checkpoints only between
    samplings, since a continued run begins with a new sampling.

    Args:
        model: samples; a student in training samples with its current weights.
        prompts: prompts to pick from, one for each latent.
        rng: generator for prompts, seeds and noise levels.
        batch: number of latents in a batch.
        reuse: number of batches from the same trajectories.
        steps: number of sampler steps.
        guidance: guidance scale of a trajectory.
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
