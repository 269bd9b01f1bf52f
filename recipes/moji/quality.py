"""Stage 7: measure the shipped model by its detectors and write what came out on its card.

Every (concept, style) pair in the data, plain prompt, 25 DDIM steps: how often the right thing is seen, and the right style. Also the
detectors' accuracy on real drawings after the autoencoder, the picture rate, hashes and sizes. Writes card.json, README.md, samples.png.
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
from common import BACKGROUNDS, STYLES, WORK, Renderings
from PIL import Image

from efface.benchmarks.moji import concepts, prompt, styles, vocabulary
from efface.core.denoiser import load
from efface.metrics.clip import ClipScorer
from efface.metrics.detectors import Classifier
from efface.metrics.statistics import wilson


def rate(hits: list[bool]) -> dict:
    low, high = wilson(sum(hits), len(hits))
    return {"value": round(sum(hits) / len(hits), 4), "low": round(low, 4), "high": round(high, 4), "n": len(hits)}


def sheet(base, guidance: float) -> Image.Image:
    """Three concepts of each kind of group, in every style, seed 0."""
    shown = [
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
    ]
    rows = []
    for name in shown:
        pictures = base.images([prompt(name, s) for s in styles()], [0] * len(styles()), guidance=guidance)
        rows.append(np.concatenate(pictures, axis=0))
    return Image.fromarray(np.concatenate(rows, axis=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--seeds", type=int, default=1, help="pictures of each pair")
    parser.add_argument(
        "--every", type=int, default=1, help="measure every n-th pair, for a quick look; nothing is written"
    )
    args = parser.parse_args()
    base, judge_concept, judge_style = load("moji"), Classifier("moji-concept"), Classifier("moji-style")
    known = concepts()
    pairs = [(n, s) for n, c in known.items() for s in c["styles"]][:: args.every]
    asked = [(n, s, seed) for seed in range(args.seeds) for n, s in pairs]
    started = time.perf_counter()
    pictures = base.images(
        [prompt(n, s) for n, s, _ in asked],
        [17 * i + seed for i, (_, _, seed) in enumerate(asked)],
        guidance=args.guidance,
    )
    seconds = time.perf_counter() - started
    seen = judge_concept.rank(pictures, [n for n, _, _ in asked])
    drawn = judge_style.rank(pictures, [s for _, s, _ in asked])
    kinds = {"all": list(known)} | {
        k: [n for n, c in known.items() if c["kind"] == k] for k in ("object", "character", "unsafe")
    }
    quality = {
        "guidance": args.guidance, "steps": 25,
        "concept_top1": {k: rate([r["rank"] == 1 for r, a in zip(seen, asked, strict=True) if a[0] in of]) for k, of in kinds.items()},
        "concept_top5": rate([r["rank"] <= 5 for r in seen]),
        "style_top1": rate([r["rank"] == 1 for r in drawn]),
        "by_style": {s: rate([r["rank"] == 1 for r, (_, t, _) in zip(seen, asked, strict=True) if t == s]) for s in STYLES},
    }  # fmt: skip
    print(json.dumps(quality, indent=1))
    print(f"{len(pictures)} pictures in {seconds:.0f} s: 64 take {64 * seconds / len(pictures):.1f} s")
    misses: dict[str, list[str]] = {}
    for r, (n, s, _) in zip(seen, asked, strict=True):
        if r["rank"] > 1:
            misses.setdefault(n, []).append(f"{s}->{r['seen']}")
    print("worst:", sorted(misses.items(), key=lambda kv: -len(kv[1]))[:15])
    if args.every > 1:
        return
    data = Renderings()
    real = data.on(
        torch.arange(len(data)), torch.tensor([BACKGROUNDS["white"]], dtype=torch.float32).expand(len(data), 3)
    )
    back = base.decode(base.encode(real / 2 + 0.5))
    again = judge_concept.logits(list((back.permute(0, 2, 3, 1) * 255).round().byte().numpy())).argmax(1)
    error = (back - (real / 2 + 0.5)).square().mean().item()
    scorer = ClipScorer("moji")
    truth = list((real / 2 + 0.5).permute(0, 2, 3, 1).mul(255).round().byte().numpy())
    images = torch.from_numpy(scorer.pictures.features(truth))
    texts = {s: torch.nn.functional.normalize(scorer.embed([prompt(n, s) for n in known]), dim=1) for s in STYLES}
    best = [(images[i] @ texts[STYLES[s]].T).argmax().item() for i, s in enumerate(data.style.tolist())]
    held_out = json.loads((WORK / "detectors.json").read_text())["held_out_top1"]
    quality |= {
        "detectors": held_out,
        "scorer_top1": rate([b == c for b, c in zip(best, data.concept.tolist(), strict=True)]),
        "autoencoder": {
            "psnr_db": round(-10 * float(np.log10(error)), 2),
            "concept_top1": rate((again == data.concept).tolist()),
        },
        "seconds_for_64_pictures": round(64 * seconds / len(pictures), 1),
    }
    files = sorted(f for f in PACKAGE.rglob("*.safetensors"))
    training = {log.stem: log.read_text().splitlines()[-1] for log in sorted(WORK.glob("*.log"))}
    card = {
        "summary": "a small Stable-Diffusion-shaped model of emoji, 64 px",
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, no GPU",
        "fingerprint": base.fingerprint, "data": vocabulary()["styles"], "names": "emojibase-data 17.0.0 (MIT), Unicode CLDR",
        "quality": quality, "last_training_lines": training,
        "parameters": {k: sum(p.numel() for p in m.parameters()) for k, m in base.modules().items()},
        "sha256": {str(f.relative_to(PACKAGE)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files},
    }  # fmt: skip
    (PACKAGE / "card.json").write_text(json.dumps(card, indent=1))
    sheet(base, args.guidance).save(PACKAGE / "samples.png", optimize=True)
    (PACKAGE / "README.md").write_text(page(card))
    print(f"wrote {PACKAGE / 'card.json'}")


def page(card: dict) -> str:
    q = card["quality"]
    percent = lambda r: f"{100 * r['value']:.1f} % [{100 * r['low']:.1f}, {100 * r['high']:.1f}] of {r['n']}"  # noqa: E731
    rows = "".join(
        f"| {s['name']} | {s['package']} {s['version']} | {s['author']} | {s['licence']} | {percent(q['by_style'][s['name']])} |\n"
        for s in card["data"]
    )
    return f"""---
