"""Sampling: initial noise, batch sizes, and the sampling loop of a diffusers scheduler with classifier-free guidance."""

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import diffusers
import numpy as np
import torch
from jaxtyping import Float, Shaped
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

    def predict(
        self, x: Float[Tensor, "b c h w"], t: Shaped[Tensor, "b"], cond: Cond, scale: float | Tensor | None = None
    ) -> Float[Tensor, "b c h w"]:
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


def timesteps(model: Model, scheduler: Any, steps: int, size: tuple[int, ...]) -> Shaped[Tensor, "steps"]:
    """The noise levels of a `steps`-step sampler, from noisy to clean, for latents of this height and width."""
    _start(model, copied := copy.deepcopy(scheduler), steps, size)
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


@dataclass(frozen=True)
class Start:
    """Pictures to start from instead of noise: noised to the level of step `first`, as in picture-to-picture.

    Where `mask` (b 1 h w) is 0 the picture is kept, noised to each step's level, as in inpainting; None redraws all of it.
    """

    latents: Float[Tensor, "b c h w"]  # clean
    first: int
    mask: Float[Tensor, "b 1 h w"] | None = None


@dataclass(frozen=True)
class Walk:
    """How to sample: the arguments of `Denoiser.sample`."""

    steps: int
    guidance: Guidance
    until: int | None
    record: bool
    sampler: str
    negative: str
    rng: str
    latents: Float[Tensor, "b c h w"] | None
    start: Start | None
    later: tuple[int, Cond] | None
    negative_rows: Cond | None


def sample(
    model: Model, cond: Cond, seeds: Sequence[int], how: Walk, tick: Callable[[int], object]
) -> Float[Tensor, "b c h w"] | Float[Tensor, "s b c h w"]:
    """As `Denoiser.sample`, batch after batch of `model.batch_size`."""
    cond, scales = cond.expand(len(seeds)), _scales(how.guidance, len(seeds))
    switch = how.later[1].expand(len(seeds)) if how.later else None
    texts = list(dict.fromkeys([how.negative, *(text for s in model.steers for text in s.texts(how.negative))]))
    uncond, walker, n = model.embed(texts), scheduler(model.family, model.pipeline, how.sampler), model.batch_size
    if how.negative_rows is not None:
        uncond = how.negative_rows.expand(1) + uncond[1:]
    _check(how, len(seeds))
    if (how.negative or how.negative_rows is not None) and model.family.distilled(model.pipeline):
        raise UsageError(
            f"negative: {model.family.name} with distilled guidance has no negative prompt, got one; it makes one prediction in a step"
        )
    done = []
    for i in range(0, len(seeds), n):
        batch, scale = slice(i, i + n), scales
        noise = model.noise(seeds[batch], how.rng) if how.latents is None else how.latents[batch]
        if isinstance(scale, list):
            scale = torch.tensor(scale[batch], dtype=noise.dtype, device=noise.device).view(-1, 1, 1, 1)
        _start(model, walker, how.steps, noise.shape[2:])  # for each batch: some schedulers keep their last predictions
        # and so do some corrections
        steers = [(s, *s.texts(how.negative)) for s in model.steers]
        corrections = [(s.start(), texts.index(away), texts.index(towards)) for s, away, towards in steers]
        path = _Path(model, walker, uncond, scale, corrections)
        x = path.begin(noise, how.start, batch)
        prompts = [cond[batch], cond[batch] if switch is None else switch[batch]]
        steps = range(len(walker.timesteps))[how.start.first if how.start else 0 : how.until]
        latents = [x]
        for step in steps:
            x = path.step(step, x, prompts[bool(how.later and step >= how.later[0])])
            x = path.keep(step + 1, x, noise, how.start, batch)
            latents.append(x)
            tick(len(x))
        done.append(torch.stack(latents) if how.record else x)
    return torch.cat(done, dim=1 if how.record else 0)


def _check(how: Walk, n: int) -> None:
    for name, given in (("latents", how.latents), ("start", how.start and how.start.latents)):
        if given is not None and len(given) != n:
            raise UsageError(f"{name}: expected {n}, one for each seed, got {len(given)}; give as many as seeds")
    if how.start and not 0 <= how.start.first < how.steps:
        raise UsageError(
            f"start: expected a first step below {how.steps}, got {how.start.first}; start earlier, or take more steps"
        )


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


