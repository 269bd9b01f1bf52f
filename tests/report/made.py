"""Folders of runs and sweeps, small enough to be counted by hand."""

import json
import re
from html.parser import HTMLParser

from PIL import Image

# top-1 of each seed, in order; None: the detector failed. top-5 is top-1 with the first miss turned into a hit.
FOUND = {
    ("base", "tiger"): [1, 1, 1, 1],
    ("uce", "tiger"): [0, 0, 1, None],
    ("base", "lion"): [1, 1, 1, 1],
    ("uce", "lion"): [1, 1, 1, 1],
    ("base", "leopard"): [1, 1, 1, 0],
    ("uce", "leopard"): [0, 0, 0, 1],
    ("base", "rose"): [1, 1, 1, 1],
    ("uce", "rose"): [1, 1, 1, None],
}
ROLES = {"tiger": "erase", "lion": "neighbour", "leopard": "neighbour", "rose": "distant"}
DETECTORS = {
    "concept": {"name": "moji-concept", "id": "moji-concept-1", "held_out_top1": 0.98},
    "style": {"name": "moji-style", "id": "moji-style-1"},
}


def line(**change):
    """A row of scores.jsonl."""
    row = {
        "protocol": "0123456789ab", "task": "tiger", "edit": "base", "fit": 0, "role": "erase", "concept": "tiger", "group": "",
        "prompt": "", "seed": 0, "attack": "", "judge": "concept", "score": "top1", "value": 1, "seen": "", "error": None, "image": "",
        "cell": "", "detector": "",
    } | change  # fmt: skip
    row["prompt"] = row["prompt"] or f"a {row['concept']}"
    row["image"] = row["image"] or f"images/{row['edit']}/{row['concept']}{row['seed']}.png"
    row["detector"] = row["detector"] or DETECTORS[row["judge"]]["id"]
    row["seen"] = row["seen"] or (row["concept"] if row["value"] else "cat")
    return row


def scores():
    for (edit, concept), found in FOUND.items():
        first_miss = found.index(0) if 0 in found else None
        for seed, value in enumerate(found):
            row = {"edit": edit, "concept": concept, "role": ROLES[concept], "seed": seed}
            row |= {"seen": concept if value else "cat"}
            yield line(**row, score="top1", value=value)
            yield line(**row, score="top5", value=1 if seed == first_miss else value)


def info():
    edit = {
        "id": "uce",
        "method": "UCE",
        "settings": {"ridge": 0.5},
        "seconds": 0.4,
        "memory": 5_600_000,
        "bytes": 123456,
    }
    return {
        "title": "Erasing tiger",
        "benchmark": "moji",
        "task": "tiger",
        "protocol": "0123456789ab",
        "sensitive": False,
        "source": "efface's own",
        "model": "moji",
        "fingerprint": "3f9a",
        "created": "2025-11-22T01:20:00+00:00",
        "version": "0.1.0",
        "steps": 20,
        "guidance": 3.0,
        "seeds": 4,
        "concept": {"name": "tiger", "kind": "object", "target": "cat"},
        "edits": [edit | {"file": "uce.safetensors", "preserve": ["lion"], "fingerprint": "77c1"}],
        "detectors": DETECTORS,
        "commands": ["efface erase moji tiger --to cat"],
        "seconds": 61.2,
    }


def other_words():
    """Rows of every further kind: other words, companions of another judge, distances, an attack with its calls."""
    for edit, found in {"base": (1, 1, 1, 1), "uce": (0, 1, 1, 0)}.items():
        for seed, value in enumerate(found):
            synonym = {"edit": edit, "role": "synonym", "prompt": "a big striped cat", "seed": 10 + seed}
            yield line(**synonym, value=value)
            yield line(
                edit=edit, role="implicit", prompt="stripes, jungle", seed=20 + seed, value=value and int(seed < 3)
            )
            yield line(edit=edit, role="companion", concept="noto", judge="style", prompt="a tiger in noto", seed=seed)
    for seed, value in enumerate((0.25, 0.5, 0.75, None)):
        yield line(edit="uce", role="neighbour", concept="lion", seed=seed, score="perceptual", value=value)
    whole = {"edit": "uce", "role": "neighbour", "concept": "", "seed": -1, "prompt": " ", "image": " "}
    yield line(**whole, score="kernel distance (moji-concept)", value=0.125, n=8) | {"prompt": "", "image": ""}
    for seed, (value, calls) in enumerate([(1, 10), (1, 40), (0, 100), (1, 20), (None, 100)]):
        attack = {"edit": "uce", "attack": "random-words", "seed": 30 + seed, "calls": calls}
        yield line(**attack, value=value)
        yield line(**attack | {"attack": "weak"}, value=0)


