"""Stage 3: put the parts together as a plain diffusers folder in half precision: src/efface/models/moji3/.

Autoencoder, text encoders and tokenizers are Moji's; detectors, scorer and vocabulary are not copied, since Moji's serve both models.
"""

import shutil

import torch
from common import HERE, WORK
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from safetensors.torch import load_file
from transformer import CONFIG, MOJI, encoders

PACKAGE = HERE.parents[1] / "src" / "efface" / "models" / "moji3"


def main() -> None:
    flat = load_file(WORK / "transformer.safetensors")
    net = SD3Transformer2DModel(**CONFIG)
    net.load_state_dict({k: flat[f"ema.transformer.{k}"] for k in net.state_dict()})
    tok, (first, second) = encoders()
    vae = AutoencoderKL.from_pretrained(MOJI / "vae")
    vae.register_to_config(shift_factor=0.0)  # Stable Diffusion 3's pipeline adds it
    pipe = StableDiffusion3Pipeline(
        transformer=net, scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0), vae=vae, text_encoder=first, tokenizer=tok,
        text_encoder_2=second, tokenizer_2=tok, text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
    part = PACKAGE.with_name("moji3.part")
    shutil.rmtree(part, ignore_errors=True)
    pipe.to(dtype=torch.float16).save_pretrained(part)
    for name in ("card.json", "README.md", "samples.png"):
        if (PACKAGE / name).exists():
            shutil.copy(PACKAGE / name, part / name)
    shutil.rmtree(PACKAGE, ignore_errors=True)
    part.rename(PACKAGE)
    for f in PACKAGE.rglob("config.json"):  # stored in half, loaded in full: transformers would load what it says here
        f.write_text(f.read_text().replace('"float16"', '"float32"'))
    for f in PACKAGE.rglob("*"):
        f.chmod(0o755 if f.is_dir() else 0o644)
    size = sum(f.stat().st_size for f in PACKAGE.rglob("*") if f.is_file())
    print(f"{PACKAGE}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
