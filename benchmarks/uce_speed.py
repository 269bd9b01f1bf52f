"""UCE on a U-Net of Stable Diffusion 1.4's exact shape: 100 concepts erased, 1,000 preserved, solved and applied. Bar: 3 s on two cores.

    .venv/bin/python benchmarks/uce_speed.py

The weights are random and the text embeddings are random with CLIP's row norm: the time does not depend on their values.
"""

import time

import torch
from diffusers import UNet2DConditionModel

from efface.core.denoiser import Cond, Denoiser
from efface.core.edit import TextMap
from efface.core.families.sd import StableDiffusion
from efface.erasers.uce import UCE


def prompts(n: int, words: int, seed: int) -> Cond:
    """`n` prompts of `words` words as 77 rows of width 768."""
    tokens = torch.randn(n, 77, 768, generator=torch.Generator().manual_seed(seed))
    tokens[:, words + 2 :] = (
        tokens[:, words + 1 : words + 2] + 0.1 * tokens[:, words + 2 :]
    )  # padding is close to the end token
    at = torch.arange(77).expand(n, 77)
    return Cond(tokens, torch.zeros_like(at), (at <= words + 1).int(), (at > 0) & (at <= words))


def main() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280),
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        )  # fmt: skip
    unet = unet.to_empty(device="cpu")
    for p in unet.parameters():
        torch.nn.init.normal_(p, std=0.02) if p.ndim > 1 else torch.nn.init.zeros_(p)

    class Bare(Denoiser):  # the U-Net alone: the embeddings are given
        def __init__(self) -> None:
            self.family = StableDiffusion()
            self.pipeline = type("Pipe", (), {"unet": unet, "text_encoder": torch.nn.Identity()})()

    base = Bare()
    erased, targets, kept = prompts(100, 2, 0), prompts(100, 1, 1), prompts(1000, 2, 2)
    weights = base.params("xattn.kv")
    print(
        f"U-Net {sum(p.numel() for p in unet.parameters()) / 1e6:.1f} M, {len(weights)} projections, {torch.get_num_threads()} threads"
    )
    for name, method in {"default": UCE(), "2023": UCE.preset("2023"), "2025": UCE.preset("2025")}.items():
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            edit: TextMap = method.solve(erased, targets, kept)
            solved = time.perf_counter()
            edit(base)
            seconds.append((solved - started, time.perf_counter() - solved))
        solve, apply = min(seconds, key=sum)
        print(
            f"UCE {name:8s} solve {solve:.2f} s + apply {apply:.2f} s = {solve + apply:.2f} s (best of 3; rank {edit.left.shape[1]})"
        )


if __name__ == "__main__":
    main()
