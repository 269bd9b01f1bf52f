"""Stage 6: put the trained parts together as a plain diffusers folder in half precision, with detectors and scorer beside it.

Writes src/efface/models/moji/: model_index.json, tokenizer, text_encoder, unet, vae, scheduler (the pipeline), and
detectors/{concept,style}, scorer, concepts.json (names and relations), card.json (settings and hashes; `quality.py` adds what it measures).
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from autoencoder import CONFIG as VAE
from common import HERE, WORK, Renderings, load_state, named
from detectors import TASKS, build
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from text import clip_config, tokenizer
from torch import nn
from transformers import CLIPModel, CLIPTextModel
from unet import CONFIG as UNET
from unet import SCHEDULER

PACKAGE = HERE.parents[1] / "src" / "efface" / "models" / "moji"


def fill(module: nn.Module, path: Path, prefix: str) -> nn.Module:
    """Load `module` from the tensors of a checkpoint whose names begin with `prefix`."""
    flat = load_file(path)
    module.load_state_dict({k: flat[f"{prefix}.{k}"] for k in module.state_dict()})
    return module.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=PACKAGE)
    parser.add_argument("--unet", default="unet")
    args = parser.parse_args()
    data, tok = Renderings(), tokenizer()
    vae = AutoencoderKL(**VAE, scaling_factor=json.loads((WORK / "latents.json").read_text())["scaling_factor"])
    decoder = WORK / "decoder.safetensors"
    load_state(decoder if decoder.exists() else WORK / "autoencoder.safetensors", named(vae, "vae"), {})
    unet = fill(UNet2DConditionModel(**UNET), WORK / f"{args.unet}.safetensors", "ema.unet")
    config = clip_config(tok)
    text = fill(CLIPTextModel._from_config(config.text_config), WORK / f"{args.unet}.safetensors", "ema.text")
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tok, unet=unet, scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    part = args.output.with_name(args.output.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    pipe.to(dtype=torch.float16).save_pretrained(part)
    for task in TASKS:
        net = fill(build(task, data), WORK / f"detector-{task}.safetensors", "net")
        net.half().save_pretrained(part / "detectors" / task)
    if (WORK / "clip.safetensors").exists():
        fill(CLIPModel._from_config(config), WORK / "clip.safetensors", "clip").half().save_pretrained(part / "scorer")
        tok.save_pretrained(part / "scorer")
    shutil.copy(WORK / "concepts.json", part / "concepts.json")
    for card in ("card.json", "README.md", "samples.png"):
        if (args.output / card).exists():
            shutil.copy(args.output / card, part / card)
    shutil.rmtree(args.output, ignore_errors=True)
    part.rename(args.output)
    for f in args.output.rglob(
        "config.json"
    ):  # stored in half, loaded in full: transformers would load what it says here
        f.write_text(f.read_text().replace('"float16"', '"float32"'))
    for f in args.output.rglob("*"):
        f.chmod(0o755 if f.is_dir() else 0o644)
    size = sum(f.stat().st_size for f in args.output.rglob("*") if f.is_file())
    print(f"{args.output}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
