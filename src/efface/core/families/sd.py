"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a U-Net with cross-attention, a KL autoencoder."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

from diffusers import DDIMScheduler, StableDiffusionPipeline, Transformer2DModel
from diffusers.models.attention_processor import Attention
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from typing_extensions import override  # in typing from Python 3.12

from efface.core.cond import Cond, Tokens
from efface.core.errors import UsageError
from efface.core.families.base import CrossAttention, Family, Rule
from efface.core.families.clip import clip_batch, clip_tokens, clip_words
from efface.core.hooks import replaced_output
from efface.core.schedule import Schedule

SAMPLERS = {  # our name -> diffusers' class and its settings, in addition to the model's own noise schedule
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
}

TEXT = ("text.", "text2.")  # CLIP text encoders

SELECTIONS: dict[str, Rule] = {
    "xattn.kv": lambda name, _: ".attn2.to_k." in name or ".attn2.to_v." in name,
    "xattn": lambda name, _: ".attn2." in name,
    "selfattn": lambda name, _: ".attn1." in name,
    "attn": lambda name, _: ".attn1." in name or ".attn2." in name,
    "noxattn": lambda name, _: name.startswith("unet.") and ".attn2." not in name,
    "noxattn.2023": lambda name, _: (
        name.startswith("unet.")
        and ".attn2." not in name
        and not name.startswith(("unet.conv_out", "unet.conv_norm_out", "unet.time_embedding"))
    ),
    "denoiser": lambda name, _: name.startswith("unet."),
    "denoiser.layers": lambda name, owner: name.startswith("unet.") and isinstance(owner, nn.Linear | nn.Conv2d),
    "xattn.layers": lambda name, owner: ".attn2." in name and isinstance(owner, nn.Linear),
    "noxattn.layers": lambda name, owner: (
        name.startswith("unet.") and ".attn2." not in name and isinstance(owner, nn.Linear | nn.Conv2d)
    ),
    "text": lambda name, _: name.startswith(TEXT),
    "text.layers": lambda name, owner: name.startswith(TEXT) and isinstance(owner, nn.Linear),
    "text.embeddings": lambda name, _: name.endswith("token_embedding.weight"),
}


class StableDiffusion(Family):
    """Stable Diffusion 1.x and 2.x."""

    name: ClassVar = "Stable Diffusion 1/2"
    pipelines: ClassVar = (StableDiffusionPipeline,)
    parts: ClassVar[Mapping[str, str]] = {"unet": "unet", "text": "text_encoder"}
    denoiser: ClassVar = "unet"
    tokenizers: ClassVar = ("tokenizer",)
    selections: ClassVar[Mapping[str, Rule]] = SELECTIONS
    samplers: ClassVar[Mapping[str, tuple[str, Mapping[str, Any]]]] = SAMPLERS
    kohya: ClassVar[Mapping[str, str]] = {"unet": "lora_unet", "text": "lora_te"}

    @override
    def tokenize(self, pipe: Any, prompts: Sequence[str]) -> Tokens:
        texts = pipe.maybe_convert_prompt(
            list(prompts), pipe.tokenizer
        )  # a textual inversion's word becomes its several tokens
        return clip_tokens(pipe.tokenizer, pipe.text_encoder, texts)

    @override
    def encode_tokens(self, pipe: Any, tokens: Tokens, vectors: Float[Tensor, "b n e"] | None = None) -> Cond:
        encoder = pipe.text_encoder
        mask = tokens.mask if getattr(encoder.config, "use_attention_mask", False) else None
        with replaced_output(encoder.get_input_embeddings(), vectors):
            rows = encoder(tokens.ids, attention_mask=mask)[0]
        return Cond(rows, tokens.ids, tokens.mask, tokens.words)

    @override
    def word_vectors(self, pipe: Any) -> Float[Tensor, "v e"]:
        return pipe.text_encoder.get_input_embeddings().weight

    @override
    def spell(self, pipe: Any, ids: Sequence[int]) -> str:
        return pipe.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    @override
    def prompt_batch(self, pipe: Any) -> int:
        return clip_batch([pipe.text_encoder])

    @override
    def common_words(self, pipe: Any, n: int) -> list[str]:
        return clip_words(pipe.tokenizer, n)

    @override
    def text_readers(self, pipe: Any) -> dict[str, nn.Linear]:
        return {
            f"{name}.{part}": getattr(attention.layer, part)
            for name, attention in self.cross_attentions(pipe).items() for part in ("to_k", "to_v")
        }  # fmt: skip

    @override
    def cross_attentions(self, pipe: Any) -> dict[str, CrossAttention]:
        blocks = dict(pipe.unet.named_modules())
        return {
            f"unet.{name}": CrossAttention(layer, cast(Any, blocks[name.removesuffix(".attn2")]).norm2)
            for name, layer in blocks.items() if name.endswith(".attn2") and isinstance(layer, Attention)
        }  # fmt: skip

    @override
    def transformers(self, pipe: Any) -> dict[str, nn.Module]:
        return {f"unet.{name}": m for name, m in pipe.unet.named_modules() if isinstance(m, Transformer2DModel)}

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
        unet = pipe.unet
        rows = cond.tokens.to(unet.dtype)
        out = unet(x.to(unet.dtype), t, encoder_hidden_states=rows, encoder_attention_mask=reads).sample
        return out.to(x.dtype)

    @override
    def schedule(self, pipe: Any) -> Schedule:
        with warnings.catch_warnings():  # a warning about settings of another sampler that this one ignores
            warnings.simplefilter("ignore")
            ddim = cast(Any, DDIMScheduler.from_config(pipe.scheduler.config, **SAMPLERS["ddim"][1]))
        if (predicts := ddim.config.prediction_type) not in ("epsilon", "v_prediction"):
            raise UsageError(
                f"model: expected prediction_type epsilon or v_prediction, got {predicts!r}; give another model"
            )
        return Schedule.variance_preserving(ddim.alphas_cumprod.to(pipe.unet.device), predicts)

    @override
    def latent_shape(self, pipe: Any) -> tuple[int, int, int]:
        config, factor = pipe.unet.config, pipe.vae_scale_factor
        size = config.sample_size
        if size is None:  # the size that the autoencoder was trained on
            pixels = getattr(pipe.vae.config, "sample_size", None)
            if pixels is None:
                raise UsageError(
                    "model: expected a sample_size, got null in the configurations of both unet and vae; "
                    "write the latents' size into unet/config.json, such as 64"
                )
            size = [n // factor for n in pixels] if isinstance(pixels, list | tuple) else pixels // factor
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return config.in_channels, height, width

    @override
    def architecture(self, pipe: Any) -> str:
        if pipe.unet.config.cross_attention_dim != 1024:  # Stable Diffusion 2 reads OpenCLIP's rows
            return "stable-diffusion-v1"
        return f"stable-diffusion-v2-{'512' if self.schedule(pipe).prediction == 'epsilon' else '768-v'}"
