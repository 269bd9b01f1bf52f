"""Sampling: initial noise, batch sizes, and the sampling loop of a diffusers scheduler with classifier-free guidance."""

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import diffusers
import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from efface.core.cond import Cond
from efface.core.errors import UsageError, nearest
from efface.core.families import Family
from efface.core.schedule import Schedule
from efface.core.steering import Correction, Steer

MOST = 16  # maximum batch of pictures; a CPU gains nothing from more
PLACES = 4096  # latent positions of a batch on a CPU: those of one picture of 512 pixels
BYTES = 2**17  # GPU memory for each latent position and byte of the dtype: 1 GiB for 512 pixels in float16, an estimate

Guidance = float | int | np.number | Sequence[float]
Correcting = tuple[Correction, int, int]  # with the indices of its two prompts among the unconditional ones


@runtime_checkable
class Model(Protocol):
    """The part of a denoiser that sampling uses."""

    pipeline: Any
    family: Family
    schedule: Schedule
    steers: tuple[Steer, ...]

    @property
    def batch_size(self) -> int:
        """Maximum batch of pictures."""
        ...

    def embed(self, prompts: Sequence[str], grad: bool = False) -> Cond:
        """Prompts as the model reads them."""
        ...

    def predict(self, x: Float[Tensor, "b c h w"], t: Shaped[Tensor, "b"], cond: Cond) -> Float[Tensor, "b c h w"]:
        """The native prediction."""
        ...

    def noise(self, seeds: Sequence[int], rng: str = "cpu") -> Float[Tensor, "b c h w"]:
        """Initial noise."""
        ...


def batch_size(places: int, memory: int | None, itemsize: int) -> int:
    """Maximum batch of pictures for a model: 1 to 16, by the device's memory.

    On a CPU the batch has at most 4,096 latent positions: 16 pictures of 128 pixels or less, 4 of 256, 1 of 512 and above (if latents
    have an eighth of the size). On a GPU it fits the memory without the model's weights, at 128 KiB for each position and byte of the
    dtype: 1 GiB for 512 pixels in float16. Total memory counts, not free memory: a picture's bits may depend on its batch, so the same
    model on the same device always has the same batch size.

    Args:
        places: height times width of a latent.
        memory: bytes of the GPU minus the model's weights; None on a CPU.
        itemsize: bytes of the model's dtype.
    """
    room = PLACES // places if memory is None else memory // (places * itemsize * BYTES)
    return max(1, min(MOST, room))


def scheduler(family: Family, pipeline: Any, sampler: str) -> Any:
    """Diffusers' scheduler of that name over the pipeline's own noise schedule.

    Raises:
        UsageError: unknown sampler, or one that needs scipy, which is not installed.
    """
    if sampler not in family.samplers:
        raise UsageError(f"sampler: unknown {sampler!r}; {nearest(sampler, family.samplers)}")
    kind, settings = family.samplers[sampler]
    with warnings.catch_warnings():  # a warning about settings of another sampler that this one ignores
        warnings.simplefilter("ignore")
        try:
            return getattr(diffusers, kind).from_config(pipeline.scheduler.config, **settings)
        except ImportError as error:
            raise UsageError(f"sampler {sampler}: needs scipy; pip install 'efface[benchmarks]'") from error


def timesteps(scheduler: Any, levels: int, steps: int) -> Int[Tensor, "steps"]:
    """The noise levels of a `steps`-step sampler, from noisy to clean; `scheduler` is not changed."""
    _start(copied := copy.deepcopy(scheduler), levels, steps)
    return copied.timesteps


def noise(shape: tuple[int, int, int], seeds: Sequence[int], rng: str) -> Float[Tensor, "b c h w"]:
    """Initial noise, from one generator for each seed on the device `rng`.

    Raises:
        UsageError: no such device here.
    """
    try:
        generators = [torch.Generator(rng).manual_seed(int(s)) for s in seeds]
    except RuntimeError as error:
        raise UsageError(
            f"rng: this machine cannot draw noise on {rng!r} ({str(error).splitlines()[0]}); give 'cpu'"
        ) from error
    return torch.stack([torch.randn(shape, generator=g, device=rng) for g in generators])


