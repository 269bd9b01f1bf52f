"""Stable Diffusion XL: two CLIP text encoders side by side, a pooled vector and picture sizes as further inputs of the U-Net."""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionXLPipeline
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from typing_extensions import override  # in typing from Python 3.12

from efface.core.cond import Cond, Tokens
from efface.core.families.clip import clip_batch, clip_vectors, penultimate, second, unconditional
from efface.core.families.sd import StableDiffusion


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL.

    "" is zeros where the pipeline's configuration says so (`force_zeros_for_empty_prompt`), as the pipeline's own unconditional prompt.
    """

    name: ClassVar = "Stable Diffusion XL"
    pipelines: ClassVar = (StableDiffusionXLPipeline,)
    parts: ClassVar[Mapping[str, str]] = {"unet": "unet", "text": "text_encoder", "text2": "text_encoder_2"}
    tokenizers: ClassVar = ("tokenizer", "tokenizer_2")
    kohya: ClassVar[Mapping[str, str]] = {"unet": "lora_unet", "text": "lora_te1", "text2": "lora_te2"}

    @override
    def encode_tokens(self, pipe: Any, tokens: Tokens, vectors: Float[Tensor, "b n e"] | None = None) -> Cond:
        encoders = (pipe.text_encoder, pipe.text_encoder_2)
        parts = [None, None] if vectors is None else vectors.split([e.config.hidden_size for e in encoders], 2)
        one, _ = penultimate(encoders[0], tokens.ids, parts[0])
        two, pooled = second(encoders[1], pipe.tokenizer_2, tokens, parts[1])
        rows = torch.cat([one, two], 2)
        if pipe.config.force_zeros_for_empty_prompt:
            said = ~unconditional(tokens.words)
            rows, pooled = rows * said[:, None, None], pooled * said[:, None]
        return Cond(rows, tokens.ids, tokens.mask, tokens.words, pooled)

    @override
    def word_vectors(self, pipe: Any) -> Float[Tensor, "v e"]:
        return clip_vectors((pipe.text_encoder, pipe.text_encoder_2))

    @override
    def prompt_batch(self, pipe: Any) -> int:
        return clip_batch([pipe.text_encoder, pipe.text_encoder_2])

    @override
    def pooled_readers(self, pipe: Any) -> dict[str, nn.Linear]:
        return {"unet.add_embedding.linear_1": pipe.unet.add_embedding.linear_1}

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
        unet, (height, width) = pipe.unet, (n * pipe.vae_scale_factor for n in x.shape[2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=unet.dtype, device=x.device)
        rows, pooled = (v.to(unet.dtype) for v in (cond.tokens, cond.vector))
        added = {"text_embeds": pooled, "time_ids": sizes.expand(len(x), 6)}
        out = unet(
            x.to(unet.dtype), t, encoder_hidden_states=rows, encoder_attention_mask=reads, added_cond_kwargs=added
        ).sample
        return out.to(x.dtype)

    @override
    def decode(self, pipe: Any, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        if (
            pipe.vae.dtype == torch.float16 and pipe.vae.config.force_upcast
        ):  # its activations leave the range of float16
            pipe = copy.copy(pipe)
            pipe.vae = copy.deepcopy(pipe.vae).float()
        return super().decode(pipe, latents)

    @override
    def kohya_module(self, module: str) -> str:
        return {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}.get(
            module, module
        )

    @override
    def architecture(self, pipe: Any) -> str:
        return "stable-diffusion-xl-v1-base"
