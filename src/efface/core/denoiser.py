"""A text-conditioned denoiser that wraps a diffusers pipeline: the interface to the model for every eraser, edit and measure."""

import copy
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float, Shaped, UInt8
from safetensors import safe_open
from torch import Tensor, nn

from efface.core import identity, sampling
from efface.core.appended_rows import ActiveKey, AppendedRows
from efface.core.concept import article
from efface.core.cond import Cond, Tokens
from efface.core.errors import EffaceError, UsageError, nearest
from efface.core.families import family_of
from efface.core.families.base import CrossAttention
from efface.core.hooks import BoundBranch, hooked
from efface.core.identity import Signature
from efface.core.steering import Steer
from efface.models import absent, resolve

Weights = Mapping[str, Tensor]
DTYPES = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
    "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
}  # fmt: skip


# "model.fp16.safetensors", "model-00001-of-00002.fp16.safetensors", "model.fp16-00001-of-00002.safetensors"
WEIGHTS = re.compile(r"[^.]+?(?:\.(\w+?))?(?:-\d+-of-\d+)?\.safetensors")


class Denoiser:
    """A text-to-image pipeline as predictor, sampler and named weights. `family` has everything that differs between model families.

    Weights are frozen. `fork` returns a denoiser that owns copies of some weights and shares every other tensor. Edits can also set
    `branches`, which add to module outputs in `predict`; `keys`, which append rows to prompts there; and `steers`, which correct the
    guided prediction while sampling. `pipeline` does not contain these three.
    """

    steers: tuple[Steer, ...] = ()
    branches: tuple[BoundBranch, ...] = ()
    keys: tuple[ActiveKey | AppendedRows, ...] = ()
    note: str = ""  # a choice that `load` made by itself, as a sentence to print; "" if none

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        """Wrap `pipeline`, which is not changed except that its weights stop requiring gradients.

        Raises:
            UsageError: a pipeline of an unknown family or prediction type, without a tokenizer, text encoder or autoencoder, or
                with weights that are not in memory.
        """
        self.family = family_of(pipeline)
        self.pipeline: Any = pipeline
        for part in self.parts().values():
            if any(p.is_meta for p in part.parameters()):
                raise UsageError(
                    "model: expected weights in memory, got some on the device 'meta', as sequential CPU offload leaves them; "
                    "load it without, or use enable_model_cpu_offload"
                )
            part.requires_grad_(False).eval()
        pipeline.set_progress_bar_config(disable=True)
        self.schedule = self.family.schedule(pipeline)

    @property
    def device(self) -> torch.device:
        """Device of the network that predicts."""
        return self.family.device(self.pipeline)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the network that predicts."""
        return self.family.dtype(self.pipeline)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one latent.

        Raises:
            UsageError: no configuration has a sample size.
        """
        return self.family.latent_shape(self.pipeline)

    @property
    def image_size(self) -> int:
        """Height of a picture in pixels."""
        return self.latent_shape[1] * self.pipeline.vae_scale_factor

    @property
    def batch_size(self) -> int:
        """Maximum batch of pictures for the denoiser and the autoencoder, by size and device: see `sampling.batch_size`."""
        _, height, width = self.latent_shape
        memory = None
        if self.device.type == "cuda":
            weights = sum(p.nbytes for part in self.parts().values() for p in part.parameters())
            memory = torch.cuda.get_device_properties(self.device).total_memory - weights
        return sampling.batch_size(height * width, memory, self.dtype.itemsize)

    # -- words -----------------------------------------------------------------------------------------------------

    def embed(self, prompts: Sequence[str], grad: bool = False) -> Cond:
        """Prompts as the denoiser reads them; "" is the unconditional prompt. `grad` lets gradients reach the text encoder's weights."""
        if not prompts:
            return self.embed([""])[:0]
        n = self.family.prompt_batch(self.pipeline)
        with torch.set_grad_enabled(grad):
            return Cond.cat([self.family.embed(self.pipeline, prompts[i : i + n]) for i in range(0, len(prompts), n)])

    def tokenize(self, prompts: Sequence[str]) -> Tokens:
        """Prompts as token ids and masks; at least one prompt."""
        return self.family.tokenize(self.pipeline, prompts)

    def encode_tokens(self, tokens: Tokens, vectors: Float[Tensor, "b n e"] | None = None) -> Cond:
        """Tokens as the denoiser reads them, in one batch; gradients reach `vectors`, which replace the tokens' word vectors."""
        return self.family.encode_tokens(self.pipeline, tokens, vectors)

    @property
    def word_vectors(self) -> Float[Tensor, "v e"]:
        """The text encoder's word vectors, one for each token id."""
        return self.family.word_vectors(self.pipeline)

    def spell(self, ids: Sequence[int]) -> str:
        """Token ids as text, without start, end and padding; `tokenize` may read it as other tokens."""
        return self.family.spell(self.pipeline, ids)

    def fits(self, prompt: str) -> bool:
        """Whether the text encoder reads all of a prompt, with at least one padding token left."""
        return not bool(self.tokenize([prompt]).mask[0, -1])

    def words(self, n: int) -> list[str]:
        """The tokenizer's `n` most frequent words of one token; fewer if it has fewer."""
        return self.family.common_words(self.pipeline, n)

    def everyday(self, n: int, besides: Iterable[str]) -> list[str]:
        """The `n` most frequent words that none of the texts `besides` contains, each bare and with its article."""
        used = {word for text in besides for word in re.findall(r"\w+", text.lower())}
        others = [w for w in self.words(n + len(used)) if w not in used][:n]
        return [text for w in others for text in (w, article(w))]

    # -- predictions -----------------------------------------------------------------------------------------------

    def predict(
        self, x: Float[Tensor, "b c h w"], t: Shaped[Tensor, "b"], cond: Cond, scale: float | Tensor | None = None
    ) -> Float[Tensor, "b c h w"]:
        """The model's NATIVE output (ε, v or velocity) at noise level `t` for each latent.

        A model with distilled guidance also reads the guidance `scale`, one for all latents or one for each; others ignore it.
        """
        cond, reads = cond.expand(len(x)), None
        for key in self.keys:
            cond, reads = key(cond, reads)
        if reads is None or self.family.masks:
            return self._predict(x, t, cond, reads, scale)
        out, (patterns, of) = torch.empty_like(x), reads.unique(dim=0, return_inverse=True)
        for i, pattern in enumerate(patterns):  # the prompts that attend to the same rows, without the others
            those = (of == i).nonzero().flatten()
            part = scale[those] if isinstance(scale, Tensor) and len(scale) == len(x) else scale
            out[those] = self._predict(x[those], t[those], cond[those].at(pattern), None, part)
        return out

    def _predict(self, x: Tensor, t: Tensor, cond: Cond, reads: Tensor | None, scale: float | Tensor | None) -> Tensor:
        with hooked(self.modules(), [bound(cond) for bound in self.branches]):
            return self.family.predict(self.pipeline, x, t, cond, reads, scale)

    def to_x0(self, x: Tensor, t: Tensor, pred: Tensor) -> Tensor:
        """The clean latent x0 that a native prediction implies."""
        return self.schedule.to_x0(x, t, pred)

    def to_eps(self, x: Tensor, t: Tensor, pred: Tensor) -> Tensor:
        """The noise ε that a native prediction implies."""
        return self.schedule.to_eps(x, t, pred)

    def native(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The exact native prediction (ε, v or velocity) at level `t`, given clean latents and noise."""
        return self.schedule.native(x0, t, eps)

    def add_noise(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The forward process: α x0 + σ ε."""
        return self.schedule.add_noise(x0, t, eps)

    # -- pictures --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """Images in [0, 1] as scaled latents (the mean of the posterior)."""
        parts = images.to(self.device).split(self.batch_size)
        return torch.cat([self.family.encode(self.pipeline, part) for part in parts])

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Scaled latents as images in [0, 1]."""
        return self._decoded(latents).clamp(0, 1)

    @torch.no_grad()
    def _decoded(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        return torch.cat([self.family.decode(self.pipeline, part) for part in latents.split(self.batch_size)])

    def noise(self, seeds: Sequence[int], rng: str = "cpu", size: int | None = None) -> Float[Tensor, "b c h w"]:
        """Initial noise, from one generator for each seed: a picture does not depend on its batch.

        Args:
            seeds: one for each latent.
            rng: device of the generator; a GPU's generator gives other numbers than a CPU's.
            size: height and width of the picture in pixels; None is the model's own.

        Raises:
            UsageError: no such device here, or a size that is no multiple of the autoencoder's factor.
        """
        c, h, w = self.latent_shape
        if size is not None:
            factor = self.pipeline.vae_scale_factor
            if size < factor or size % factor:
                raise UsageError(
                    f"size: expected a multiple of {factor} pixels, got {size}; {self.image_size} is usual"
                )
            h = w = size // factor
        return sampling.noise((c, h, w), seeds, rng).to(self.device)

    def timesteps(self, steps: int) -> Shaped[Tensor, "steps"]:
        """The noise levels of a `steps`-step DDIM sampler, from noisy to clean; not whole numbers for a shifted rectified flow.

        Raises:
            UsageError: more steps than the model has levels.
        """
        walker = sampling.scheduler(self.family, self.pipeline, "ddim")
        return sampling.timesteps(self, walker, steps, self.latent_shape[1:]).to(self.device)

    @torch.no_grad()
    def sample(
        self,
        cond: Cond,
        *,
        seeds: Sequence[int],
        steps: int = 25,
        guidance: sampling.Guidance = 3.0,
        until: int | None = None,
        record: bool = False,
        sampler: str = "ddim",
        negative: str = "",
        rng: str = "cpu",
        tick: Callable[[int], object] = lambda n: None,
        latents: Float[Tensor, "b c h w"] | None = None,
        start: sampling.Start | None = None,
        later: tuple[int, Cond] | None = None,
        negative_rows: Cond | None = None,
    ) -> Float[Tensor, "b c h w"] | Float[Tensor, "s b c h w"]:
        """Sample latents deterministically (DDIM with η = 0) with classifier-free guidance, one for each seed.

        Args:
            cond: one prompt for all seeds, or one for each.
            seeds: seeds of the initial noise, one for each picture.
            steps: number of sampler steps.
            guidance: scale s in e(∅) + s (e(c) - e(∅)), one for all or one for each; 1 for all skips guidance, except for `steers`.
                A model with distilled guidance reads it as an input instead.
            until: stop before this step: the latent there has noise level `timesteps(steps)[until]`; None runs to the end.
            record: return the whole trajectory instead of the last latent: (until + 1 or steps + 1, b, c, h, w), initial noise first.
            sampler: one of the family's samplers: ddim, pndm, lms, euler, dpm++; ddim, euler and heun for a rectified flow.
            negative: negative prompt, which replaces ∅.
            rng: device of the generator of the initial noise.
            tick: called with the number of pictures that finished a step.
            latents: initial noise instead of that of the seeds, one for each seed.
            start: pictures to start from instead of noise, one for each seed.
            later: a step and the prompts, one or as many as seeds, that are read from that step on.
            negative_rows: the encoded negative prompt, in place of `negative`.

        Raises:
            UsageError: unknown sampler, more steps than the model has levels, a guidance that is not finite or not as many as seeds,
                a negative prompt for a model with distilled guidance, no such device for the noise,
                latents of another shape or number, or a start beyond the last step.
        """
        how = sampling.Walk(
            steps, guidance, until, record, sampler, negative, rng, latents, start, later, negative_rows
        )
        return sampling.sample(self, cond, seeds, how, tick)

    def images(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int = 25,
        guidance: sampling.Guidance = 3.0,
        sampler: str = "ddim",
        negative: str = "",
        rng: str = "cpu",
        size: int | None = None,
        tick: Callable[[int], object] = lambda n: None,
    ) -> list[UInt8[np.ndarray, "H W 3"]]:
        """One picture for each (prompt, seed), as uint8 arrays (H W 3), of `size` pixels; other arguments as in `sample`.

        Raises:
            EffaceError: a picture is not finite.
        """
        return self.pictures(
            self.sample(
                self.embed(prompts), seeds=seeds, steps=steps, guidance=guidance, sampler=sampler, negative=negative, rng=rng, tick=tick,
                latents=None if size is None else self.noise(seeds, rng, size),
            )
        )  # fmt: skip

    def pictures(self, latents: Float[Tensor, "b c h w"]) -> list[UInt8[np.ndarray, "H W 3"]]:
        """Latents as pictures, as uint8 arrays (H W 3).

        Raises:
            EffaceError: a picture is not finite.
        """
        pictures = self._decoded(latents)  # not clamped: an infinite one would become white
        finite = latents.isfinite().flatten(1).all(1) & pictures.isfinite().flatten(1).all(1)
        if broken := int((~finite).sum()):
            raise EffaceError(
                f"images: {broken} of {len(pictures)} pictures came out as NaN or infinite; the edit is too strong, "
                "or the dtype too narrow: fit or apply it weaker, or load the model in float32"
            )
        return list((pictures.clamp(0, 1).permute(0, 2, 3, 1).cpu() * 255).round().to(torch.uint8).numpy())

    # -- weights ---------------------------------------------------------------------------------------------------

    def modules(self) -> dict[str, nn.Module]:
        """Networks that an edit can change, by our prefix: {"unet": …, "text": …} for Stable Diffusion 1 and 2."""
        return self.family.modules(self.pipeline)

    def text_readers(self) -> dict[str, nn.Linear]:
        """Every layer that reads token embeddings, by name: "unet.….attn2.to_k", "transformer.context_embedder"."""
        return self.family.text_readers(self.pipeline)

    def reader_weights(self) -> dict[str, Tensor]:
        """The weights of every layer that reads token embeddings, by name."""
        return {f"{name}.weight": layer.weight for name, layer in self.text_readers().items()}

    def pooled_weights(self) -> dict[str, Tensor]:
        """The weights of every layer that reads a prompt's pooled vector, by name; none in Stable Diffusion 1 and 2."""
        return {f"{name}.weight": layer.weight for name, layer in self.family.pooled_readers(self.pipeline).items()}

    def cross_attentions(self) -> dict[str, CrossAttention]:
        """Every cross-attention, by name ("unet.….attn2"); none in a multimodal transformer."""
        return self.family.cross_attentions(self.pipeline)

    def transformers(self) -> dict[str, nn.Module]:
        """The transformers in which text and picture meet, by name."""
        return self.family.transformers(self.pipeline)

    def parts(self) -> dict[str, nn.Module]:
        """All networks of the pipeline: those that an edit can change, and the autoencoder."""
        return {**self.modules(), "vae": self.pipeline.vae}

    def params(self, where: str | Iterable[str] = "denoiser") -> dict[str, Tensor]:
        """Named weights: a selection such as "xattn.kv", or exact names.

        Raises:
            UsageError: unknown selection or name.
        """
        owned = {
            f"{ours}.{name}": (p, module) for ours, part in self.modules().items() for name, p, module in _owned(part)
        }
        if isinstance(where, str):
            if where not in self.family.selections:
                raise UsageError(f"selection: unknown {where!r}; {nearest(where, self.family.selections)}")
            rule = self.family.selections[where]
            return {name: p for name, (p, module) in owned.items() if rule(name, module)}
        if missing := [name for name in where if name not in owned]:
            raise UsageError(
                f"weights: this model has no {missing[0]!r} ({len(missing)} such); the edit was made for another model"
            )
        return {name: owned[name][0] for name in where}

    def fork(self, where: str | Iterable[str]) -> "Denoiser":
        """A copy of this denoiser that owns the weights `where` and shares every other tensor with this one."""
        owned = {id(p) for p in self.params(where).values()}
        twin = copy.copy(self)
        with warnings.catch_warnings():  # diffusers warns when a component is assigned to a copied pipeline
            warnings.simplefilter("ignore")
            twin.pipeline = copy.copy(self.pipeline)
            for part in self.family.parts.values():
                if (module := getattr(self.pipeline, part, None)) is None:
                    continue
                tensors = [*module.parameters(), *module.buffers()]
                memo = {id(p): p for p in tensors if id(p) not in owned}
                if len(memo) < len(tensors):
                    setattr(twin.pipeline, part, copy.deepcopy(module, memo))
        return twin

    @property
    def fingerprint(self) -> str:
        """Identifies the model in a store: 16 hex digits of a hash over everything that can change a picture, edits included."""
        added = [repr(steer) for steer in self.steers] + [one.fingerprint for one in (*self.branches, *self.keys)]
        found = [getattr(self.pipeline, name) for name in self.family.tokenizers]
        tokenizers = [identity.tokenizer(one) for one in found if one is not None]
        facts = [identity.configuration(self.pipeline.scheduler.config), tokenizers, added]
        return identity.fingerprint(self.parts(), facts)

    @property
    def signature(self) -> Signature:
        """Signature of the weights that an edit can change: decides whether an edit fits this model."""
        return identity.signature(self.modules())


def _owned(part: nn.Module) -> Iterable[tuple[str, Tensor, nn.Module]]:
    for prefix, module in part.named_modules():
        for name, p in module.named_parameters(recurse=False):
            yield f"{prefix}.{name}" if prefix else name, p, module


def load(
    model: "str | Path | DiffusionPipeline | Denoiser" = "moji",
    *,
    device: str = "cpu",
    dtype: str | torch.dtype = "float32",
    variant: str | None = None,
) -> Denoiser:
    """Load a denoiser from "moji", a diffusers folder, a Hub id, or a pipeline in memory.

    Args:
        model: what to load; a denoiser or a pipeline is used as it is.
        device: device of the weights.
        dtype: dtype of the weights: float32, bfloat16 or float16.
        variant: of the weight files, "fp16" for "….fp16.safetensors"; None takes the plain ones, or the only one a folder has, and
            says so in `Denoiser.note`.

    Raises:
        UsageError: no such model or dtype, or not a text-to-image pipeline.
        EffaceError: the folder or the Hub's answer is damaged.
    """
    if isinstance(model, Denoiser):
        return model
    if isinstance(model, DiffusionPipeline):
        return Denoiser(model)
    kind = DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if kind is None or not kind.is_floating_point:
        raise UsageError(f"dtype: expected float32, bfloat16 or float16, got {str(dtype)!r}; give one of them")
    _usable(device)
    source, note = resolve(str(model)), ""
    if variant is None and (variant := _only_variant(Path(source))):
        note = f"model {str(model)!r}: the folder has only {variant} weights; they were loaded as {str(kind).removeprefix('torch.')}"
    try:
        pipe = DiffusionPipeline.from_pretrained(
            source, dtype=kind, use_safetensors=True, variant=variant, **absent(source)
        )
    except Exception as error:  # diffusers raises a dozen kinds; each becomes one sentence
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        what = (
            "diffusers cannot load it"
            if Path(source).is_dir()
            else "no such folder, and diffusers cannot get it from the Hub"
        )
        raise EffaceError(
            f"model {str(model)!r}: {what} ({first}); give 'moji', a diffusers folder or a Hub id"
        ) from error
    loaded = Denoiser(pipe.to(device))
    loaded.note = note
    if Path(source).is_dir():
        identity.remember(Path(source), kind, loaded.parts())
    return loaded


def _usable(device: str) -> None:
    """Refuse a device on which nothing can be computed.

    Raises:
        UsageError: no such device.
    """
    try:
        torch.ones(1, device=device).item()
        if torch.device(device).type == "cpu" and torch.device(device).index:  # torch takes any number
            raise ValueError("there is one cpu")
    except Exception as error:  # torch raises half a dozen kinds, some of other packages
        first = (str(error).splitlines() or [""])[0]
        raise UsageError(f"device: cannot use {device!r} ({first}); give cpu, or see `efface doctor`") from error


def stored_as(folder: Path, variant: str | None = None) -> tuple[str, str | None]:
    """The dtype of the largest weight file that `load` takes from a diffusers folder, as `load` names it, and its variant."""
    variant = variant or _only_variant(folder)
    mine = [p for p in folder.rglob("*.safetensors") if (m := WEIGHTS.fullmatch(p.name)) and m[1] == variant]
    files = sorted(mine, key=lambda p: p.stat().st_size)
    names = {"F16": "float16", "BF16": "bfloat16"}
    if not files:
        return "float32", variant
    with safe_open(files[-1], "pt") as f:
        found = {str(f.get_slice(name).get_dtype()) for name in f.keys()}  # noqa: SIM118
    (kind, *several) = found or {"F32"}
    return "float32" if several else names.get(kind, "float32"), variant


def _only_variant(folder: Path) -> str | None:
    """The variant of the weight files in a diffusers folder where some part has no plain ones; None where all have, or for a Hub id."""
    names = {part: [p.name for p in part.glob("*.safetensors")] for part in folder.glob("*/") if part.is_dir()}
    for files in names.values():
        found = [WEIGHTS.fullmatch(name) for name in files]
        variants = sorted({m[1] for m in found if m and m[1]})
        if variants and not any(m and not m[1] for m in found):
            return variants[0]
    return None