def sample(
    model: Model,
    cond: Cond,
    seeds: Sequence[int],
    steps: int,
    guidance: Guidance,
    until: int | None,
    record: bool,
    sampler: str,
    negative: str,
    rng: str,
    tick: Callable[[int], object],
) -> Float[Tensor, "b c h w"] | Float[Tensor, "s b c h w"]:
    """As `Denoiser.sample`, batch after batch of `model.batch_size`."""
    cond, scales = cond.expand(len(seeds)), _scales(guidance, len(seeds))
    texts = list(dict.fromkeys([negative, *(text for s in model.steers for text in s.texts(negative))]))
    uncond, walker, n = model.embed(texts), scheduler(model.family, model.pipeline, sampler), model.batch_size
    done = []
    for i in range(0, len(seeds), n):
        x, scale = model.noise(seeds[i : i + n], rng), scales
        if isinstance(scale, list):
            scale = torch.tensor(scale[i : i + n], dtype=x.dtype, device=x.device).view(-1, 1, 1, 1)
        _start(walker, len(model.schedule), steps)  # for each batch: some schedulers keep their last predictions
        # and so do some corrections
        steers = [(s, *s.texts(negative)) for s in model.steers]
        corrections = [(s.start(), texts.index(away), texts.index(towards)) for s, away, towards in steers]
        x = x * walker.init_noise_sigma
        path = _walk(model, cond[i : i + n], uncond, x, walker, scale, corrections, until, tick)
        done.append(torch.stack(path) if record else path[-1])
    return torch.cat(done, dim=1 if record else 0)


def _scales(guidance: Guidance, n: int) -> float | list[float]:
    """One guidance scale for all pictures, or one for each, as plain numbers."""
    one = isinstance(guidance, float | int | np.number)
    scales = [float(guidance)] if one else [float(s) for s in guidance]
    if not all(math.isfinite(s) for s in scales):
        raise UsageError(f"guidance: expected finite scales, got {guidance!r}; 1 is no guidance, 7.5 is usual")
    if one:
        return scales[0]
    if len(scales) != n:
        raise UsageError(
            f"guidance: expected 1 scale or {n}, one for each picture, got {len(scales)}; give as many as seeds"
        )
    return scales


def _start(scheduler: Any, levels: int, steps: int) -> None:
    """Set a scheduler to the start of `steps` steps."""
    if steps > levels:
        raise UsageError(f"steps: expected at most {levels}, got {steps}; give fewer")
    scheduler.set_timesteps(steps)


def _walk(
    model: Model,
    cond: Cond,
    uncond: Cond,
    x: Float[Tensor, "b c h w"],
    scheduler: Any,
    scale: float | Tensor,
    corrections: Sequence[Correcting],
    until: int | None,
    tick: Callable[[int], object],
) -> list[Tensor]:
    """Latents of one batch, from initial noise to the last step; `uncond` are the negative prompt and the corrections' prompts."""
    n, guided = len(x), isinstance(scale, Tensor) or scale != 1 or bool(corrections)
    every = uncond[torch.arange(len(uncond)).repeat_interleave(n)] + cond if guided else cond
    path = [x]
    for t in scheduler.timesteps[:until]:
        seen = scheduler.scale_model_input(x, t)
        pred = model.predict(torch.cat([seen] * (len(every) // n)), t.to(x.device).expand(len(every)), every)
        if corrections:
            pred = _steered(model.schedule, seen, t.to(x.device).long().expand(n), pred.split(n), scale, corrections)
        elif guided:
            pred = pred[:n] + scale * (pred[n:] - pred[:n])
        x = scheduler.step(pred, t if t.is_floating_point() else int(t), x, return_dict=False)[0]
        path.append(x)
        tick(n)
    return path


def _steered(
    schedule: Schedule,
    x: Tensor,
    t: Tensor,
    preds: Sequence[Tensor],
    scale: float | Tensor,
    corrections: Sequence[Correcting],
) -> Tensor:
    """The guided and corrected prediction; corrections are computed in ε, the unit of their thresholds.

    `preds` are for the negative prompt, then for the corrections' prompts, then for the prompts.
    """
    e = [schedule.to_eps(x, t, pred) for pred in preds]
    added = [correct(e[0], e[-1], e[away], e[towards], scale) for correct, away, towards in corrections]
    change = schedule.native_change(x, t, sum(added[1:], added[0]))
    return preds[0] + scale * (preds[-1] - preds[0]) + change
