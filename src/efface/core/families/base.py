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
    tokenizers: ClassVar[tuple[str, ...]]  # the pipeline's tokenizer components
    selections: ClassVar[Mapping[str, Rule]]  # by parameter name and the module that owns the parameter
    samplers: ClassVar[Mapping[str, tuple[str, Mapping[str, Any]]]]  # our name -> diffusers' class and its settings
    kohya: ClassVar[Mapping[str, str]]  # names in kohya's LoRA files: our part -> its prefix

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

    @abstractmethod
    def cross_attentions(self, pipe: Any) -> dict[str, CrossAttention]:
        """Every cross-attention, by name."""

    @abstractmethod
    def transformers(self, pipe: Any) -> dict[str, nn.Module]:
        """The denoiser's transformers with cross-attention, by name."""

    # -- predictions and pictures ----------------------------------------------------------------------------------

    @abstractmethod
    def predict(
        self,
        pipe: Any,
        x: Float[Tensor, "b c h w"],
        t: Shaped[Tensor, "b"],
        cond: Cond,
        reads: Bool[Tensor, "b n"] | None,
    ) -> Float[Tensor, "b c h w"]:
        """The native output; `reads` is true at the positions that each prompt attends to, None means all."""

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
    def encode(self, pipe: Any, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """Images in [0, 1] as scaled latents (the mean of the posterior)."""

    @abstractmethod
    def decode(self, pipe: Any, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Scaled latents as images in [0, 1], not clamped."""

    @abstractmethod
    def architecture(self, pipe: Any) -> str:
        """The architecture's name in ModelSpec (https://github.com/Stability-AI/ModelSpec)."""

    # -- the same for all ------------------------------------------------------------------------------------------

    def modules(self, pipe: Any) -> dict[str, nn.Module]:
        """Networks that an edit can change, by our name."""
        return {ours: getattr(pipe, component) for ours, component in self.parts.items()}

    def device(self, pipe: Any) -> torch.device:
        """Device of the denoiser."""
        return getattr(pipe, self.parts[self.denoiser]).device

    def dtype(self, pipe: Any) -> torch.dtype:
        """Dtype of the denoiser."""
        return getattr(pipe, self.parts[self.denoiser]).dtype
