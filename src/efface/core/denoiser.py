"""A text-conditioned denoiser over a diffusers pipeline: the one thing every eraser, edit and measure is written against."""

import copy
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import diffusers
import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor, nn

from efface.core import identity
from efface.core.appended_rows import ActiveKey, AppendedRows
from efface.core.concept import article
from efface.core.cond import Cond
from efface.core.errors import EffaceError, UsageError, nearest
from efface.core.families import sd
from efface.core.hooks import BoundBranch, hooked
from efface.core.identity import Signature
from efface.core.steering import Steer
from efface.models import resolve

Weights = Mapping[str, Tensor]
CHUNK = 16  # pictures that pass the denoiser at once; a CPU gains nothing from more
SAMPLERS = {  # ours to diffusers' class and what it is told besides the model's own noise schedule
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
}


class Denoiser:
    """A pipeline of the Stable Diffusion 1.x/2.x shape, seen as ε (or v) predictor, sampler and bag of named weights.

    Weights are frozen. `fork` gives a denoiser that owns copies of some of them and shares every other tensor. What edits do besides:
    `branches` add to the outputs of modules within `predict`, `keys` lengthen prompts there, `steers` add to every guided prediction
    while sampling. `pipeline` knows nothing of the three.
    """

    steers: tuple[Steer, ...] = ()
    branches: tuple[BoundBranch, ...] = ()
    keys: tuple[ActiveKey | AppendedRows, ...] = ()

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        """Wrap `pipeline`, which is not changed except that its weights stop requiring gradients.

        Raises:
            UsageError: a pipeline of another shape or prediction type, or without a text encoder.
        """
        if not isinstance(pipeline, sd.CLASSES):
            known = ", ".join(c.__name__ for c in sd.CLASSES)
            raise UsageError(
                f"model: expected a text-to-image pipeline ({known}), got {type(pipeline).__name__}; give another model"
            )
        if missing := [part for part in (*sd.PARTS.values(), "tokenizer") if getattr(pipeline, part) is None]:
            raise UsageError(
                f"model: expected a pipeline with {missing[0]}, got one without; concepts, edits and gates are said in words: load it whole"
            )
        self.pipeline = pipeline
        for part in sd.PARTS.values():
            getattr(pipeline, part).requires_grad_(False).eval()
        pipeline.vae.requires_grad_(False).eval()
        pipeline.set_progress_bar_config(disable=True)
        self.scheduler = cast(DDIMScheduler, _scheduler(pipeline, "ddim"))
        kind = self.scheduler.config["prediction_type"]
        if kind not in ("epsilon", "v_prediction"):
            raise UsageError(f"model: expected epsilon or v_prediction, got {kind!r}; this family is not supported yet")
        self.prediction: Literal["epsilon", "v_prediction"] = kind
        self.alphas_cumprod: Float[Tensor, "T"] = self.scheduler.alphas_cumprod.to(self.device)

    @property
    def device(self) -> torch.device:
        """Where the U-Net lives."""
        return self.pipeline.unet.device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one latent."""
        config = self.pipeline.unet.config
        size = config.sample_size
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return config.in_channels, height, width

    @property
    def image_size(self) -> int:
        """Height of a picture in pixels."""
        return self.latent_shape[1] * self.pipeline.vae_scale_factor

    # -- words -----------------------------------------------------------------------------------------------------

    def embed(self, prompts: Sequence[str], grad: bool = False) -> Cond:
        """Prompts as the denoiser reads them; "" is the unconditional prompt. `grad` lets gradients reach the text encoder's weights."""
        with torch.set_grad_enabled(grad):
            parts = [sd.embed(self.pipeline, list(prompts[i : i + 256])) for i in range(0, len(prompts), 256)]
        return Cond(*(torch.cat(rows) for rows in zip(*parts, strict=True)))

    def fits(self, prompt: str) -> bool:
        """Whether the text encoder reads all of a prompt, with a place to spare."""
        return not bool(self.embed([prompt]).mask[0, -1])

    def words(self, n: int) -> list[str]:
        """The `n` most frequent words that the text encoder knows as one token; fewer where it knows fewer."""
        return sd.words(self.pipeline, n)

    def everyday(self, n: int, besides: Iterable[str]) -> list[str]:
        """The `n` most frequent words that none of these texts says, each bare and with its article."""
        said = {word for text in besides for word in re.findall(r"\w+", text.lower())}
        others = [w for w in self.words(n + len(said)) if w not in said][:n]
        return [text for w in others for text in (w, article(w))]

    # -- predictions -----------------------------------------------------------------------------------------------

    def predict(self, x: Float[Tensor, "b c h w"], t: Shaped[Tensor, "b"], cond: Cond) -> Float[Tensor, "b c h w"]:
        """The model's NATIVE output (ε or v) at noise level `t` for each latent."""
        unet, cond, reads = self.pipeline.unet, cond.expand(len(x)), None
        for key in self.keys:
            cond, reads = key(cond, reads)
        with hooked(self.modules(), [bound(cond) for bound in self.branches]):
            rows = cond.tokens.to(unet.dtype)
            return unet(x.to(unet.dtype), t, encoder_hidden_states=rows, encoder_attention_mask=reads).sample.to(
                x.dtype
            )

    def to_x0(self, x: Tensor, t: Tensor, pred: Tensor) -> Tensor:
        """The clean latent that a native prediction stands for: (x - σ ε)/α or α x - σ v, with α² = ᾱ_t, σ² = 1 - ᾱ_t."""
        a, s = self._level(x, t)
        return (x - s * pred) / a if self.prediction == "epsilon" else a * x - s * pred

    def to_eps(self, x: Tensor, t: Tensor, pred: Tensor) -> Tensor:
        """The noise that a native prediction stands for: ε itself, or α v + σ x."""
        a, s = self._level(x, t)
        return pred if self.prediction == "epsilon" else a * pred + s * x

    def native(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """What a model predicts at level `t` that knows clean latents and noise: ε, or α ε - σ x0."""
        a, s = self._level(x0, t)
        return eps if self.prediction == "epsilon" else a * eps - s * x0

    def add_noise(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The forward process: α x0 + σ ε."""
        a, s = self._level(x0, t)
        return a * x0 + s * eps

    def _level(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        bar = self.alphas_cumprod[t].to(x.dtype).view(-1, *[1] * (x.ndim - 1))
        return bar.sqrt(), (1 - bar).sqrt()

    # -- pictures --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """Images in [0, 1] as scaled latents (the mean of the posterior)."""
        vae = self.pipeline.vae
        parts = [
            vae.encode((2 * part - 1).to(vae.dtype)).latent_dist.mean for part in images.to(self.device).split(CHUNK)
        ]
        return torch.cat(parts).float() * vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Scaled latents as images in [0, 1]."""
        vae = self.pipeline.vae
        parts = [vae.decode(part.to(vae.dtype) / vae.config.scaling_factor).sample for part in latents.split(CHUNK)]
        return (torch.cat(parts).float() / 2 + 0.5).clamp(0, 1)

    def noise(self, seeds: Sequence[int], rng: str = "cpu") -> Float[Tensor, "b c h w"]:
        """Start noise, one generator for each seed: a picture depends on its seed, never on its neighbours.

        Args:
            seeds: one for each latent.
            rng: the device whose generator draws; a GPU's draws other numbers than a CPU's.

        Raises:
            UsageError: no such device here.
        """
        try:
            generators = [torch.Generator(rng).manual_seed(int(s)) for s in seeds]
        except RuntimeError as error:
            raise UsageError(
                f"rng: this machine cannot draw noise on {rng!r} ({str(error).splitlines()[0]}); give 'cpu'"
            ) from error
        drawn = [torch.randn(self.latent_shape, generator=g, device=rng) for g in generators]
        return torch.stack(drawn).to(self.device)

    def timesteps(self, steps: int) -> Int[Tensor, "steps"]:
        """The noise levels of a `steps`-step sampler, from noisy to clean.

        Raises:
            UsageError: more steps than the model has levels.
        """
        self._spaced(scheduler := copy.deepcopy(self.scheduler), steps)
        return scheduler.timesteps.to(self.device)

    @torch.no_grad()
    def sample(
        self,
        cond: Cond,
        *,
        seeds: Sequence[int],
        steps: int = 25,
        guidance: float | Sequence[float] = 3.0,
        until: int | None = None,
        record: bool = False,
        sampler: str = "ddim",
        negative: str = "",
        rng: str = "cpu",
        tick: Callable[[int], object] = lambda n: None,
    ) -> Float[Tensor, "b c h w"] | Float[Tensor, "s b c h w"]:
        """A deterministic sampler (DDIM has η = 0) with classifier-free guidance, one picture for each seed.

        Args:
            cond: one prompt for all seeds, or one for each.
            seeds: of the start noise, one for each picture.
            steps: of the sampler.
            guidance: scale s in e(∅) + s (e(c) - e(∅)), one for all or one for each; 1 for all means no guidance, but `steers`.
            until: stop before this step: the latent there has noise level `timesteps(steps)[until]`; None runs to the end.
            record: return every latent on the way instead of the last: (until + 1 or steps + 1, b, c, h, w), start noise first.
            sampler: one of SAMPLERS.
            negative: prompt that takes the place of ∅.
            rng: the device that draws the start noise.
            tick: called with the number of pictures that finished a step.

        Raises:
            UsageError: unknown sampler, more steps than the model has levels, or no such device for the noise.
        """
        cond = cond.expand(len(seeds))
        texts = list(dict.fromkeys([negative, *(text for s in self.steers for text in s.texts(negative))]))
        asked = self.embed(texts)
        scheduler = _scheduler(self.pipeline, sampler)
        done = []
        for i in range(0, len(seeds), CHUNK):
            x, scale = self.noise(seeds[i : i + CHUNK], rng), guidance
            if not isinstance(guidance, int | float):
                scale = torch.tensor(guidance[i : i + CHUNK], dtype=x.dtype, device=x.device).view(-1, 1, 1, 1)
            self._spaced(scheduler, steps)  # starts it anew: some remember their last predictions
            # the steers' memories start anew as well
            corrections = [(s.start(), *map(texts.index, s.texts(negative))) for s in self.steers]
            x = x * scheduler.init_noise_sigma
            path = self._walk(cond[i : i + CHUNK], asked, x, scheduler, scale, corrections, until, tick)
            done.append(torch.stack(path) if record else path[-1])
        return torch.cat(done, dim=1 if record else 0)

    def _spaced(self, scheduler: Any, steps: int) -> None:
        """Set a scheduler to the start of a walk of `steps`."""
        if steps > len(self.alphas_cumprod):
            raise UsageError(
                f"steps: expected at most {len(self.alphas_cumprod)} of a sampler, got {steps}; give fewer"
            )
        scheduler.set_timesteps(steps)

    def _walk(self, cond, asked, x, scheduler, scale, corrections, until, tick) -> list[Tensor]:  # noqa: ANN001
        n, guided = len(x), isinstance(scale, Tensor) or scale != 1 or bool(corrections)
        every = asked[torch.arange(len(asked)).repeat_interleave(n)] + cond if guided else cond
        path = [x]
        for t in scheduler.timesteps[:until]:
            seen = scheduler.scale_model_input(x, t)
            pred = self.predict(torch.cat([seen] * (len(every) // n)), t.to(self.device).expand(len(every)), every)
            if corrections:
                pred = self._steered(seen, t.to(self.device).long().expand(n), pred.split(n), scale, corrections)
            elif guided:
                pred = pred[:n] + scale * (pred[n:] - pred[:n])
            x = scheduler.step(pred, t if t.is_floating_point() else int(t), x, return_dict=False)[0]
            path.append(x)
            tick(n)
        return path

    def _steered(self, x, t, preds, scale, corrections) -> Tensor:  # noqa: ANN001
        """Guided and corrected in ε, which the steers' thresholds are of; `preds` are of ∅, of what the steers read, of the prompts."""
        e = [self.to_eps(x, t, pred) for pred in preds]
        added = sum(correct(e[0], e[-1], e[away], e[towards], scale) for correct, away, towards in corrections)
        if (
            self.prediction == "v_prediction"
        ):  # what ε changes by, in v; where all is noise each ε is x, and nothing changes
            added = added / self._level(x, t)[0].clamp(min=1e-6)
        return preds[0] + scale * (preds[-1] - preds[0]) + added

    def images(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int = 25,
        guidance: float | Sequence[float] = 3.0,
        sampler: str = "ddim",
        negative: str = "",
        rng: str = "cpu",
        tick: Callable[[int], object] = lambda n: None,
    ) -> list[UInt8[np.ndarray, "H W 3"]]:
        """One picture for each (prompt, seed), as uint8 arrays; the rest as in `sample`.

        Raises:
            EffaceError: a picture is not finite.
        """
        latents = self.sample(
            self.embed(prompts), seeds=seeds, steps=steps, guidance=guidance, sampler=sampler, negative=negative, rng=rng, tick=tick,
        )  # fmt: skip
        pictures = self.decode(latents).permute(0, 2, 3, 1).cpu()
        if broken := int((~pictures.isfinite()).flatten(1).any(1).sum()):
            raise EffaceError(
                f"images: {broken} of {len(pictures)} pictures came out as NaN or infinite; the edit is too strong, "
                "or the dtype too narrow: fit or apply it weaker, or load the model in float32"
            )
        return list((pictures * 255).round().to(torch.uint8).numpy())

    # -- weights ---------------------------------------------------------------------------------------------------

    def modules(self) -> dict[str, nn.Module]:
        """What an edit can touch, by our prefix: {"unet": …, "text": …}."""
        return {ours: getattr(self.pipeline, part) for ours, part in sd.PARTS.items()}

    def params(self, where: str | Iterable[str] = "unet") -> dict[str, Tensor]:
        """Named weights: a selection such as "xattn.kv", or exact names.

        Raises:
            UsageError: unknown selection or name.
        """
        owned = {
            f"{ours}.{name}": (p, module) for ours, part in self.modules().items() for name, p, module in _owned(part)
        }
        if isinstance(where, str):
            if where not in sd.SELECTIONS:
                raise UsageError(f"selection: unknown {where!r}; {nearest(where, sd.SELECTIONS)}")
            rule = sd.SELECTIONS[where]
            return {name: p for name, (p, module) in owned.items() if rule(name, module)}
        if missing := [name for name in where if name not in owned]:
            raise UsageError(
                f"weights: this model has no {missing[0]!r} ({len(missing)} such); the edit was made for another model"
            )
        return {name: owned[name][0] for name in where}

    def fork(self, where: str | Iterable[str]) -> "Denoiser":
        """A denoiser that owns copies of the weights `where` and shares every other tensor with this one."""
        owned = {id(p) for p in self.params(where).values()}
        twin = copy.copy(self)
        with warnings.catch_warnings():  # diffusers warns when a component is assigned to a copied pipeline
            warnings.simplefilter("ignore")
            twin.pipeline = copy.copy(self.pipeline)
            for part in sd.PARTS.values():
                module = getattr(self.pipeline, part)
                tensors = [*module.parameters(), *module.buffers()]
                memo = {id(p): p for p in tensors if id(p) not in owned}
                if len(memo) < len(tensors):
                    setattr(twin.pipeline, part, copy.deepcopy(module, memo))
        return twin

    @property
    def fingerprint(self) -> str:
        """Names the model in a store: 16 hex digits over everything that can differ in one picture, what edits add included."""
        parts = {**self.modules(), "vae": self.pipeline.vae}
        added = [repr(steer) for steer in self.steers] + [one.fingerprint for one in (*self.branches, *self.keys)]
        facts = [
            identity.configuration(self.pipeline.scheduler.config),
            identity.tokenizer(self.pipeline.tokenizer),
            added,
        ]
        return identity.fingerprint(parts, facts)

    @property
    def signature(self) -> Signature:
        """Of the weights that an edit can touch, by which an edit is found to fit."""
        return identity.signature(self.modules())


def _owned(part: nn.Module) -> Iterable[tuple[str, Tensor, nn.Module]]:
    for prefix, module in part.named_modules():
        for name, p in module.named_parameters(recurse=False):
            yield f"{prefix}.{name}" if prefix else name, p, module


def _scheduler(pipe: DiffusionPipeline, name: str) -> Any:
    if name not in SAMPLERS:
        raise UsageError(f"sampler: unknown {name!r}; {nearest(name, SAMPLERS)}")
    kind, settings = SAMPLERS[name]
    with warnings.catch_warnings():  # settings of another sampler that this one does not use are no news
        warnings.simplefilter("ignore")
        try:
            return getattr(diffusers, kind).from_config(pipe.scheduler.config, **settings)
        except ImportError as error:
            raise UsageError(f"sampler {name}: needs scipy; pip install 'efface[benchmarks]'") from error


def load(
    model: "str | Path | DiffusionPipeline | Denoiser" = "moji",
    *,
    device: str = "cpu",
    dtype: str | torch.dtype = "float32",
) -> Denoiser:
    """A denoiser from "moji", a diffusers folder, a Hub id, or a pipeline that is already in memory.

    Raises:
        UsageError: no such model, no text-to-image pipeline, or no such dtype.
        EffaceError: the folder or the Hub's answer is damaged.
    """
    if isinstance(model, Denoiser):
        return model
    if isinstance(model, DiffusionPipeline):
        return Denoiser(model)
    source, kind = resolve(str(model)), getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(kind, torch.dtype):
        raise UsageError(f"dtype: expected float32, bfloat16 or float16, got {dtype!r}; give one of them")
    try:
        pipe = DiffusionPipeline.from_pretrained(source, dtype=kind, use_safetensors=True)
    except Exception as error:  # diffusers raises a dozen kinds; each becomes one sentence
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EffaceError(
            f"model {str(model)!r}: diffusers cannot load it ({first}); give 'moji', a diffusers folder or a Hub id"
        ) from error
    try:
        made = Denoiser(pipe.to(device))
    except (RuntimeError, AssertionError) as error:  # torch has both for a device that is not there
        first = str(error).splitlines()[0]
        raise UsageError(f"device: cannot use {device!r} ({first}); give cpu, or see `efface doctor`") from error
    if Path(source).is_dir():
        parts = {**made.modules(), "vae": made.pipeline.vae}
        identity.remember(Path(source), kind, parts)
    return made
