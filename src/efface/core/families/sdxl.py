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

SINGLE = {  # diffusers' name -> that of the original code, which kohya's tools train
    "conv_in": "input_blocks.0.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
RESNET = {
    "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip


def original(module: str) -> str:
    """A module's name in the original code (Stability's generative-models): blocks are numbered through."""
    if module in SINGLE:
        return SINGLE[module]
    side, _, rest = module.partition(".")
    if side == "mid_block":
        kind, i, inner = rest.split(".", 2)
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(i)}.{RESNET.get(inner, inner)}"
    block, kind, i, inner = rest.split(".", 3)
    n, k = 3 * int(block), {"resnets": 0, "attentions": 1}.get(kind)
    if side == "down_blocks":
        return (
            f"input_blocks.{n + 3}.0.op"
            if k is None
            else f"input_blocks.{n + 1 + int(i)}.{k}.{RESNET.get(inner, inner)}"
        )
    return (
        f"output_blocks.{n + 2}.2.conv" if k is None else f"output_blocks.{n + int(i)}.{k}.{RESNET.get(inner, inner)}"
    )


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
    def other_names(self, module: str) -> tuple[str, ...]:
        return (original(module),)

    @override
    def architecture(self, pipe: Any) -> str:
        return "stable-diffusion-xl-v1-base"
