"""The interface of a model family: everything that differs between families of text-to-image models, and nothing else."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention_processor import Attention
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from efface.core.cond import Cond, Tokens
from efface.core.schedule import Schedule

Rule = Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class CrossAttention:
    """A cross-attention layer, from picture positions to token embeddings, and the norm before its queries."""

    layer: Attention
    norm: nn.LayerNorm


class Family(ABC):
    """The functions through which a `Denoiser` uses its pipeline. It has no state: each method takes the pipeline, so copies share it.

    Parts have our names ("unet", "text"), which prefix the names of weights and modules ("unet.….attn2.to_k.weight").
    """

    name: ClassVar[str]  # for people
    pipelines: ClassVar[tuple[type[DiffusionPipeline], ...]]  # diffusers' classes
    parts: ClassVar[Mapping[str, str]]  # networks that an edit can change: our name -> the pipeline's component
    denoiser: ClassVar[str]  # the part that predicts
    tokenizers: ClassVar[tuple[str, ...]]  # the pipeline's tokenizer components, that of `word_vectors` first
    optional: ClassVar[frozenset[str]] = frozenset()  # components of these that a pipeline may lack
    selections: ClassVar[Mapping[str, Rule]]  # by parameter name and the module that owns the parameter
    samplers: ClassVar[Mapping[str, tuple[str, Mapping[str, Any]]]]  # our name -> diffusers' class and its settings
    kohya: ClassVar[
        Mapping[str, str]
    ]  # names in kohya's LoRA files: our part -> its prefix; none if it is not written for the family
    masks: ClassVar[bool] = True  # whether `predict` takes `reads`

    # -- words -----------------------------------------------------------------------------------------------------

    def embed(self, pipe: Any, prompts: Sequence[str]) -> Cond:
        """One batch of prompts, encoded as the pipeline does, with masks for the prompt's tokens, the end and the padding."""
        return self.encode_tokens(pipe, self.tokenize(pipe, prompts))

    @abstractmethod
    def tokenize(self, pipe: Any, prompts: Sequence[str]) -> Tokens:
        """One batch of prompts as token ids, padded and truncated as the pipeline does."""

    @abstractmethod
    def encode_tokens(self, pipe: Any, tokens: Tokens, vectors: Float[Tensor, "b n e"] | None = None) -> Cond:
        """One batch of tokens through the text encoder; `vectors` replace the tokens' word vectors."""

    @abstractmethod
    def word_vectors(self, pipe: Any) -> Float[Tensor, "v e"]:
        """The text encoder's word vectors, one for each token id."""

    @abstractmethod
    def spell(self, pipe: Any, ids: Sequence[int]) -> str:
        """Token ids as text, without start, end and padding."""

    @abstractmethod
    def prompt_batch(self, pipe: Any) -> int:
        """Maximum batch of prompts for the text encoder."""

    @abstractmethod
    def common_words(self, pipe: Any, n: int) -> list[str]:
        """The tokenizer's `n` most frequent words of at least three letters; fewer if it has fewer."""

    # -- where text enters -----------------------------------------------------------------------------------------

    @abstractmethod
    def text_readers(self, pipe: Any) -> dict[str, nn.Linear]:
        """Every layer that reads token embeddings, by name: a linear map T of the embeddings is W' = W T in each of them."""

    def pooled_readers(self, pipe: Any) -> dict[str, nn.Linear]:
        """Every layer that reads a prompt's pooled vector, by name; the vector comes first where a layer reads more."""
        return {}

    @abstractmethod
    def cross_attentions(self, pipe: Any) -> dict[str, CrossAttention]:
        """Every cross-attention, by name; none where text and picture share one attention."""

    @abstractmethod
    def transformers(self, pipe: Any) -> dict[str, nn.Module]:
        """The denoiser's transformers in which text and picture meet, by name."""

    # -- predictions and pictures ----------------------------------------------------------------------------------

    @abstractmethod
    def predict(
        self,
        pipe: Any,
        x: Float[Tensor, "b c h w"],
        t: Shaped[Tensor, "b"],
        cond: Cond,
        reads: Bool[Tensor, "b n"] | None,
        scale: float | Tensor | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """The native output; `reads` is true at the positions that each prompt attends to, None means all.

        `scale` is the guidance scale, which a model with distilled guidance reads as an input; others ignore it.
        """

    def distilled(self, pipe: Any) -> bool:
        """Whether the model reads the guidance scale as an input, so that one pass is a guided prediction."""
        return False

    def set_timesteps(self, pipe: Any, scheduler: Any, steps: int, latents: tuple[int, int]) -> None:
        """Set a scheduler to `steps` steps as the pipeline does, for latents of this height and width."""
        scheduler.set_timesteps(steps)

    @abstractmethod
    def schedule(self, pipe: Any) -> Schedule:
        """The noise levels and the prediction type.

        Raises:
            UsageError: a prediction type that this family does not have.
        """

    @abstractmethod
    def latent_shape(self, pipe: Any) -> tuple[int, int, int]:
        """Channels, height and width of one latent.

        Raises:
            UsageError: no configuration of the pipeline has the size.
        """

    @abstractmethod
    def architecture(self, pipe: Any) -> str:
        """The architecture's name in ModelSpec (https://github.com/Stability-AI/ModelSpec)."""

    def kohya_module(self, module: str) -> str:
        """A module's name in kohya's LoRA files, where it has another there."""
        return module

    def other_names(self, module: str) -> tuple[str, ...]:
        """Other names of one of the denoiser's modules in LoRA files."""
        return ()

    # -- the same for all ------------------------------------------------------------------------------------------

    def encode(self, pipe: Any, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """Images in [0, 1] as scaled latents (the mean of the posterior)."""
        vae = pipe.vae
        out = vae.encode((2 * images - 1).to(vae.dtype))
        latents = (
            out.latent_dist.mean if hasattr(out, "latent_dist") else out.latents
        )  # a tiny autoencoder has no posterior
        shift, scale = self._normalisation(vae, latents.device)
        return (latents.float() - shift) * scale

    def decode(self, pipe: Any, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Scaled latents as images in [0, 1], not clamped."""
        vae = pipe.vae
        shift, scale = self._normalisation(vae, latents.device)
        return vae.decode((latents / scale + shift).to(vae.dtype)).sample.float() / 2 + 0.5

    def _normalisation(self, vae: Any, device: torch.device) -> tuple[float | Tensor, float | Tensor]:
        """Shift and scale of the autoencoder's latents, by channel where its configuration has statistics."""
        config = vae.config
        mean, std = (getattr(config, f"latents_{name}", None) for name in ("mean", "std"))
        if mean is None or std is None:
            return getattr(config, "shift_factor", None) or 0.0, config.scaling_factor
        mean, std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (mean, std))
        return mean, config.scaling_factor / std

    def modules(self, pipe: Any) -> dict[str, nn.Module]:
        """Networks that an edit can change, by our name."""
        found = {ours: getattr(pipe, component, None) for ours, component in self.parts.items()}
        return {ours: part for ours, part in found.items() if part is not None}

    def device(self, pipe: Any) -> torch.device:
        """Device of the denoiser."""
        return getattr(pipe, self.parts[self.denoiser]).device

    def dtype(self, pipe: Any) -> torch.dtype:
        """Dtype of the denoiser."""
        return getattr(pipe, self.parts[self.denoiser]).dtype
