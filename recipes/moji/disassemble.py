"""The inverse of `assemble.py`: checkpoints from the shipped model, so that growing it starts from what is there.

    python recipes/moji/disassemble.py && python recipes/moji/train.py

Optimiser moments are not shipped and start anew; detectors are trained anew, since they must know the new concepts.
The tokenizer stays: new words are spelt with the pieces it has.
"""

import json
import shutil

from assemble import PACKAGE
from common import WORK, named, save_state
from diffusers import StableDiffusionPipeline
from transformers import CLIPModel


def main() -> None:
    WORK.mkdir(parents=True, exist_ok=True)
    if any(WORK.glob("*.safetensors")):
        raise SystemExit(f"{WORK} holds checkpoints already; move them away first")
    pipe = StableDiffusionPipeline.from_pretrained(PACKAGE)
    save_state(WORK / "autoencoder.safetensors", 0, named(pipe.vae, "vae"), {})
    (WORK / "latents.json").write_text(json.dumps({"scaling_factor": pipe.vae.config.scaling_factor}))
    parts = named(pipe.unet, "unet") | named(pipe.text_encoder, "text")
    save_state(WORK / "unet.safetensors", 0, parts | {f"ema.{k}": v for k, v in parts.items()}, {})
    save_state(WORK / "clip.safetensors", 0, named(CLIPModel.from_pretrained(PACKAGE / "scorer"), "clip"), {})
    shutil.copytree(PACKAGE / "tokenizer", WORK / "tokenizer")
    print(f"checkpoints of {PACKAGE.name} in {WORK}")


if __name__ == "__main__":
    main()
