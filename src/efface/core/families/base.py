"""The contract of a family of text-to-image models: everything in which families differ, and nothing else."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention_processor import Attention
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from efface.core.cond import Cond
from efface.core.schedule import Schedule

Rule = Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class CrossAttention:
    """A layer in which places of a picture attend to text rows, and the norm its queries come from."""

    layer: Attention
    norm: nn.LayerNorm


class Family(ABC):
    """What a `Denoiser` asks about its pipeline. It has no state: each method gets the pipeline, so that copies share it.

    Parts have our names ("unet", "text"), weights and modules begin with them ("unet.….attn2.to_k.weight").
    """

    name: ClassVar[str]  # as people call it
    pipelines: ClassVar[tuple[type[DiffusionPipeline], ...]]  # diffusers' classes
    parts: ClassVar[Mapping[str, str]]  # what an edit can touch: our name -> the pipeline's component
    denoiser: ClassVar[str]  # the part that predicts
    tokenizers: ClassVar[tuple[str, ...]]  # components that read words
    selections: ClassVar[Mapping[str, Rule]]  # by parameter name and the module that owns the parameter
    samplers: ClassVar[Mapping[str, tuple[str, Mapping[str, Any]]]]  # our name -> diffusers' class and its settings
    kohya: ClassVar[Mapping[str, str]]  # LoRA names elsewhere: our part -> kohya's prefix

    # -- words -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def embed(self, pipe: Any, prompts: Sequence[str]) -> Cond:
        """One batch of prompts as the pipeline itself encodes them, with words, end and padding told apart."""

    @abstractmethod
    def prompt_batch(self, pipe: Any) -> int:
        """Prompts that pass the text encoder at once."""

    @abstractmethod
    def common_words(self, pipe: Any, n: int) -> list[str]:
        """The tokenizer's `n` most frequent words of at least three letters; fewer where it has fewer."""

    # -- where text enters -----------------------------------------------------------------------------------------

    @abstractmethod
    def text_readers(self, pipe: Any) -> dict[str, nn.Linear]:
        """Every layer that reads text rows, by name: a linear map T of the rows is W' = W T of each of them."""

    @abstractmethod
    def cross_attentions(self, pipe: Any) -> dict[str, CrossAttention]:
        """Every cross-attention, by name."""

    @abstractmethod
    def transformers(self, pipe: Any) -> dict[str, nn.Module]:
        """The denoiser's transformers, in which pictures meet text, by name."""

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
        """The native output; `reads` says which rows each prompt attends to, None all."""

    @abstractmethod
    def schedule(self, pipe: Any) -> Schedule:
        """The noise levels and the kind of prediction.

        Raises:
            UsageError: a kind this family has not.
        """

    @abstractmethod
    def latent_shape(self, pipe: Any) -> tuple[int, int, int]:
        """Channels, height and width of one latent.

        Raises:
            UsageError: no part of the pipeline says the size.
        """

    @abstractmethod
    def encode(self, pipe: Any, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """Images in [0, 1] as latents of the scale the denoiser sees (the mean of the posterior)."""

    @abstractmethod
    def decode(self, pipe: Any, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Latents as images around [0, 1], not clamped."""

    @abstractmethod
    def architecture(self, pipe: Any) -> str:
        """The name of its architecture in ModelSpec (https://github.com/Stability-AI/ModelSpec)."""

    # -- the same for all ------------------------------------------------------------------------------------------

    def modules(self, pipe: Any) -> dict[str, nn.Module]:
        """What an edit can touch, by our name."""
        return {ours: getattr(pipe, component) for ours, component in self.parts.items()}

    def device(self, pipe: Any) -> torch.device:
        """Where the denoiser lives."""
        return getattr(pipe, self.parts[self.denoiser]).device

    def dtype(self, pipe: Any) -> torch.dtype:
        """What the denoiser computes in."""
        return getattr(pipe, self.parts[self.denoiser]).dtype
