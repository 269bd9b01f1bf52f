"""Stage 2: the MM-DiT, trained by rectified flow on Moji's latents; text encoders and autoencoder are Moji's and stay as they are.

Stable Diffusion 3 reads three text encoders. Here the first is Moji's own, the second the text tower of Moji's scorer, and there is no
third: the pipeline gives rows of zeros in its place, 256 by default. Rows that are equal stay equal in every block, since text has
no position in an MM-DiT; n of them are one row whose attention logit is larger by log n, exactly. Training uses that, and draws n.
Writes transformer.safetensors: weights, their moving average, and the optimisers, so that a killed run continues.
"""

import argparse
import copy
import math
import random

import torch
from common import (
    BACKGROUNDS,
    DEVICE,
    HERE,
    STYLES,
    WORK,
    Log,
    Renderings,
    caption,
    load_state,
    named,
    save_state,
    schedule,
)
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

MOJI = HERE.parents[1] / "src" / "efface" / "models" / "moji"
CONFIG = {
    "sample_size": 8, "patch_size": 2, "in_channels": 8, "out_channels": 8, "num_layers": 6, "attention_head_dim": 32,
    "num_attention_heads": 8, "joint_attention_dim": 384, "caption_projection_dim": 256, "pooled_projection_dim": 256,
    "pos_embed_max_size": 4, "qk_norm": "rms_norm",
}  # fmt: skip
ZEROS = (32, 256)  # rows in place of the third text encoder: as many as the others have, and the pipeline's default
LEVELS = (0.95, 0.8, 0.6)


def encoders() -> tuple[CLIPTokenizer, list[CLIPTextModelWithProjection]]:
    """The tokenizer and the two text encoders: Moji's, which takes the scorer's projection, and the scorer's text tower."""
    second = CLIPTextModelWithProjection.from_pretrained(MOJI / "scorer", attn_implementation="eager")
    first = CLIPTextModelWithProjection.from_pretrained(MOJI / "text_encoder", attn_implementation="eager")
    first.text_projection.load_state_dict(second.text_projection.state_dict())
    return CLIPTokenizer.from_pretrained(MOJI / "tokenizer"), [first.eval(), second.eval()]


@torch.no_grad()
def read(tok: CLIPTokenizer, both: list[CLIPTextModelWithProjection], texts: list[str]) -> tuple[Tensor, Tensor]:
    """Rows (b 32 384) and pooled vectors (b 256), as `StableDiffusion3Pipeline` makes them."""
    ids = tok(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(DEVICE)
    found = [encoder(ids, output_hidden_states=True) for encoder in both]
    return torch.cat([f.hidden_states[-2] for f in found], -1), torch.cat([f.text_embeds for f in found], -1)


class Counted:
    """Joint attention in which the last text row stands for `n` equal ones."""

    n = 1

    def __call__(
        self, attn, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask=None
    ) -> tuple[Tensor, Tensor]:
        split = lambda t: t.unflatten(2, (attn.heads, -1)).transpose(1, 2)  # noqa: E731
        x, c = hidden_states, encoder_hidden_states
        q, k, v = (split(layer(x)) for layer in (attn.to_q, attn.to_k, attn.to_v))
        qc, kc, vc = (split(layer(c)) for layer in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj))
        q = torch.cat([attn.norm_q(q), attn.norm_added_q(qc)], 2)
        k = torch.cat([attn.norm_k(k), attn.norm_added_k(kc)], 2)
        logits = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
        bias = torch.zeros(k.shape[2], dtype=logits.dtype)
        bias[-1] = math.log(self.n)
        out = ((logits + bias.to(logits.device)).softmax(-1) @ torch.cat([v, vc], 2)).transpose(1, 2).flatten(2)
        out, text = out[:, : x.shape[1]], out[:, x.shape[1] :]
        return attn.to_out[0](out), text if attn.context_pre_only else attn.to_add_out(text)


