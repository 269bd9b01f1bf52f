"""Stage 5: two detectors trained apart from the generator, on real drawings only: what is drawn, and in which style.

Stock `ResNetForImageClassification` (another architecture, another seed). Accuracy is measured on drawings that are rotated, which
training never does, over two-colour backgrounds that training never shows. Writes detector-<task>.safetensors and detectors.json.
"""

import argparse
import json
import math

import torch
import torch.nn.functional as F
from common import DEVICE, STYLES, WORK, Log, Renderings, composite, load_state, named, save_state, schedule
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification

TASKS = ("concept", "style")
HELD_OUT = torch.tensor(
    [[255, 214, 170], [226, 206, 255], [180, 238, 232], [240, 190, 180], [205, 225, 150]], dtype=torch.float32
)


def build(task: str, data: Renderings) -> ResNetForImageClassification:
    labels = [c["name"] for c in data.concepts] if task == "concept" else STYLES
    config = ResNetConfig(
        num_channels=3, embedding_size=32, hidden_sizes=[48, 96, 192, 384], depths=[1, 1, 2, 1], layer_type="basic",
        id2label=dict(enumerate(labels)), label2id={n: i for i, n in enumerate(labels)},
    )  # fmt: skip
    return ResNetForImageClassification(config)


def warp(rgba: Tensor, scale: Tensor, shift: Tensor, angle: Tensor, flip: Tensor) -> Tensor:
    """Scale, move (in widths), rotate (radians) and mirror drawings (b 4 h w)."""
    c, s = torch.cos(angle) / scale, torch.sin(angle) / scale
    matrix = torch.stack([torch.stack([c * flip, -s, shift[:, 0]], 1), torch.stack([s * flip, c, shift[:, 1]], 1)], 1)
    grid = F.affine_grid(matrix, list(rgba.shape), align_corners=False)
    premultiplied = torch.cat([rgba[:, :3] * rgba[:, 3:] / 255, rgba[:, 3:]], 1)
    out = F.grid_sample(premultiplied, grid, align_corners=False)
    return torch.cat([out[:, :3] * 255 / out[:, 3:].clamp(min=1), out[:, 3:]], 1)


def training_pictures(data: Renderings, index: Tensor, rng: torch.Generator) -> Tensor:
    n = len(index)
    u = lambda *shape: torch.rand(*shape, generator=rng)  # noqa: E731
    flip = torch.where(u(n) < 0.3, -1.0, 1.0)
    rgba = warp(data.rgba[index].float(), 0.75 + 0.35 * u(n), 0.3 * (u(n, 2) - 0.5), torch.zeros(n), flip)
    colour = (150 + 105 * u(n, 3))[:, :, None, None]
    x = composite(rgba, colour)
    x = (x * (0.8 + 0.3 * u(n, 1, 1, 1)) + 0.2 * (u(n, 1, 1, 1) - 0.5)).clamp(-1, 1)  # contrast, brightness
    for kernel, share in ((3, 0.7), (5, 0.3)):  # a generator's pictures are softer than drawings
        soft = F.avg_pool2d(x, kernel, 1, kernel // 2, count_include_pad=False)
        x = torch.lerp(x, soft, u(n, 1, 1, 1) * (u(n, 1, 1, 1) < share))
    return x + 0.12 * u(n, 1, 1, 1) * torch.randn(x.shape, generator=rng)


def held_out_pictures(data: Renderings, seed: int) -> Tensor:
    """Every drawing once, rotated by up to 10 degrees, over a vertical blend of two unseen colours."""
    rng, n = torch.Generator().manual_seed(seed), len(data)
    angle = (torch.rand(n, generator=rng) * 2 - 1) * math.radians(10)
    scale = 0.8 + 0.2 * torch.rand(n, generator=rng)
    rgba = warp(data.rgba.float(), scale, 0.2 * (torch.rand(n, 2, generator=rng) - 0.5), angle, torch.ones(n))
    pair = HELD_OUT[torch.stack([torch.randperm(len(HELD_OUT), generator=rng)[:2] for _ in range(n)])]  # (n 2 3)
    ramp = torch.linspace(0, 1, rgba.shape[-1])[None, None, :, None]
    return composite(rgba, torch.lerp(pair[:, 0, :, None, None], pair[:, 1, :, None, None], ramp))


@torch.no_grad()
def accuracy(net: ResNetForImageClassification, data: Renderings, labels: Tensor) -> float:
    net.eval()
    right = [
        (net(held_out_pictures(data, seed).to(DEVICE)).logits.argmax(1).cpu() == labels).float().mean()
        for seed in (1, 2, 3)
    ]
    net.train()
    return torch.stack(right).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--only", choices=TASKS)
    args = parser.parse_args()
    data, result = Renderings(), WORK / "detectors.json"
    measured = json.loads(result.read_text())["held_out_top1"] if result.exists() else {}
    for k, task in enumerate(TASKS):
        if args.only not in (None, task):
            continue
        torch.manual_seed(1000 + k)
        labels = getattr(data, task)
        net = build(task, data).to(DEVICE).train()
        opt = torch.optim.AdamW(net.parameters(), lr=1.0, weight_decay=0.02, fused=True)
        path = WORK / f"detector-{task}.safetensors"
        start = load_state(path, named(net, "net"), {"opt": opt})
        log = Log(f"detector-{task}", args.steps, start)
        for step in range(start, args.steps):
            rng = torch.Generator().manual_seed(10**7 * (k + 1) + step)
            for group in opt.param_groups:
                group["lr"] = 2e-3 * schedule(step, args.steps)
            index = torch.randint(len(data), (args.batch,), generator=rng)
            x, y = training_pictures(data, index, rng).to(DEVICE), labels[index].to(DEVICE)
            with torch.autocast(DEVICE, torch.bfloat16):
                logits = net(x).logits
            loss = F.cross_entropy(logits.float(), y, label_smoothing=0.05)
            opt.zero_grad()
            loss.backward()
            opt.step()
            log(step, loss=loss.detach(), accuracy=(logits.argmax(1) == y).float().mean())
            if (step + 1) % 250 == 0 or step + 1 == args.steps:
                save_state(path, step + 1, named(net, "net"), {"opt": opt})
        measured[task] = accuracy(net, data, labels)
        print(f"{task}: held-out top-1 {measured[task]:.4f}")
        result.write_text(json.dumps({"held_out_top1": measured}))


if __name__ == "__main__":
    main()
