"""Stage 1: fetch the emoji sets, render every (concept, style) pair, and write the vocabulary with its relations.

Writes data.safetensors (RGBA drawings) and concepts.json (names, kinds, groups, neighbours, synonyms, implicit prompts).
"""

import io
import json
import re
import subprocess
import tarfile

import numpy as np
import resvg_py
import torch
from common import ICON, SIZE, STYLES, VOCABULARY, WORK
from PIL import Image
from safetensors.torch import save_file

EMOJIBASE = "emojibase-data@17.0.0"


def fetch(package: str, version: str) -> dict[str, dict]:
    """The JSON files of an npm package, by path inside it."""
    folder = WORK / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"{package.strip('@').replace('/', '-')}-{version}.tgz"
    if not archive.exists():
        subprocess.run(
            ["npm", "pack", f"{package}@{version}", "--silent"], cwd=folder, check=True, stdout=subprocess.DEVNULL
        )
    wanted = {"package/icons.json", "package/info.json", "package/en/data.json"}
    with tarfile.open(archive) as tar:
        return {m.name: json.load(tar.extractfile(m)) for m in tar.getmembers() if m.name in wanted}


def squash(label: str) -> str:
    return re.sub("[^a-z0-9]", "", label.lower())


def find(icons: dict, label: str) -> str | None:
    """The icon that draws `label` in this set: the label, then a person or a face of it; aliases are followed."""
    known = {squash(k): k for k in [*icons.get("aliases", {}), *icons["icons"]]}
    for guess in (label, f"person {label}", f"{label} face"):
        if name := known.get(squash(guess)):
            while name not in icons["icons"]:
                name = icons["aliases"][name]["parent"]
            return name
    return None


def render(icons: dict, name: str) -> np.ndarray:
    """One drawing as (4 64 64) uint8, centred, its longer side ICON pixels."""
    icon = icons["icons"][name]
    left, top, width, height = (
        icon.get(k, icons.get(k, d)) for k, d in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="#222" '
        f'viewBox="{left} {top} {width} {height}" width="{ICON * 2}" height="{ICON * 2}">{icon["body"]}</svg>'
    )
    drawn = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
    drawn = drawn.resize((ICON, ICON), Image.Resampling.BOX)
    canvas = Image.new("RGBA", (SIZE, SIZE))
    canvas.paste(drawn, ((SIZE - ICON) // 2, (SIZE - ICON) // 2))
    return np.asarray(canvas).transpose(2, 0, 1).copy()


def main() -> None:
    emoji = {squash(e["label"]): e for e in fetch(*EMOJIBASE.split("@"))["package/en/data.json"]}
    sets = {word: fetch(**VOCABULARY["styles"][word]) for word in STYLES}
    concepts, rgba, concept, style = [], [], [], []
    for group, entry in VOCABULARY["groups"].items():
        names = {label: VOCABULARY["names"].get(label, label) for label in entry["members"]}
        for label, name in names.items():
            synonyms = VOCABULARY["synonyms"].get(name, [])
            said = {w for phrase in (name, label, *synonyms) for w in phrase.lower().split()}
            tags = [t for t in emoji[squash(label)]["tags"] if not said & set(re.findall("[a-z]+", t.lower()))]
            drawn = []
            for s, word in enumerate(STYLES):
                icons = sets[word]["package/icons.json"]
                if icon := find(icons, label):
                    rgba.append(render(icons, icon))
                    concept.append(len(concepts))
                    style.append(s)
                    drawn.append(word)
            others = [n for n in names.values() if n != name]
            concepts.append({
                "name": name, "label": label, "kind": entry["kind"], "group": group, "neighbours": others,
                "synonyms": synonyms, "implicit": [t.lower() for t in tags], "styles": drawn,
            })  # fmt: skip
    licences = {word: sets[word]["package/info.json"] for word in STYLES}
    styles = [
        {"name": w, **VOCABULARY["styles"][w], "author": i["author"]["name"], "licence": i["license"]["spdx"]}
        for w, i in licences.items()
    ]
    record = {"styles": styles, "backgrounds": VOCABULARY["backgrounds"], "concepts": concepts}
    (WORK / "concepts.json").write_text(json.dumps(record, indent=1, ensure_ascii=False))
    save_file(
        {"rgba": torch.from_numpy(np.stack(rgba)), "concept": torch.tensor(concept), "style": torch.tensor(style)},
        WORK / "data.safetensors",
    )
    print(f"{len(rgba)} drawings of {len(concepts)} concepts in {len(STYLES)} styles -> {WORK}")


if __name__ == "__main__":
    main()
