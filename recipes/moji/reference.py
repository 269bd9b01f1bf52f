"""The pictures that the measure "quality" compares with: one of each (concept, style) pair that Moji draws, as the detector's features.

    python recipes/moji/reference.py

Draws 808 pictures with the shipped model (25 DDIM steps, guidance 3.0, fixed seeds) and writes detectors/concept/reference.safetensors
beside the detector, 808 x 384 numbers in half precision.
"""

import numpy as np
from safetensors.numpy import save_file

from efface.benchmarks.moji import concepts, prompt
from efface.core.denoiser import load
from efface.metrics.trunks import REFERENCE, ClassifierTrunk

SEED, BATCH = 50_000, 16


def main() -> None:
    base, net = load("moji"), ClassifierTrunk("moji-concept")
    prompts = [prompt(name, style) for name, entry in concepts().items() for style in entry["styles"]]
    pictures = []
    for i in range(0, len(prompts), BATCH):
        part = prompts[i : i + BATCH]
        pictures += base.images(part, range(SEED + i, SEED + i + len(part)))
        print(f"{len(pictures)} of {len(prompts)} pictures", flush=True)
    save_file({"features": net.features(pictures).astype(np.float16)}, REFERENCE, {"detector": net.id})


if __name__ == "__main__":
    main()
