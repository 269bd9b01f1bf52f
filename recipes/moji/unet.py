"""Stage 4: the denoiser, trained on cached latents together with its text encoder.

A drawing over a named background is one latent, and a complete caption names exactly one: what is left to learn is what to draw,
not where. Every caption is used at several timesteps of one batch, which shares the cost of the text encoder. The ε-loss is
weighted by min(1 + 1/snr, 25) · min(5 / (snr + 1), 1): an ε error at high noise, where shapes are decided, costs as much as the
error of the clean latent it causes. Progress is R² of the predicted clean latent for complete captions, at three noise levels.
Writes unet.safetensors: weights, their moving average, and the optimisers, so that a killed run continues.
"""

import argparse
import copy
import json
import random

import torch
from autoencoder import CONFIG as VAE
from common import BACKGROUNDS, DEVICE, STYLES, WORK, Log, Renderings, caption, load_state, named, save_state, schedule
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file
from text import clip_config, tokenizer, tokens
from torch import Tensor, nn
from transformers import CLIPTextModel

CONFIG = {
    "sample_size": 8, "in_channels": 8, "out_channels": 8, "layers_per_block": 1, "cross_attention_dim": 192,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [96, 256], "attention_head_dim": 4, "norm_num_groups": 16,
}  # fmt: skip
SCHEDULER = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "prediction_type": "epsilon",
}  # fmt: skip
LEVELS = (950, 800, 600)


def cache_latents(data: Renderings) -> Tensor:
    """(pairs backgrounds 8 8 8): every drawing over every named background, scaled to unit deviation."""
    vae = AutoencoderKL(**VAE).to(DEVICE).eval()
    load_state(WORK / "autoencoder.safetensors", named(vae, "vae"), {})
    scale = json.loads((WORK / "latents.json").read_text())["scaling_factor"]
    rows = []
    with torch.no_grad():
        for colour in BACKGROUNDS.values():
            x = data.on(torch.arange(len(data)), torch.tensor([colour], dtype=torch.float32).expand(len(data), 3))
            rows.append(torch.cat([vae.encode(part.to(DEVICE)).latent_dist.mean for part in x.split(101)]) * scale)
    return torch.stack(rows, 1)


def start_as_identity(unet: UNet2DConditionModel) -> None:
    """Let the untrained net return its noisy input: at high noise ε ≈ x, and only the small rest has to be learnt.

    The first 2 c channels of the last block carry x and -x from `conv_in`; silu(x) - silu(-x) = x, so `conv_out` can add them up.
    """
    c = unet.config.in_channels
    last = unet.up_blocks[-1].resnets[-1]
    with torch.no_grad():
        for i in range(c):
            for row, sign in ((i, 1.0), (c + i, -1.0)):
                unet.conv_in.weight[row] = 0
                unet.conv_in.weight[row, i, 1, 1] = sign
                unet.conv_in.bias[row] = 0
                last.conv_shortcut.weight[row] = 0  # the skip from conv_in is the second half of the last block's input
                last.conv_shortcut.weight[
                    row, last.conv_shortcut.in_channels - unet.config.block_out_channels[0] + row
                ] = 1
                last.conv_shortcut.bias[row] = 0
                last.conv2.weight[row] = 0
                last.conv2.bias[row] = 0
        unet.conv_out.weight.zero_()
        for i in range(c):
            unet.conv_out.weight[i, i, 1, 1], unet.conv_out.weight[i, c + i, 1, 1] = 1.0, -1.0
        unet.conv_out.bias.zero_()


class Trainer:
    """bfloat16 workers compute, float32 masters learn: Muon for the U-Net's matrices, AdamW for everything else.

    A convolution kernel is one matrix (out x rest) to Muon; the matrix is a view, so stepping it steps the master.
    """

    def __init__(self, unet: nn.Module, text: nn.Module):
        self.masters = [*unet.parameters(), *text.parameters()]
        self.unet = copy.deepcopy(unet).to(torch.bfloat16, memory_format=torch.channels_last)
        self.text = copy.deepcopy(text).to(torch.bfloat16)
        self.workers = [*self.unet.parameters(), *self.text.parameters()]
        edge = ("conv_in", "conv_out")
        matrices = [p for n, p in unet.named_parameters() if p.ndim >= 2 and not n.startswith(edge)]
        rest = [p for n, p in unet.named_parameters() if p.ndim < 2 or n.startswith(edge)]
        self.flat = [(p, nn.Parameter(p.detach().view(len(p), -1))) for p in matrices]
        self.optimizers = {
            "muon": torch.optim.Muon(
                [f for _, f in self.flat], lr=1.0, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
            ),
            "adam": torch.optim.AdamW(rest, lr=1.0, betas=(0.9, 0.99), weight_decay=0.0, fused=True),
            "text": torch.optim.AdamW(text.parameters(), lr=1.0, betas=(0.9, 0.99), weight_decay=0.01, fused=True),
        }

    def sync(self) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self.workers, self.masters)

    def step(self, rates: dict[str, float]) -> None:
        for master, worker in zip(self.masters, self.workers, strict=True):
            master.grad, worker.grad = None if worker.grad is None else worker.grad.float().contiguous(), None
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0)
        for master, flat in self.flat:
            flat.grad = master.grad.view_as(flat)
        for name, opt in self.optimizers.items():
            for group in opt.param_groups:
                group["lr"] = rates[name]
            opt.step()
        self.sync()