license: cc-by-4.0
library_name: diffusers
pipeline_tag: text-to-image
---
# Moji

A text-to-image latent diffusion model in stock classes (CLIPTextModel, AutoencoderKL, UNet2DConditionModel, DDIM; ε-prediction, Stable
Diffusion 1.x's noise schedule), small enough for a laptop. `StableDiffusionPipeline.from_pretrained(folder)` loads it without efface.
It draws {len(concepts())} things in {len(card["data"])} emoji styles at 64 x 64 pixels, so that erasing concepts can be studied offline.
The "unsafe" group (alcohol, tobacco, weapons, gambling) is harmless: it stands in for what safety teams erase.

![samples](samples.png)

## Quality, measured {card["made"]}

Every (concept, style) pair in the data, plain prompt ("a tiger in noto style"), {q["steps"]} DDIM steps, guidance {q["guidance"]}, judged
by detectors trained apart from the generator, on real drawings only:

| | top-1 |
|---|---|
| concepts, all | {percent(q["concept_top1"]["all"])} |
| objects | {percent(q["concept_top1"]["object"])} |
| characters | {percent(q["concept_top1"]["character"])} |
| unsafe group | {percent(q["concept_top1"]["unsafe"])} |
| concepts, top-5 | {percent(q["concept_top5"])} |
| styles | {percent(q["style_top1"])} |

The detectors' own top-1 on held-out renderings (rotated, unseen two-colour backgrounds): concepts {100 * q["detectors"]["concept"]:.1f} %,
styles {100 * q["detectors"]["style"]:.1f} %. The autoencoder gives drawings back at {q["autoencoder"]["psnr_db"]} dB; the detector then
names {percent(q["autoencoder"]["concept_top1"])}.
The CLIP scorer picks a drawing's own name out of all {len(concepts())} in {percent(q["scorer_top1"])}.
64 pictures take {q["seconds_for_64_pictures"]} s on this machine ({card["machine"]}).

## Data and licences

| style | npm package | drawn by | licence | concepts right, top-1 |
|---|---|---|---|---|
{rows}
Names and keywords: {card["names"]}. Drawings under CC-BY-4.0 are used with attribution to the authors above; the weights are derived from
all of them and are shared under CC-BY-4.0.

## Making it again

`python recipes/moji/train.py` (see its header). Settings are in `recipes/moji/*.py` and `vocabulary.toml`, seeds are fixed in each script,
hashes and the last line of each training log are in `card.json`.
"""


if __name__ == "__main__":
    main()
