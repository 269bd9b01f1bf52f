"""Numbers beside the judges': how far an edit moved each picture and each set of pictures, and how well pictures fit their prompts.

A benchmark names them: "perceptual" and "quality" (Moji's; see `efface.metrics.quality`), "lpips:SIZE:FILE", "clip:MODEL" (the whole
prompt), "clip-name:MODEL" (the concept's name alone), "kernel:TRUNK", "frechet:TRUNK", "cmmd:TRUNK" (sets: the edited model's pictures of
a role against the unedited model's).
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from safetensors.numpy import load_file

from efface.benchmarks.judge import look
from efface.benchmarks.plan import Plan
from efface.benchmarks.row import BASE, GONE, ROLES, Role, Row
from efface.benchmarks.spec import Cell
from efface.benchmarks.store import Store, name_of
from efface.core.errors import UsageError, nearest
from efface.metrics.clip import ClipScorer
from efface.metrics.distances import cmmd, frechet, kernel
from efface.metrics.lpips import LPIPS, perceptual, perceptual_name
from efface.metrics.quality import quality, radii, realism
from efface.metrics.trunks import REFERENCE, ClassifierTrunk, Trunk, distance_name, trunk

SEGMENT = 256  # pictures whose features or scores share a file
KEPT: tuple[Role, ...] = tuple(
    r for r in ROLES if r not in GONE and r != "companion"
)  # shall stay, by prompts of their own


def measured(store: Store, measures: Sequence[str], plan: Plan) -> list[Row]:
    """A row for each number; a picture that is lacking has none, and a set with a picture lacking is compared without it.

    Raises:
        UsageError: unknown measure, or what it needs is missing.
    """
    rows: list[Row] = []
    for measure in measures:
        kind, _, what = measure.partition(":")
        if kind not in KINDS:
            raise UsageError(f"measure: unknown {kind!r}; {nearest(kind, KINDS)}")
        rows += KINDS[kind](store, what, plan)
    return rows


def _perceptual(store: Store, what: str, plan: Plan) -> list[Row]:
    """Each edited picture against the unedited one of the same prompt and seed."""
    net = ClassifierTrunk("moji-concept")
    return _moved(store, net.id, "perceptual", perceptual_name(net), lambda a, b: perceptual(a, b, net), plan)


def _lpips(store: Store, what: str, plan: Plan) -> list[Row]:
    size, _, path = what.partition(":")
    if not size.isdigit() or not path:
        raise UsageError(
            f"measure: expected lpips:SIZE:FILE, got lpips:{what!r}; give lpips:64:weights.safetensors, say"
        )
    net = LPIPS(path, int(size))
    return _moved(store, net.id, "lpips", net.id, net.distances, plan)


def _moved(
    store: Store, ident: str, score: str, name: str, distances: Callable[[list[np.ndarray], list[np.ndarray]], list[float]], plan: Plan
) -> list[Row]:  # fmt: skip
    """Distances of pairs, kept in the store under both pictures' names."""
    ident, rows = f"{score}-{ident}", []
    known = {key: record["value"] for key, record in store.scores(ident).items()}
    before = plan.names(BASE)
    pairs = {label: list(zip(before, plan.names(label), strict=True)) for label in plan.recipes if label != BASE}
    everything = dict.fromkeys(pair for own in pairs.values() for pair in own)
    todo = [p for p in everything if "/".join(p) not in known and all(map(store.has_picture, p))]
    for i in range(0, len(todo), SEGMENT):
        part = todo[i : i + SEGMENT]
        values = distances(*([store.picture(pair[side]) for pair in part] for side in (0, 1)))
        found = {"/".join(pair): round(v, 6) for pair, v in zip(part, values, strict=True)}
        store.put_scores(ident, [{"picture": key, "value": v} for key, v in found.items()])
        known |= found
    for label, own in pairs.items():
        for pair, cell in zip(own, plan.cells, strict=True):
            key = "/".join(pair)
            if cell.role != "companion" and key in known:  # its picture is counted under the role it was drawn for
                image = store.picture_path(pair[1])
                rows.append(plan.row(label, cell, score, known[key], name, name=pair[1], image=image))
    return rows