def _start(model: Model, scheduler: Any, steps: int, size: Sequence[int]) -> None:
    """Set a scheduler to the start of `steps` steps."""
    if steps > (levels := len(model.schedule)):
        raise UsageError(f"steps: expected at most {levels}, got {steps}; give fewer")
    model.family.set_timesteps(model.pipeline, scheduler, steps, (size[0], size[1]))


@dataclass(frozen=True)
class _Path:
    """The steps of one batch; `uncond` are the negative prompt and the corrections' prompts."""

    model: Model
    scheduler: Any
    uncond: Cond
    scale: float | Tensor
    corrections: Sequence[Correcting]

    def begin(self, noise: Float[Tensor, "b c h w"], start: Start | None, batch: slice) -> Float[Tensor, "b c h w"]:
        """The first latents: noise, or pictures with noise."""
        if start is None:
            return noise * getattr(self.scheduler, "init_noise_sigma", 1.0)  # flow schedulers start at pure noise
        if start.first and hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(start.first)
        return self._noised(start.latents[batch], noise, start.first)

    def step(self, step: int, x: Float[Tensor, "b c h w"], cond: Cond) -> Float[Tensor, "b c h w"]:
        """One step with these prompts."""
        n, distilled = len(x), self.model.family.distilled(self.model.pipeline)
        guided = bool(self.corrections) or (not distilled and (isinstance(self.scale, Tensor) or self.scale != 1))
        every = self.uncond[torch.arange(len(self.uncond)).repeat_interleave(n)] + cond if guided else cond
        t = self.scheduler.timesteps[step]
        seen = self.scheduler.scale_model_input(x, t) if hasattr(self.scheduler, "scale_model_input") else x
        times, scale = len(every) // n, self.scale
        if distilled and isinstance(scale, Tensor):
            scale = scale.flatten().repeat(times)
        given = (scale,) if distilled else ()
        pred = self.model.predict(torch.cat([seen] * times), t.to(x.device).expand(len(every)), every, *given)
        if self.corrections:
            at = t.to(x.device).expand(n)
            pred = _steered(self.model.schedule, seen, at, pred.split(n), self.scale, self.corrections, distilled)
        elif guided:
            pred = pred[:n] + self.scale * (pred[n:] - pred[:n])
        return self.scheduler.step(pred, t if t.is_floating_point() else int(t), x, return_dict=False)[0]

    def keep(
        self, step: int, x: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], start: Start | None, batch: slice
    ) -> Float[Tensor, "b c h w"]:
        """The latents before step `step`, with the start picture where its mask is 0."""
        if start is None or start.mask is None:
            return x
        clean, mask = start.latents[batch], start.mask[batch]
        last = step >= len(self.scheduler.timesteps)
        return mask * x + (1 - mask) * (clean if last else self._noised(clean, noise, step))

    def _noised(self, clean: Tensor, noise: Tensor, step: int) -> Tensor:
        at = self.scheduler.timesteps[step].expand(len(clean))
        flow = self.model.schedule.prediction == "flow"
        return (self.model.schedule if flow else self.scheduler).add_noise(
            *((clean, at, noise) if flow else (clean, noise, at))
        )


def _steered(
    schedule: Schedule,
    x: Tensor,
    t: Tensor,
    preds: Sequence[Tensor],
    scale: float | Tensor,
    corrections: Sequence[Correcting],
    distilled: bool,
) -> Tensor:
    """The guided and corrected prediction; corrections are computed in ε, the unit of their thresholds.

    `preds` are for the negative prompt, then for the corrections' prompts, then for the prompts; if `distilled`, they are guided.
    """
    e = [schedule.to_eps(x, t, pred) for pred in preds]
    added = [correct(e[0], e[-1], e[away], e[towards], scale) for correct, away, towards in corrections]
    change = schedule.native_change(x, t, sum(added[1:], added[0]))
    return (preds[-1] if distilled else preds[0] + scale * (preds[-1] - preds[0])) + change
