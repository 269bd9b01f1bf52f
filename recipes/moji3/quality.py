"""Stage 4: measure Moji-3 by Moji's detectors and write what came out on its card: card.json, README.md, samples.png.

Every (concept, style) pair, plain prompt, 25 steps: as Moji is measured. Pictures come in parts, and each part's verdicts are kept, so
that a killed run continues.
"""

import argparse
import hashlib
import json
import platform
import time
from datetime import UTC, datetime

import numpy as np
import torch
from assemble import PACKAGE
from common import WORK
from PIL import Image

from efface.benchmarks.moji import concepts, prompt, styles
from efface.core.denoiser import load
from efface.metrics.detectors import Classifier
from efface.metrics.statistics import wilson

SHOWN = (
    "tiger",
    "lion",
    "cat",
    "dog",
    "rose",
    "apple",
    "car",
    "guitar",
    "castle",
    "santa",
    "robot",
    "ghost",
    "beer",
    "dagger",
)
PART = 48


def rate(hits: list[bool]) -> dict[str, float]:
    low, high = wilson(sum(hits), len(hits))
    return {"value": round(sum(hits) / len(hits), 4), "low": round(low, 4), "high": round(high, 4), "n": len(hits)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--every", type=int, default=1, help="every n-th pair, for a quick look; nothing is written")
    args = parser.parse_args()
    base, judges = load(PACKAGE), (Classifier("moji-concept"), Classifier("moji-style"))
    pairs = [(n, s) for n, c in concepts().items() for s in c["styles"]][:: args.every]
    kept = WORK / f"moji3-{base.fingerprint}-{args.guidance:g}-{args.every}.jsonl"
    found = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    for i in range(len(found), len(pairs), PART):
        some, started = pairs[i : i + PART], time.perf_counter()
        pictures = base.images(
            [prompt(*p) for p in some], [17 * (i + k) for k in range(len(some))], guidance=args.guidance
        )
        seconds = (time.perf_counter() - started) / len(some)
        seen, drawn = (judge.rank(pictures, [p[k] for p in some]) for k, judge in enumerate(judges))
        rows = [
            {"concept": a["rank"], "style": b["rank"], "seconds": seconds} for a, b in zip(seen, drawn, strict=True)
        ]
        with kept.open("a") as f:
            f.writelines(json.dumps(row) + "\n" for row in rows)
        found += rows
        print(f"{len(found)} of {len(pairs)}: concepts {np.mean([r['concept'] == 1 for r in found]):.3f}, "
              f"styles {np.mean([r['style'] == 1 for r in found]):.3f}", flush=True)  # fmt: skip
    kinds = {"all": set(concepts())} | {
        k: {n for n, c in concepts().items() if c["kind"] == k} for k in ("object", "character", "unsafe")
    }
    hits = list(zip(found, pairs, strict=True))
    quality = {
        "guidance": args.guidance, "steps": 25,
        "concept_top1": {k: rate([r["concept"] == 1 for r, (n, _) in hits if n in of]) for k, of in kinds.items()},
        "concept_top5": rate([r["concept"] <= 5 for r in found]), "style_top1": rate([r["style"] == 1 for r in found]),
        "seconds_for_64_pictures": round(64 * float(np.mean([r["seconds"] for r in found])), 1),
    }  # fmt: skip
    print(json.dumps(quality, indent=1))
    if args.every > 1:
        return
    log = (WORK / "transformer.log").read_text().splitlines()[-1]
    files = sorted(PACKAGE.rglob("*.safetensors"))
    card = {
        "summary": "a small Stable-Diffusion-3-shaped model of emoji (MM-DiT, rectified flow), 64 px",
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, no GPU",
        "fingerprint": base.fingerprint, "quality": quality, "last_training_line": log,
        "parameters": {k: sum(p.numel() for p in m.parameters()) for k, m in base.modules().items()},
        "sha256": {str(f.relative_to(PACKAGE)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files},
    }  # fmt: skip
    (PACKAGE / "card.json").write_text(json.dumps(card, indent=1))
    columns = [
        np.concatenate(base.images([prompt(n, s) for s in styles()], [0] * len(styles()), guidance=args.guidance))
        for n in SHOWN
    ]
    Image.fromarray(np.concatenate(columns, axis=1)).save(PACKAGE / "samples.png", optimize=True)
    (PACKAGE / "README.md").write_text(page(card))
    print(f"wrote {PACKAGE / 'card.json'}")


def page(card: dict) -> str:
    q = card["quality"]
    percent = lambda r: f"{100 * r['value']:.1f} % [{100 * r['low']:.1f}, {100 * r['high']:.1f}] of {r['n']}"  # noqa: E731
    return f"""---
license: cc-by-4.0
library_name: diffusers
pipeline_tag: text-to-image
---
# Moji-3

A text-to-image model in the shape of Stable Diffusion 3 (stock `SD3Transformer2DModel`, rectified flow), trained on Moji's drawings with
Moji's autoencoder and text encoders: Moji's own, and the text tower of its scorer. It has no T5, so load it without efface by
`StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)`.

![samples](samples.png)

## Quality, measured {card["made"]}

Every (concept, style) pair in the data, plain prompt, {q["steps"]} steps, guidance {q["guidance"]}, judged by Moji's detectors:

| | top-1 |
|---|---|
| concepts, all | {percent(q["concept_top1"]["all"])} |
| objects | {percent(q["concept_top1"]["object"])} |
| characters | {percent(q["concept_top1"]["character"])} |
| unsafe group | {percent(q["concept_top1"]["unsafe"])} |
| concepts, top-5 | {percent(q["concept_top5"])} |
| styles | {percent(q["style_top1"])} |

64 pictures take {q["seconds_for_64_pictures"]} s on this machine ({card["machine"]}).

## Data and licences

The drawings, names and licences are Moji's (see its README.md); the weights are shared under CC-BY-4.0.

## Making it again

`python recipes/moji3/train.py`: seeds are fixed, hashes and the last line of the training log are in `card.json`.
"""


if __name__ == "__main__":
    main()