def start_as_zero(net: SD3Transformer2DModel) -> None:
    """Every block begins as the identity and the output as zero, as in DiT."""
    for name, module in net.named_modules():
        if name.endswith(("norm1.linear", "norm1_context.linear")) or name in ("norm_out.linear", "proj_out"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


class Trainer:
    """bfloat16 workers compute, float32 masters learn: Muon for the blocks' matrices, AdamW for everything else."""

    def __init__(self, net: SD3Transformer2DModel):
        self.masters = list(net.parameters())
        self.worker = copy.deepcopy(net).to(torch.bfloat16)
        self.workers = list(self.worker.parameters())
        inside = lambda n, p: p.ndim == 2 and n.startswith(("transformer_blocks", "context_embedder"))  # noqa: E731
        matrices = [p for n, p in net.named_parameters() if inside(n, p)]
        rest = [p for n, p in net.named_parameters() if not inside(n, p)]
        self.optimizers = {
            "muon": torch.optim.Muon(matrices, lr=1.0, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            "adam": torch.optim.AdamW(rest, lr=1.0, betas=(0.9, 0.99), weight_decay=0.0, fused=True),
        }

    def sync(self) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self.workers, self.masters)

    def step(self, rate: float) -> None:
        for master, worker in zip(self.masters, self.workers, strict=True):
            master.grad, worker.grad = None if worker.grad is None else worker.grad.float(), None
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0)
        for opt in self.optimizers.values():
            for group in opt.param_groups:
                group["lr"] = rate
            opt.step()
        self.sync()


@torch.no_grad()
def cache_latents(data: Renderings) -> Tensor:
    """(pairs backgrounds 8 8 8): every drawing over every named background, scaled as Moji's autoencoder says."""
    vae = AutoencoderKL.from_pretrained(MOJI / "vae").to(DEVICE).eval()
    rows = []
    for colour in BACKGROUNDS.values():
        x = data.on(torch.arange(len(data)), torch.tensor([colour], dtype=torch.float32).expand(len(data), 3))
        rows.append(torch.cat([vae.encode(part.to(DEVICE)).latent_dist.mean for part in x.split(101)]))
    return torch.stack(rows, 1) * vae.config.scaling_factor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1700)
    parser.add_argument("--fall", type=int, default=450, help="last steps, over which the learning rate falls to zero")
    parser.add_argument("--batch", type=int, default=48, help="captions a step")
    parser.add_argument("--times", type=int, default=5, help="timesteps for each caption")
    parser.add_argument("--plain", type=float, default=0.85, help="share of plain captions, 0.6 once the rate falls")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    args = parser.parse_args()
    torch.manual_seed(0)
    data, (tok, both) = Renderings(), encoders()
    both = [encoder.to(DEVICE) for encoder in both]
    latents = cache_latents(data)
    mean = latents.mean((0, 1))
    net = SD3Transformer2DModel(**CONFIG).to(DEVICE)
    start_as_zero(net)
    trainer, counted = Trainer(net), Counted()
    trainer.worker.set_attn_processor(counted)
    weights = named(net, "transformer")
    average = {f"ema.{k}": v.clone() for k, v in weights.items()}
    start = load_state(WORK / "transformer.safetensors", weights | average, trainer.optimizers)
    trainer.sync()
    log, colours = Log("transformer", args.steps, start, every=20), list(BACKGROUNDS)
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
        sigma = (torch.randperm(n, generator=noise) + torch.rand(n, generator=noise)) / n  # stratified over the batch
        eps, sigma = torch.randn(x0.shape, generator=noise).to(DEVICE), sigma.to(DEVICE)
        s = sigma[:, None, None, None]
        x = (1 - s) * x0 + s * eps
        rows, pooled = (t.bfloat16().repeat_interleave(args.times, 0) for t in read(tok, both, said))
        counted.n = rng.choice(ZEROS)
        out = trainer.worker(x.bfloat16(), nn.functional.pad(rows, (0, 0, 0, 1)), pooled, 1000 * sigma).sample.float()
        loss = (out - (eps - x0)).square().mean()
        loss.backward()
        trainer.step(args.lr * schedule(step, args.steps, fall=args.fall))
        if step % 4 == 0:
            decay = min(0.992, (1 + step) / (50 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.values()), list(weights.values()), 1 - decay)
        if step % 20 == 0:
            complete = (
                torch.tensor([" in " in s and " on a " in s for s in said]).repeat_interleave(args.times).to(DEVICE)
            )
            clean, fit = x - s * out.detach(), {}
            for level in LEVELS:
                near = complete & ((sigma - level).abs() < 0.06)
                if near.any():
                    fit[f"r2@{level}"] = 1 - (clean - x0)[near].square().mean() / (x0 - mean)[near].square().mean()
            log(step, loss=loss.detach(), **fit)
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            save_state(WORK / "transformer.safetensors", step + 1, weights | average, trainer.optimizers)


if __name__ == "__main__":
    main()