def _quality(store: Store, what: str, plan: Plan) -> list[Row]:
    """Whether each picture, the unedited model's too, is a drawing of anything."""
    net, rows = ClassifierTrunk("moji-concept"), []
    reference = load_file(REFERENCE)["features"].astype(np.float64)
    radius = radii(reference)
    names = {label: plan.names(label) for label in plan.recipes}
    every = list(dict.fromkeys(n for own in names.values() for n in own))
    vectors, seen = _features(store, net, every), look(store, net.classifier, every)
    drawn = [n for n in every if n in vectors and seen.get(n, {}).get("top")]
    if not drawn:
        return []
    real = realism(np.stack([vectors[n] for n in drawn]), reference, radius)
    values = quality(np.array([seen[n]["top"][0][1] for n in drawn]), real)
    found = dict(zip(drawn, values.round(6).tolist(), strict=True))
    for label, own in names.items():
        for name, cell in zip(own, plan.cells, strict=True):
            if cell.role != "companion" and name in found:
                image = store.picture_path(name)
                rows.append(plan.row(label, cell, "quality", found[name], net.id, name=name, image=image))
    return rows


def _clip(store: Store, what: str, plan: Plan) -> list[Row]:
    return _fits(store, what, "clip", lambda cell: cell.prompt, plan)


def _clip_name(store: Store, what: str, plan: Plan) -> list[Row]:
    return _fits(store, what, "clip-name", lambda cell: cell.concept, plan)


def _fits(store: Store, what: str, score: str, text: Callable[[Cell], str], plan: Plan) -> list[Row]:
    """CLIP scores of pictures and texts, kept in the store under both: a picture may be asked about by several texts."""
    net = ClipScorer(what)
    ident, rows = f"{score}-{net.id}", []
    known = {key: record["value"] for key, record in store.scores(ident).items()}
    asked = {
        label: [(name, text(cell)) for name, cell in zip(plan.names(label), plan.cells, strict=True)] for label in plan.recipes
    }  # fmt: skip
    pairs = [pair for own in asked.values() for pair, c in zip(own, plan.cells, strict=True) if c.role != "companion"]
    todo = [p for p in dict.fromkeys(pairs) if _key(*p) not in known and store.has_picture(p[0])]
    for i in range(0, len(todo), SEGMENT):
        part = todo[i : i + SEGMENT]
        values = net.score([store.picture(name) for name, _ in part], [words for _, words in part])
        found = {_key(*pair): round(v, 6) for pair, v in zip(part, values, strict=True)}
        store.put_scores(ident, [{"picture": key, "value": v} for key, v in found.items()])
        known |= found
    for label, own in asked.items():
        for (name, words), cell in zip(own, plan.cells, strict=True):
            if cell.role != "companion" and (key := _key(name, words)) in known:
                image = store.picture_path(name)
                rows.append(plan.row(label, cell, score, known[key], net.id, name=name, image=image))
    return rows


def _key(name: str, text: str) -> str:
    """What a score of a picture and a text is kept under."""
    return f"{name}/{name_of({'text': text})}"


def _sets(kind: str, distance: Callable[[np.ndarray, np.ndarray], float]) -> Callable[[Store, str, Plan], list[Row]]:
    """Rows of one number for each edit and each role whose pictures shall stay, drawn by their own prompts."""

    def rows(store: Store, what: str, plan: Plan) -> list[Row]:
        net = trunk(what)
        names = {label: plan.names(label) for label in plan.recipes}
        vectors = _features(store, net, [n for own in names.values() for n in own])
        name = distance_name(kind, net.id) if kind != "cmmd" else f"CMMD ({net.id})"
        found = []
        for role in KEPT:
            at = [i for i, cell in enumerate(plan.cells) if cell.role == role]
            for label in (one for one in names if one != BASE):
                both = [(names[BASE][i], names[label][i]) for i in at]
                both = [pair for pair in dict.fromkeys(both) if all(n in vectors for n in pair)]
                if len(both) < 2:
                    continue
                old, new = (np.stack([vectors[pair[side]] for pair in both]) for side in (0, 1))
                found.append(plan.set_row(label, role, name, round(distance(new, old), 6), net.id, n=len(both)))
        return found

    return rows


def _features(store: Store, net: Trunk, names: Sequence[str]) -> Mapping[str, np.ndarray]:
    """What the trunk makes of these pictures, those that it has seen before included."""
    known = store.features(net.id)
    todo = [n for n in dict.fromkeys(names) if n not in known and store.has_picture(n)]
    for i in range(0, len(todo), SEGMENT):
        part = todo[i : i + SEGMENT]
        found = dict(zip(part, net.features([store.picture(n) for n in part]), strict=True))
        store.put_features(net.id, found)
    return store.features(net.id)


KINDS: dict[str, Callable[[Store, str, Plan], list[Row]]] = {
    "perceptual": _perceptual, "quality": _quality, "lpips": _lpips, "clip": _clip, "clip-name": _clip_name,
    "kernel": _sets("kernel", lambda new, old: kernel(new, old)[0]),
    "frechet": _sets("frechet", lambda new, old: frechet(new, old, few=True)),  # the row says how many pictures it is of
    "cmmd": _sets("cmmd", cmmd),
}  # fmt: skip
