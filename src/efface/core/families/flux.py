"""Flux: an MM-DiT that reads T5 and CLIP's pooled vector; latents in packs of four; in Flux.1 dev, guidance as an input."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import FluxPipeline
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from typing_extensions import override  # in typing from Python 3.12

from efface.core.cond import Cond, Tokens
from efface.core.families.clip import clip_batch, clip_tokens
from efface.core.families.mmdit import MultimodalTransformer
from efface.core.families.sd3 import shifted
from efface.core.families.t5 import t5_batch, t5_rows, t5_tokens, t5_words

LENGTH = 512  # positions of T5, the pipeline's default
GUIDANCE = 3.5  # of a prediction for which no scale is given: what Flux.1 dev is used with


class Flux(MultimodalTransformer):
    """Flux.1 dev, whose guidance is distilled into the model, and Flux.1 schnell, which has none."""

    name: ClassVar = "Flux"
    pipelines: ClassVar = (FluxPipeline,)
    parts: ClassVar[Mapping[str, str]] = {"transformer": "transformer", "text": "text_encoder", "t5": "text_encoder_2"}
    tokenizers: ClassVar = ("tokenizer_2", "tokenizer")

    @override
    def tokenize(self, pipe: Any, prompts: Sequence[str]) -> Tokens:
        words = t5_tokens(pipe.tokenizer_2, pipe.text_encoder_2, prompts, LENGTH)
        return replace(words, more=clip_tokens(pipe.tokenizer, pipe.text_encoder, prompts))

    @override
    def encode_tokens(self, pipe: Any, tokens: Tokens, vectors: Float[Tensor, "b n e"] | None = None) -> Cond:
        more = tokens.more
        if more is None:  # words that a search put together: CLIP reads them as text
            texts = [
                self.spell(pipe, ids[inside].tolist()) for ids, inside in zip(tokens.ids, tokens.words, strict=True)
            ]
            more = clip_tokens(pipe.tokenizer, pipe.text_encoder, texts)
        pooled = pipe.text_encoder(more.ids).pooler_output
        return replace(t5_rows(pipe.text_encoder_2, tokens, vectors), pooled=pooled)

    @override
    def word_vectors(self, pipe: Any) -> Float[Tensor, "v e"]:
        return pipe.text_encoder_2.get_input_embeddings().weight

    @override
    def spell(self, pipe: Any, ids: Sequence[int]) -> str:
        return pipe.tokenizer_2.decode(list(ids), skip_special_tokens=True).strip()

    @override
    def prompt_batch(self, pipe: Any) -> int:
        return min(clip_batch([pipe.text_encoder]), t5_batch(pipe.text_encoder_2, LENGTH))

    @override
    def common_words(self, pipe: Any, n: int) -> list[str]:
        return t5_words(pipe.tokenizer_2, n)

    @override
    def distilled(self, pipe: Any) -> bool:
        return bool(pipe.transformer.config.guidance_embeds)

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
        net, rows, (_, c, h, w) = pipe.transformer, cond.tokens, x.shape
        guidance = None
        if net.config.guidance_embeds:
            given = torch.as_tensor(GUIDANCE if scale is None else scale, dtype=torch.float32, device=x.device)
            guidance = given.flatten().expand(len(x))
        places = pipe._prepare_latent_image_ids(len(x), h // 2, w // 2, x.device, net.dtype)
        out = net(
            hidden_states=pipe._pack_latents(x.to(net.dtype), len(x), c, h, w), encoder_hidden_states=rows.to(net.dtype),
            pooled_projections=cond.vector.to(net.dtype), timestep=(t / 1000).to(net.dtype), guidance=guidance,
            img_ids=places, txt_ids=torch.zeros(rows.shape[1], 3, device=x.device, dtype=net.dtype), return_dict=False,
        )[0]  # fmt: skip
        size = (h * pipe.vae_scale_factor, w * pipe.vae_scale_factor)
        return pipe._unpack_latents(out, *size, pipe.vae_scale_factor).to(x.dtype)

    @override
    def latent_shape(self, pipe: Any) -> tuple[int, int, int]:
        return pipe.transformer.config.in_channels // 4, pipe.default_sample_size, pipe.default_sample_size

    @override
    def set_timesteps(self, pipe: Any, scheduler: Any, steps: int, latents: tuple[int, int]) -> None:
        mu = shifted(scheduler.config, latents[0] * latents[1] // 4)
        scheduler.set_timesteps(steps, sigmas=list(np.linspace(1.0, 1 / steps, steps)), **mu)

    @override
    def architecture(self, pipe: Any) -> str:
        return "flux-1-dev" if self.distilled(pipe) else "flux-1-schnell"
