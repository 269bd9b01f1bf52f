"""Stable Diffusion 3 and 3.5: an MM-DiT that reads two CLIP text encoders side by side, and T5 where it is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusion3Pipeline
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import override  # in typing from Python 3.12

from efface.core.cond import Cond, Tokens
from efface.core.families.clip import clip_batch, clip_tokens, clip_vectors, clip_words, projected, second
from efface.core.families.mmdit import MultimodalTransformer
from efface.core.families.t5 import t5_batch, t5_rows, t5_tokens

LENGTH = 256  # positions of T5, the pipeline's default


class StableDiffusion3(MultimodalTransformer):
    """Stable Diffusion 3 and 3.5.

    Without T5 the pipeline gives rows of zeros in its place; here as many as CLIP has positions, with which the model was trained
    (`max_sequence_length=77` in the pipeline's own call).
    """

    name: ClassVar = "Stable Diffusion 3"
    pipelines: ClassVar = (StableDiffusion3Pipeline,)
    parts: ClassVar[Mapping[str, str]] = {
        "transformer": "transformer", "text": "text_encoder", "text2": "text_encoder_2", "t5": "text_encoder_3",
    }  # fmt: skip
    tokenizers: ClassVar = ("tokenizer", "tokenizer_2", "tokenizer_3")
    optional: ClassVar = frozenset({"text_encoder_3", "tokenizer_3"})

    @override
    def tokenize(self, pipe: Any, prompts: Sequence[str]) -> Tokens:
        tokens = clip_tokens(pipe.tokenizer, pipe.text_encoder, prompts)
        if pipe.text_encoder_3 is None:
            return tokens
        return replace(tokens, more=t5_tokens(pipe.tokenizer_3, pipe.text_encoder_3, prompts, LENGTH))

    @override
    def encode_tokens(self, pipe: Any, tokens: Tokens, vectors: Float[Tensor, "b n e"] | None = None) -> Cond:
        encoders, third = (pipe.text_encoder, pipe.text_encoder_2), None
        parts = [None, None] if vectors is None else vectors.split([e.config.hidden_size for e in encoders], 2)
        one, first = projected(encoders[0], tokens.ids, parts[0])
        two, pooled = second(encoders[1], pipe.tokenizer_2, tokens, parts[1])
        rows = torch.cat([one, two], 2)
        rows = pad(rows, (0, pipe.transformer.config.joint_attention_dim - rows.shape[2]))
        if pipe.text_encoder_3 is not None:
            # words that a search put together T5 reads as text
            more = tokens.more or t5_tokens(pipe.tokenizer_3, pipe.text_encoder_3, self.spelled(pipe, tokens), LENGTH)
            third = t5_rows(pipe.text_encoder_3, more)
        return Cond(rows, tokens.ids, tokens.mask, tokens.words, torch.cat([first, pooled], 1), third)

    def spelled(self, pipe: Any, tokens: Tokens) -> list[str]:
        """The prompts as text."""
        return [self.spell(pipe, ids[inside].tolist()) for ids, inside in zip(tokens.ids, tokens.words, strict=True)]

    @override
    def word_vectors(self, pipe: Any) -> Float[Tensor, "v e"]:
        return clip_vectors((pipe.text_encoder, pipe.text_encoder_2))

    @override
    def spell(self, pipe: Any, ids: Sequence[int]) -> str:
        return pipe.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    @override
    def prompt_batch(self, pipe: Any) -> int:
        most = clip_batch([pipe.text_encoder, pipe.text_encoder_2])
        return most if pipe.text_encoder_3 is None else min(most, t5_batch(pipe.text_encoder_3, LENGTH))

    @override
    def common_words(self, pipe: Any, n: int) -> list[str]:
        return clip_words(pipe.tokenizer, n)

    @override
    def predict(
        self,
        pipe: Any,
        x: Float[Tensor, "b c h w"],
        t: Shaped[Tensor, "b"],
        cond: Cond,
        reads: Bool[Tensor, "b n"] | None,
        scale: float | Tensor | None = None,
    ) -> Float[Tensor, "b c h w"]:
        net = pipe.transformer
        more = cond.tokens.new_zeros(len(x), pipe.tokenizer_max_length, cond.tokens.shape[2])
        rows = torch.cat([cond.tokens, more if cond.more is None else cond.more.tokens], 1)
        text, pooled = (v.to(net.dtype) for v in (rows, cond.vector))
        return net(x.to(net.dtype), text, pooled, t, return_dict=False)[0].to(x.dtype)

    @override
    def latent_shape(self, pipe: Any) -> tuple[int, int, int]:
        config = pipe.transformer.config
        return config.in_channels, config.sample_size, config.sample_size

    @override
    def set_timesteps(self, pipe: Any, scheduler: Any, steps: int, latents: tuple[int, int]) -> None:
        places = latents[0] * latents[1] // pipe.transformer.config.patch_size**2
        scheduler.set_timesteps(steps, **shifted(scheduler.config, places))

    @override
    def architecture(self, pipe: Any) -> str:
        return f"stable-diffusion-v{'3-5' if pipe.transformer.config.qk_norm else '3'}"


def shifted(config: Any, places: int) -> dict[str, float]:
    """The argument that a scheduler with a shift by resolution needs: linear in the number of picture tokens."""
    if not config.get("use_dynamic_shifting"):
        return {}
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    least, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return {"mu": least + (places - low) * (most - least) / (high - low)}
