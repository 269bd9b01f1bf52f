"""Numbers beside the judges': how far an edit moved each picture and each set of pictures, and how well pictures fit their prompts.

A benchmark names them: "perceptual" (Moji's), "lpips:SIZE:FILE", "clip:MODEL" (the whole prompt), "clip-name:MODEL" (the concept's name
alone), "kernel:TRUNK", "frechet:TRUNK", "cmmd:TRUNK" (sets: the edited model's pictures of a role against the unedited model's).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from efface.benchmarks.spec import GONE, ROLES, Cell, about
from efface.benchmarks.store import Recipe, Store, name_of
from efface.core.errors import UsageError, nearest
from efface.metrics.clip import ClipScorer
from efface.metrics.distances import cmmd, frechet, kernel
from efface.metrics.lpips import LPIPS, perceptual, perceptual_name
from efface.metrics.trunks import ClassifierTrunk, Trunk, distance_name, trunk

Row = dict[str, Any]
Wanted = Mapping[str, Sequence[Recipe]]  # a model's pictures, cell by cell
BASE = "base"
SEGMENT = 256  # pictures whose features or scores share a file


def measured(store: Store, measures: Sequence[str], wanted: Wanted, cells: Sequence[Cell]) -> list[Row]:
    """A row for each number; a picture that is lacking has none, and a set with a picture lacking is compared without it.

    Raises:
        UsageError: unknown measure, or what it needs is missing.
    """
    rows: list[Row] = []
    for measure in measures:
        kind, _, what = measure.partition(":")
        if kind not in KINDS:
            raise UsageError(f"measure: unknown {kind!r}; {nearest(kind, KINDS)}")
        rows += KINDS[kind](store, what, wanted, cells)
    return rows


def _perceptual(store: Store, what: str, wanted: Wanted, cells: Sequence[Cell]) -> list[Row]:
    """Each edited picture against the unedited one of the same prompt and seed."""
    net = ClassifierTrunk("moji-concept")
    return _moved(store, net.id, "perceptual", perceptual_name(net), lambda a, b: perceptual(a, b, net), wanted, cells)


def _lpips(store: Store, what: str, wanted: Wanted, cells: Sequence[Cell]) -> list[Row]:
    size, _, path = what.partition(":")
    if not size.isdigit() or not path:
        raise UsageError(
            f"measure: expected lpips:SIZE:FILE, got lpips:{what!r}; give lpips:64:weights.safetensors, say"
        )
    net = LPIPS(path, int(size))
    return _moved(store, net.id, "lpips", net.id, net.distances, wanted, cells)


def _moved(
    store: Store, ident: str, score: str, name: str, distances: Callable[[list[np.ndarray], list[np.ndarray]], list[float]],
    wanted: Wanted, cells: Sequence[Cell],
) -> list[Row]:  # fmt: skip
    """Distances of pairs, kept in the store under both pictures' names."""
    ident, rows = f"{score}-{ident}", []
    known = {key: record["value"] for key, record in store.scores(ident).items()}
    pairs = {
        label: [(name_of(old), name_of(new)) for old, new in zip(wanted[BASE], all_, strict=True)]
        for label, all_ in wanted.items() if label != BASE
    }  # fmt: skip
    everything = dict.fromkeys(pair for all_ in pairs.values() for pair in all_)
    todo = [p for p in everything if "/".join(p) not in known and all(map(store.has_picture, p))]
    for i in range(0, len(todo), SEGMENT):
        part = todo[i : i + SEGMENT]
        values = distances(*([store.picture(pair[side]) for pair in part] for side in (0, 1)))
        found = {"/".join(pair): round(v, 6) for pair, v in zip(part, values, strict=True)}
        store.put_scores(ident, [{"picture": key, "value": v} for key, v in found.items()])
        known |= found
    for label, all_ in pairs.items():
        for (old, new), cell in zip(all_, cells, strict=True):
            if (
                cell.role != "companion" and f"{old}/{new}" in known
            ):  # its picture is counted under the role it was drawn for
                rows.append(_row(store, label, cell, score, known[f"{old}/{new}"], new, name))
    return rows


def _clip(store: Store, what: str, wanted: Wanted, cells: Sequence[Cell]) -> list[Row]:
    return _fits(store, what, "clip", lambda cell: cell.prompt, wanted, cells)


