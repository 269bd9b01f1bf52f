"""A tiny random pipeline of every family: stock classes, seeded weights, tokenizers made on the spot."""

from collections.abc import Callable

import numpy as np
import torch
import toys
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

WIDTHS = (32, 48)  # of the two CLIP text encoders' rows
POOLED = 24
JOINT = 96  # of T5's rows


def t5_tokenizer() -> T5Tokenizer:
    """Word pieces over `toys.WORDS` and letters, the frequent ones first."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{w}" for w in toys.WORDS), *"abcdefghijklmnopqrstuvwxyz,.'é"]
    return T5Tokenizer(vocab=[(p, -float(i)) for i, p in enumerate(pieces)], extra_ids=0)


def clip_encoder(tok: CLIPTokenizer, width: int, kind: type = CLIPTextModelWithProjection) -> nn.Module:
    """A CLIP text encoder of two layers."""
    return kind(
        CLIPTextConfig(
            vocab_size=len(tok), hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=toys.LENGTH, projection_dim=POOLED, bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id,
            pad_token_id=tok.pad_token_id,
        )
    )  # fmt: skip


def t5_encoder(tok: T5Tokenizer) -> T5EncoderModel:
    """A T5 encoder of two layers."""
    return T5EncoderModel(T5Config(vocab_size=len(tok), d_model=JOINT, d_kv=16, d_ff=64, num_layers=2, num_heads=4))


def autoencoder(channels: int = 4, **more: float) -> AutoencoderKL:
    """As that of `toys`: pictures have twice the latents' size."""
    return AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels, norm_num_groups=4, sample_size=16, **more,
    )  # fmt: skip


def mixed(*parts: nn.Module) -> None:
    """`toys.mix` of every part, and louder text: random weights that listen to their prompt."""
    for part in parts:
        toys.mix(part)
        for name, module in part.named_modules():
            if name.endswith(("context_embedder", "text_embedder.linear_1", "add_k_proj", "add_v_proj")):
                module.weight.data.mul_(2)


def sdxl(seed: int = 0) -> StableDiffusionXLPipeline:
    """Stable Diffusion XL: its second tokenizer pads with "!"."""
    tok, tok2 = toys.tokenizer(), toys.tokenizer("!")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoders = clip_encoder(tok, WIDTHS[0], CLIPTextModel), clip_encoder(tok2, WIDTHS[1])
        unet = UNet2DConditionModel(
            sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=(2, 4),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=sum(WIDTHS), addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + POOLED, use_linear_projection=True, transformer_layers_per_block=(1, 2),
        )  # fmt: skip
        vae = autoencoder()
        mixed(*encoders, unet, vae)
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    )
    return StableDiffusionXLPipeline(vae, *encoders, tok, tok2, unet, scheduler, add_watermarker=False)


def sd3(seed: int = 0, t5: bool = True, shift: float = 3.0) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3.5, with T5 or without."""
    tok, tok2, tok3 = toys.tokenizer(), toys.tokenizer("!"), t5_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoders = [*(clip_encoder(t, w) for t, w in zip((tok, tok2), WIDTHS, strict=True)), t5_encoder(tok3)]
        net = SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=4,
            joint_attention_dim=JOINT, caption_projection_dim=32, pooled_projection_dim=2 * POOLED, pos_embed_max_size=8,
            qk_norm="rms_norm", dual_attention_layers=(0,),
        )  # fmt: skip
        vae = autoencoder(shift_factor=0.1, scaling_factor=1.5)
        mixed(*encoders, net, vae)
    third = (encoders[2], tok3) if t5 else (None, None)
    return StableDiffusion3Pipeline(
        net, FlowMatchEulerDiscreteScheduler(shift=shift), vae, encoders[0], tok, encoders[1], tok2, *third
    )


def flux(seed: int = 0, dev: bool = True) -> FluxPipeline:
    """Flux.1 dev, with distilled guidance and a shift by resolution, or schnell, with neither."""
    tok, tok2 = toys.tokenizer(), t5_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoders = clip_encoder(tok, WIDTHS[0], CLIPTextModel), t5_encoder(tok2)
        net = FluxTransformer2DModel(
            in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=8, num_attention_heads=4, joint_attention_dim=JOINT,
            pooled_projection_dim=WIDTHS[0], guidance_embeds=dev, axes_dims_rope=(2, 2, 4),
        )  # fmt: skip
        vae = autoencoder(shift_factor=0.1, scaling_factor=1.5)
        mixed(*encoders, net, vae)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=dev, base_image_seq_len=4, max_image_seq_len=64)
    pipe = FluxPipeline(scheduler, vae, encoders[0], tok, encoders[1], tok2, net)
    pipe.default_sample_size = 8
    return pipe


MAKERS: dict[str, Callable[[], DiffusionPipeline]] = {
    "sdxl": sdxl, "sd3": sd3, "sd3-no-t5": lambda: sd3(t5=False), "flux-dev": flux, "flux-schnell": lambda: flux(dev=False),
}  # fmt: skip


def stock(
    pipe: DiffusionPipeline, prompts: list[str], latents: Tensor, steps: int, guidance: float
) -> list[np.ndarray]:
    """The pictures that the pipeline's own call draws from these latents."""
    size = 2 * latents.shape[2]
    how = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "np", "height": size, "width": size}
    if isinstance(pipe, FluxPipeline):
        if not pipe.transformer.config.guidance_embeds:
            how |= {"negative_prompt": [""] * len(prompts), "true_cfg_scale": guidance}
        b, c, h, w = latents.shape
        latents = pipe._pack_latents(latents, b, c, h, w)
    if isinstance(pipe, StableDiffusion3Pipeline) and pipe.text_encoder_3 is None:
        how["max_sequence_length"] = toys.LENGTH
    return list((pipe(prompts, latents=latents, **how).images * 255).round().astype(np.uint8))