def save(folder, about, rows):
    """A run folder; every picture that a row names is drawn."""
    rows = list(rows)
    for i, row in enumerate(rows):
        if row["image"]:
            path = folder / row["image"]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 64), (i % 256, 90, 120)).save(path)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")
    write_rows(folder, rows)
    return folder


def write_rows(folder, rows):
    (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def task(name, erased, kind="object", after=()):
    return {"name": name, "erased": erased, "kind": kind, "protocol": f"{name}-protocol", "after": list(after)}


def sweep(folder):
    """Two methods, `b` with two training seeds; two single tasks, one of two concepts at once, a sequence of two steps."""
    tasks = [
        task("tiger", ["tiger"]), task("rose", ["rose"]), task("many-2", ["tiger", "rose"], "many"),
        task("sequence-1", ["tiger"], "sequence"), task("sequence-2", ["rose"], "sequence", ["tiger"]),
    ]  # fmt: skip
    labels = {"a": ("a", 0), "b#5": ("b", 5), "b#7": ("b", 7)}
    found = {
        "tiger": {"base": [1, 1], "a": [0, 0], "b#5": [1, 1], "b#7": [1, 0]},
        "rose": {"base": [1, 1], "a": [0, 1], "b#5": [1, None], "b#7": [1, 1]},
        "many-2": {"base": [1, 1], "a": [0, 1], "b#5": [1, 1], "b#7": [1, 1]},
    }
    rows = []
    for name, given in found.items():
        for label, values in given.items():
            for role, own in (
                ("erase", values), ("neighbour", [1, 0] if label == "a" else [1, 1]), ("distant", [1, 1]),
            ):  # fmt: skip
                row = {"task": name, "protocol": f"{name}-protocol", "edit": label, "role": role}
                row |= {"fit": labels.get(label, ("", 0))[1], "concept": name if role == "erase" else f"{name}-{role}"}
                rows += [line(**row, seed=i, value=v, score=s) for i, v in enumerate(own) for s in ("top1", "top5")]
    after = {"sequence-1": {"tiger": [0, 0]}, "sequence-2": {"tiger": [0, 1], "rose": [0, 0]}}
    for name, concepts in after.items():
        for concept, values in concepts.items():
            row = {"task": name, "protocol": f"{name}-protocol", "concept": concept}
            rows += [line(**row, seed=i) for i in range(2)]
            rows += [line(**row, edit="a", seed=i, value=v) for i, v in enumerate(values)]
    edits = [
        {
            "label": label, "method": m, "task": t["name"], "seed": seed, "seconds": 1.0 if m == "a" else 3.0,
            "bytes": 1000 if m == "a" else 3000, "fingerprint": f"{label}-{t['name']}", "settings": {},
        }
        for label, (m, seed) in labels.items() for t in tasks if m == "a" or t["kind"] != "sequence"
    ]  # fmt: skip
    about = {
        "benchmark": "moji", "about": "Moji, by hand", "source": "efface's own", "model": "moji", "fingerprint": "f", "version": "0",
        "size": "smoke", "sampler": {"name": "ddim", "steps": 20}, "commands": ["efface bench <x>"], "tasks": tasks, "edits": edits,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(about))
    write_rows(folder, rows)
    return folder


def table(text, label):
    """Rows of cells of a labelled table as plain text, small print after a slash."""
    inside = re.search(f'aria-label="{re.escape(label)}"><table[^>]*>(.*?)</table>', text)[1]
    rows = re.findall("<tr>(.*?)</tr>", inside)
    plain = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
    clean = [[re.sub("<[^>]+>", "", re.sub("<small>", "/", cell)) for cell in row] for row in plain]
    return [[cell.replace("\u00a0", " ").replace("&ndash;", "-") for cell in row] for row in clean]


class Page(HTMLParser):
    """Opening tags with attributes, text, and the tags left open."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "path", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]