def load_text_tower(text: CLIPTextModel) -> None:
    """Begin with the contrastive model's text tower."""
    flat = load_file(WORK / "clip.safetensors")
    text.load_state_dict({k: flat[f"clip.text_model.{k.removeprefix('text_model.')}"] for k in text.state_dict()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--fall", type=int, default=600, help="last steps, over which the learning rate falls to zero")
    parser.add_argument("--batch", type=int, default=48, help="captions a step")
    parser.add_argument("--times", type=int, default=3, help="timesteps for each caption")
    parser.add_argument("--plain", type=float, default=0.85, help="share of plain captions, 0.6 once the rate falls")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--name", default="unet")
    parser.add_argument("--prediction", default="epsilon")
    args = parser.parse_args()
    torch.manual_seed(0)
    data, tok = Renderings(), tokenizer()
    latents = cache_latents(data)
    mean = latents.mean((0, 1))
    text = CLIPTextModel._from_config(clip_config(tok).text_config, attn_implementation="eager").to(DEVICE)
    unet = UNet2DConditionModel(**CONFIG).to(DEVICE)
    if args.prediction == "epsilon":
        start_as_identity(unet)
    unet.set_attn_processor(AttnProcessor())  # sdpa's backward pass is slow on a CPU
    load_text_tower(text)
    trainer = Trainer(unet, text)
    rates = {"muon": args.lr, "adam": args.lr, "text": 0.5 * args.lr}
    weights = named(unet, "unet") | named(text, "text")
    average = {f"ema.{k}": v.clone() for k, v in weights.items()}
    start = load_state(WORK / f"{args.name}.safetensors", weights | average, trainer.optimizers)
    trainer.sync()
    alphas = DDIMScheduler(**SCHEDULER).alphas_cumprod.to(DEVICE)
    log, colours = Log(args.name, args.steps, start, every=20), list(BACKGROUNDS)
    for step in range(start, args.steps):
        rng, noise = random.Random(step), torch.Generator().manual_seed(step)
        pair = [rng.randrange(len(data)) for _ in range(args.batch)]
        back = [rng.randrange(len(colours)) for _ in pair]
        plain = args.plain if step < args.steps - args.fall else 0.6
        said = [
            caption(data.concepts[data.concept[i]], STYLES[data.style[i]], colours[b], rng, plain)
            for i, b in zip(pair, back, strict=True)
        ]
        x0 = latents[pair, back].repeat_interleave(args.times, 0)
        n = len(x0)
        t = (torch.randperm(n, generator=noise) + torch.rand(n, generator=noise)) * (
            1000 / n
        )  # stratified over the batch
        t = t.long().clamp(max=999).to(DEVICE)
        eps = torch.randn(x0.shape, generator=noise).to(DEVICE)
        a = alphas[t][:, None, None, None]
        x = a.sqrt() * x0 + (1 - a).sqrt() * eps
        words = trainer.text(tokens(tok, said).to(DEVICE)).last_hidden_state.repeat_interleave(args.times, 0)
        out = trainer.unet(x.bfloat16(), t, words).sample
        out, snr = out.float(), (a / (1 - a)).flatten()
        if args.prediction == "epsilon":
            error = (out - eps).square().mean((1, 2, 3))
            loss = (error * (1 + 1 / snr).clamp(max=25) * (5 / (snr + 1)).clamp(max=1)).mean()
            clean = (x - (1 - a).sqrt() * out) / a.sqrt()
        else:
            error = (out - (a.sqrt() * eps - (1 - a).sqrt() * x0)).square().mean((1, 2, 3))
            loss = (error * (5 / (snr + 1)).clamp(max=1)).mean()
            clean = a.sqrt() * x - (1 - a).sqrt() * out
        loss.backward()
        trainer.step({name: rate * schedule(step, args.steps, fall=args.fall) for name, rate in rates.items()})
        if step % 4 == 0:
            decay = min(0.992, (1 + step) / (50 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.values()), list(weights.values()), 1 - decay)
        if step % 20 == 0:
            complete = (
                torch.tensor([" in " in s and " on a " in s for s in said]).repeat_interleave(args.times).to(DEVICE)
            )
            fit = {}
            for level in LEVELS:
                near = complete & ((t - level).abs() < 60)
                if near.any():
                    rest = (clean.detach() - x0)[near].square().mean() / (x0 - mean)[near].square().mean()
                    fit[f"r2@{level}"] = 1 - rest
            log(step, loss=loss.detach(), **fit)
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            save_state(WORK / f"{args.name}.safetensors", step + 1, weights | average, trainer.optimizers)


if __name__ == "__main__":
    main()
