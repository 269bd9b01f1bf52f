"""Stage 2: the autoencoder, 64 x 64 x 3 pictures to 8 x 8 x 8 latents, on drawings over named and random light backgrounds.

`--decoder` continues with the encoder frozen, on slightly noisy latents: pictures sharpen while cached latents stay valid.
Writes autoencoder.safetensors (and its scaling factor in latents.json), or decoder.safetensors.
"""

import argparse
import json

import torch
import torch.nn.functional as F
from common import BACKGROUNDS, DEVICE, WORK, Log, Renderings, load_state, named, save_state, schedule
from diffusers import AutoencoderKL
from torch import Tensor

CONFIG = {
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [16, 48, 96, 128], "layers_per_block": 1, "latent_channels": 8, "norm_num_groups": 8,
    "sample_size": 64, "mid_block_add_attention": False,
}  # fmt: skip


def pictures(data: Renderings, n: int, rng: torch.Generator) -> Tensor:
    """Random drawings on random light backgrounds, a third of them shifted by up to three pixels."""
    named_colours = torch.tensor(list(BACKGROUNDS.values()), dtype=torch.float32)
    colour = named_colours[torch.randint(len(named_colours), (n,), generator=rng)]
    free = torch.rand(n, 1, generator=rng) < 0.3
    colour = torch.where(free, 160 + 95 * torch.rand(n, 3, generator=rng), colour)
    x = data.on(torch.randint(len(data), (n,), generator=rng), colour)
    for i in torch.nonzero(torch.rand(n, generator=rng) < 0.3).flatten():
        dx, dy = torch.randint(-3, 4, (2,), generator=rng).tolist()
        x[i] = x[i].roll((dx, dy), dims=(1, 2))  # the margin is wide enough for nothing to wrap
    return x.to(DEVICE)


def difference(a: Tensor, b: Tensor) -> Tensor:
    """L1 + MSE + half the L1 of horizontal and vertical differences: edges matter more than areas."""
    d = a - b
    return d.abs().mean() + d.square().mean() + 0.5 * (d.diff(dim=2).abs().mean() + d.diff(dim=3).abs().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--decoder", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    data, vae = Renderings(), AutoencoderKL(**CONFIG).to(DEVICE)
    stage = "decoder" if args.decoder else "autoencoder"
    if args.decoder:
        load_state(WORK / "autoencoder.safetensors", named(vae, "vae"), {})
    trained = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()] if args.decoder else list(vae.parameters())
    opt = torch.optim.AdamW(trained, lr=2e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    start = load_state(WORK / f"{stage}.safetensors", named(vae, "vae"), {"opt": opt})
    log, peak = Log(stage, args.steps, start), 1e-3 if args.decoder else 2e-3
    for step in range(start, args.steps):
        rng = torch.Generator().manual_seed(step + 10**6 * args.decoder)
        for group in opt.param_groups:
            group["lr"] = peak * schedule(step, args.steps)
        x = pictures(data, args.batch, rng)
        with torch.autocast(DEVICE, torch.bfloat16):
            if args.decoder:
                with torch.no_grad():
                    z = vae.encode(x).latent_dist.mean
                z = z + 0.1 * z.std() * torch.rand(len(z), 1, 1, 1, generator=rng).to(z) * torch.randn(
                    z.shape, generator=rng
                ).to(z)
                y, kl = vae.decode(z).sample, torch.zeros(())
            else:
                latent = vae.encode(x).latent_dist
                y, kl = vae.decode(latent.sample()).sample, latent.kl().mean() / latent.mean[0].numel()
        y = y.float()
        loss = difference(y, x) + 1e-3 * kl
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        opt.step()
        log(step, loss=loss, psnr=10 * torch.log10(4 / F.mse_loss(y, x)), kl=kl)
        if (step + 1) % 300 == 0 or step + 1 == args.steps:
            save_state(WORK / f"{stage}.safetensors", step + 1, named(vae, "vae"), {"opt": opt})
    if not args.decoder:
        with torch.no_grad():
            z = vae.encode(pictures(data, 512, torch.Generator().manual_seed(-1 % 2**31))).latent_dist.mean
        (WORK / "latents.json").write_text(json.dumps({"scaling_factor": round(1 / z.std().item(), 5)}))
        print("latent deviation per channel", [round(v, 3) for v in z.std((0, 2, 3)).tolist()])


if __name__ == "__main__":
    main()