def _clip_name(store: Store, what: str, wanted: Wanted, cells: Sequence[Cell]) -> list[Row]:
    return _fits(store, what, "clip-name", lambda cell: cell.concept, wanted, cells)


def _fits(
    store: Store, what: str, score: str, text: Callable[[Cell], str], wanted: Wanted, cells: Sequence[Cell]
) -> list[Row]:
    """CLIP scores of pictures and texts, kept in the store."""
    net = ClipScorer(what)
    ident, rows = f"{score}-{net.id}", []
    known = {key: record["value"] for key, record in store.scores(ident).items()}
    asked = {
        name_of(recipe): text(cell)
        for all_ in wanted.values() for recipe, cell in zip(all_, cells, strict=True) if cell.role != "companion"
    }  # fmt: skip
    todo = [n for n in asked if n not in known and store.has_picture(n)]
    for i in range(0, len(todo), SEGMENT):
        part = todo[i : i + SEGMENT]
        values = net.score([store.picture(n) for n in part], [asked[n] for n in part])
        found = {n: round(v, 6) for n, v in zip(part, values, strict=True)}
        store.put_scores(ident, [{"picture": n, "value": v} for n, v in found.items()])
        known |= found
    for label, all_ in wanted.items():
        for recipe, cell in zip(all_, cells, strict=True):
            if cell.role != "companion" and (name := name_of(recipe)) in known:
                rows.append(_row(store, label, cell, score, known[name], name, net.id))
    return rows


def _row(store: Store, label: str, cell: Cell, score: str, value: float, name: str, ident: str) -> Row:
    return {
        "edit": label, **about(cell), "score": score, "value": value, "seen": "", "error": None,
        "image": store.picture_path(name), "cell": name, "detector": ident,
    }  # fmt: skip


def _sets(kind: str, distance: Callable[[np.ndarray, np.ndarray], float]) -> Any:
    """Rows of one number for each edit and each role whose pictures shall stay, drawn by their own prompts."""

    def rows(store: Store, what: str, wanted: Wanted, cells: Sequence[Cell]) -> list[Row]:
        net = trunk(what)
        names = {label: [name_of(r) for r in all_] for label, all_ in wanted.items()}
        vectors = _features(store, net, [n for all_ in names.values() for n in all_])
        name = distance_name(kind, net.id) if kind != "cmmd" else f"CMMD ({net.id})"
        found = []
        for role in (r for r in ROLES if r not in GONE and r != "companion"):
            at = [i for i, cell in enumerate(cells) if cell.role == role]
            for label in (one for one in names if one != BASE):
                both = [(names[BASE][i], names[label][i]) for i in at]
                both = [pair for pair in dict.fromkeys(both) if all(n in vectors for n in pair)]
                if len(both) < 2:
                    continue
                old, new = (np.stack([vectors[pair[side]] for pair in both]) for side in (0, 1))
                found.append({
                    "edit": label, "role": role, "concept": "", "prompt": "", "seed": -1, "judge": "", "group": "", "attack": "",
                    "score": name, "value": round(distance(new, old), 6), "n": len(both), "seen": "", "error": None, "image": "",
                    "cell": "", "detector": net.id,
                })  # fmt: skip
        return found

    return rows


def _features(store: Store, net: Trunk, names: Sequence[str]) -> dict[str, np.ndarray]:
    """What the trunk makes of these pictures, those that it has seen before included."""
    known = store.features(net.id)
    todo = [n for n in dict.fromkeys(names) if n not in known and store.has_picture(n)]
    for i in range(0, len(todo), SEGMENT):
        part = todo[i : i + SEGMENT]
        found = dict(zip(part, net.features([store.picture(n) for n in part]), strict=True))
        store.put_features(net.id, found)
        known |= found
    return known


KINDS = {
    "perceptual": _perceptual, "lpips": _lpips, "clip": _clip, "clip-name": _clip_name,
    "kernel": _sets("kernel", lambda new, old: kernel(new, old)[0]),
    "frechet": _sets("frechet", lambda new, old: frechet(new, old, few=True)),  # the row says how many pictures it is of
    "cmmd": _sets("cmmd", cmmd),
}  # fmt: skip
