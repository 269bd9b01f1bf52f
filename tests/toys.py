"""Models small enough to be wrong in every way in a second: stock classes, seeded weights, nothing downloaded."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, ResNetConfig, ResNetForImageClassification
from transformers.convert_slow_tokenizer import bytes_to_unicode

from efface.core.denoiser import Cond, Denoiser

LENGTH = 16  # token positions
WIDTH = 64  # of a text row
# words of one token; everything else falls apart into letters, so that names of many tokens are met as well
WORDS = [
    "a",
    "an",
    "of",
    "picture",
    "style",
    "tiger",
    "lion",
    "cat",
    "dog",
    "tree",
    "car",
    "red",
    "blue",
    "happy",
    "sad",
    "king",
    "queen",
    "house",
    "boat",
    "apple",
    "pear",
    "cloud",
    "moon",
    "stone",
    "river",
    "bird",
    "fish",
    "photo",
    "café",
]
SPECIAL = ["<|startoftext|>", "<|endoftext|>"]
SCHEDULER = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip


def tokenizer(pad: str | None = None) -> CLIPTokenizer:
    """CLIP's byte-level BPE over `WORDS`. SD 1.x pads with the end token (None), SD 2.x with "!"."""
    letters = list(bytes_to_unicode().values())
    vocab = {token: i for i, token in enumerate([*letters, *(c + "</w>" for c in letters)])}
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        raw = [bytes_to_unicode()[b] for b in word.encode()]
        parts = [*raw[:-1], raw[-1] + "</w>"]
        while len(parts) > 1:
            merges[parts[0], parts[1]] = None
            parts = [parts[0] + parts[1], *parts[2:]]
            vocab.setdefault(parts[0], len(vocab))
    for token in SPECIAL:
        vocab[token] = len(vocab)
    extra = {} if pad is None else {"pad_token": pad}
    return CLIPTokenizer(vocab=vocab, merges=list(merges), model_max_length=LENGTH, **extra)


@torch.no_grad()
def mix(part: nn.Module) -> None:
    """Weights of unit gain, words louder than places, cross-attention loudest: a random net that listens to its prompt.

    With the libraries' own small weights every prompt gives nearly the same prediction, and no test of erasing could fail.
    """
    for name, module in part.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            gain = (
                3.0
                if name.endswith(("attn2.to_k", "attn2.to_v", "attn2.to_out.0"))
                else 0.3
                if "self_attn.out_proj" in name
                else 1.0
            )
            module.weight.normal_(std=gain / module.weight[0].numel() ** 0.5)
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(std=0.3 if "position" in name else 1.0)


def pipeline(
    prediction: str = "epsilon",
    seed: int = 0,
    pad: str | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    levels: int = 2,
) -> StableDiffusionPipeline:
    """A randomly initialised Stable Diffusion of some 300,000 weights, with cross-attention at two resolutions.

    `levels` = 1 keeps it from the inner blocks, as the lowest of Stable Diffusion have none: four sites of it instead of seven,
    at the same two resolutions (the middle block has one), and a third less time.
    """
    across = [i < levels for i in range(2)]
    tok = tokenizer(pad)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tok), hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                max_position_embeddings=LENGTH, bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id,
                pad_token_id=tok.pad_token_id,
            )
        )  # fmt: skip
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, cross_attention_dim=WIDTH,
            down_block_types=["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in across],
            up_block_types=["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(across)],
            block_out_channels=[16, 32], attention_head_dim=4, norm_num_groups=4,
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=(8, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=16,
            down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, scaling_factor=0.18215,
        )  # fmt: skip
        mix(text)
        mix(unet)
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tok, unet=unet, scheduler=DDIMScheduler(**SCHEDULER, prediction_type=prediction),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return pipe if dtype == torch.float32 else pipe.to(dtype=dtype)


def tiny(
    prediction: str = "epsilon",
    seed: int = 0,
    pad: str | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    levels: int = 2,
) -> Denoiser:
    """`pipeline` as a denoiser: the same arguments give the same bits, in any process."""
    return Denoiser(pipeline(prediction, seed, pad, dtype, levels=levels))


class MixtureDenoiser(Denoiser):
    """Every prompt is a Gaussian N(μ_c, s²) over latents, so the exact prediction is known: no weights, no training error.

    ε(x, t, c) = √(1-ᾱ) (x - √ᾱ μ_c) / (ᾱ s² + 1 - ᾱ)
    """

    spread = 0.5

    def means(self, cond: Cond) -> Tensor:
        """μ_c, a fixed linear map of the prompt's rows: (b c h w)."""
        flat = cond.tokens.flatten(1)
        rng = np.random.default_rng(0)
        size = int(np.prod(self.latent_shape))
        to_mean = torch.from_numpy(rng.normal(size=(flat.shape[1], size)) / flat.shape[1] ** 0.5).to(flat)
        return (flat @ to_mean).view(-1, *self.latent_shape)

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The exact native prediction."""
        bar = self.alphas_cumprod.to(x.dtype)[t].view(-1, 1, 1, 1)
        mean = self.means(cond.expand(len(x))).to(x.dtype)
        eps = (1 - bar).sqrt() * (x - bar.sqrt() * mean) / (bar * self.spread**2 + 1 - bar)
        return self.native((x - (1 - bar).sqrt() * eps) / bar.sqrt(), t, eps)


def tensors(model: Denoiser) -> dict[str, Tensor]:
    """Every tensor of every part."""
    parts = {"unet": model.pipeline.unet, "text": model.pipeline.text_encoder, "vae": model.pipeline.vae}
    return {f"{ours}.{k}": v for ours, part in parts.items() for k, v in part.state_dict().items()}


def snapshot(model: Denoiser) -> dict[str, Tensor]:
    """Every tensor of every part, copied."""
    return {k: v.clone() for k, v in tensors(model).items()}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> set[str]:
    """Names of the tensors that are not bit for bit the same."""
    assert a.keys() == b.keys()
    return {k for k in a if not torch.equal(a[k], b[k])}


def probe(model: Denoiser, prompt: str, seeds: int = 3) -> Tensor:
    """Predictions for one prompt at several noise levels: what a model does, in one tensor."""
    rng = torch.Generator().manual_seed(5)
    x = torch.randn(seeds, *model.latent_shape, generator=rng)
    with torch.no_grad():
        return model.predict(x, torch.tensor([900, 500, 100])[:seeds], model.embed([prompt]))


def moved(before: Denoiser, after: Denoiser, prompt: str) -> float:
    """How far the predictions for a prompt moved, relative to their size."""
    a, b = probe(before, prompt), probe(after, prompt)
    return float((a - b).norm() / a.norm())


def classifier(folder: Path, labels: list[str]) -> Path:
    """An untrained image classifier over `labels`, saved as a transformers folder."""
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=len(labels),
        id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(7)
        ResNetForImageClassification(config).save_pretrained(folder)
    return folder
