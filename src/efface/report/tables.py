"""A run folder read and counted: every number in a report is a group-by over `scores.jsonl`."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efface.core.errors import UsageError
from efface.metrics.rates import Rate, erased, found
from efface.metrics.statistics import mcnemar

BASE = "base"  # the id of the unedited model
ROLES = ("erase", "neighbour", "distant")
SCORES = ("top1", "top5")
ABOUT = {"erase": "erased", "neighbour": "neighbours", "distant": "unrelated concepts"}
SAME = 0.05  # a change of a rate up to this is called "about as often"
GAP = "\u00a0"
AGAIN = "run `efface evaluate` again"

_RUN = {"title": str, "model": str, "fingerprint": str, "created": str, "version": str, "steps": int, "guidance": float}
_RUN |= {"seeds": int, "concept": dict, "edits": list, "detector": dict, "commands": list}
_MAYBE = {"settings": dict, "preserve": list, "file": str, "sampler": str, "target": str, "kind": str, "pictures": str}
_MAYBE |= {"seconds": float, "bytes": float, "held_out_top1": float}
_ROW = {"edit": str, "concept": str, "role": str, "prompt": str, "seed": int, "score": str, "image": str}
_KEY = ("role", "concept", "prompt", "seed", "score")  # equal in two models' rows that may be compared

Row = dict[str, Any]  # one score of one picture: the keys above, `value` (1 found, 0 not, None not judged) and `seen`


@dataclass(frozen=True)
class Run:
    """A run folder: `run.json` as `info`, and the rows of `scores.jsonl`."""

    folder: Path  # that the rows' pictures are relative to
    info: dict[str, Any]
    rows: tuple[Row, ...]

    @property
    def erased(self) -> str:
        """The name of the erased concept."""
        return self.info["concept"]["name"]

    @property
    def names(self) -> dict[str, str]:
        """Id to shown name, the unedited model first; a method used twice is told apart by its id."""
        edits = self.info["edits"]
        methods = Counter(e["method"] for e in edits)
        return {BASE: "unedited"} | {
            e["id"]: f"{e['method']} ({e['id']})" if methods[e["method"]] > 1 else e["method"] for e in edits
        }

    def concepts(self, role: str) -> tuple[str, ...]:
        """Concepts asked for in a role, in the order in which they were drawn."""
        return tuple(dict.fromkeys(row["concept"] for row in self.rows if row["role"] == role))

    def pick(self, **where: object) -> list[Row]:
        """Rows with these fields."""
        return [row for row in self.rows if all(row[k] == v for k, v in where.items())]

    def rate(self, edit: str, role: str, score: str, **where: object) -> Rate:
        """ESR for the role erase (concept not found), PSR for the others (concept found)."""
        return (erased if role == "erase" else found)(self.rows, score, edit=edit, role=role, **where)

    def seen_instead(self, edit: str) -> Counter[str]:
        """What the detector named first in pictures where it did not find the erased concept first."""
        missed = [row for row in self.pick(edit=edit, role="erase", score="top1") if row["value"] == 0]
        return Counter(row["seen"] or "no label" for row in missed)


def percent(rate: float) -> str:
    """Whole percent, halves upwards; 0 and 100 only when exact, else one decimal."""
    x = round(100 * rate, 9)
    whole = int(x + 0.5)
    shown = whole if 0 < whole < 100 or whole == x else f"{min(max(x, 0.1), 99.9):.1f}"
    return f"{shown}{GAP}%"


def verdict(run: Run, edit: str) -> str:
    """One sentence on an edit: what was counted, beside the same count for the unedited model."""
    rate, base = (run.rate(i, "erase", "top1") for i in (edit, BASE))
    if not rate.n:
        text = f"no picture of {run.erased} could be judged"
    else:
        gone = 2 * rate.hits >= rate.n
        says = "does not appear" if gone else "still appears"
        k, before = (r.hits if gone else r.n - r.hits for r in (rate, base))
        text = f"{run.erased} {says} in {k} of {rate.n} pictures asked for by name"
        text += f" (unedited model: {'absent from' if gone else 'in'} {before} of {base.n})"
    parts = [text, *(_kept(run, edit, role) for role in ROLES[1:])]
    failed = sum(run.rate(edit, role, "top1").failed for role in ROLES)
    parts += [f"left out because the detector could not judge them: {failed}"] if failed else []
    return "; ".join(parts) + "."


def _kept(run: Run, edit: str, role: str) -> str:
    """How the concepts of a role fare, and the one that lost most if it stands out."""
    concepts = run.concepts(role)
    rate, base = run.rate(edit, role, "top1"), run.rate(BASE, role, "top1")
    if not (rate.n and base.n):
        return f"nothing was measured on {ABOUT[role]}"
    names = f"{len(concepts)} {ABOUT[role]}" if len(concepts) > 4 else _and(concepts)
    change, chance = rate.value - base.value, mcnemar(*_changed(run, edit, role)) > 0.05
    how = "about as" if abs(change) <= SAME and chance else "more" if change > 0 else "less"
    note = ", which may be chance" if chance and "about" not in how else ""
    link = "as" if "about" in how else "than"
    verb = "appears" if len(concepts) == 1 else "appear"
    text = f"{names} {verb} {how} often {link} before ({percent(rate.value)} against {percent(base.value)}{note})"
    pairs = {c: (run.rate(edit, role, "top1", concept=c), run.rate(BASE, role, "top1", concept=c)) for c in concepts}
    drops = {c: b.value - a.value for c, (a, b) in pairs.items() if a.n and b.n}
    worst = max(drops, key=lambda c: drops[c], default="")
    if len(drops) > 1 and drops[worst] > max(2 * SAME, -change + SAME):
        a, b = pairs[worst]
        text += f", {worst} suffers most ({a.hits} of {a.n} against {b.hits} of {b.n})"
    return text


def _changed(run: Run, edit: str, role: str) -> tuple[int, int]:
    """Pictures of a role in which the concept was found before and not after, and the reverse; equal prompts and seeds are pairs."""
    before, after = (
        {(r["concept"], r["prompt"], r["seed"]): r["value"] for r in run.pick(edit=i, role=role, score="top1")}
        for i in (BASE, edit)
    )
    pairs = [(before[key], value) for key, value in after.items()]
    return pairs.count((1, 0)), pairs.count((0, 1))


def _and(words: tuple[str, ...]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def read_run(folder: Path) -> Run:
    """A run folder, checked.

    Raises:
        UsageError: a file is missing or damaged, or an edit was not measured on the unedited model's prompts and seeds.
    """
    path = folder / "run.json"
    info = _object(path, _text(path), _RUN)
    _check(f"{path}: concept", info["concept"], {"name": str})
    _check(f"{path}: detector", info["detector"], {"name": str})
    for i, edit in enumerate(info["edits"]):
        _check(f"{path}: edits[{i}]", edit, {"id": str, "method": str})
    ids = [BASE, *(edit["id"] for edit in info["edits"])]
    if len(set(ids)) < len(ids):
        raise UsageError(f"{path}: edits: expected different ids other than {BASE!r}, got {ids[1:]}; {AGAIN}")
    path, pictures = folder / "scores.jsonl", folder / info.get("pictures", ".")
    lines = enumerate(_text(path).splitlines(), 1)
    rows = tuple(_row(f"{path}:{i}", line, pictures, ids) for i, line in lines if line.strip())
    _paired(path, rows, ids)
    return Run(pictures, info, rows)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = "nothing there" if isinstance(error, FileNotFoundError) else str(error)
        remedy = "give a folder `efface evaluate` wrote"
        raise UsageError(f"{path}: expected a readable UTF-8 file, got {why}; {remedy}") from error


def _object(where: str | Path, text: str, types: dict[str, type]) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        got = f"{text[:40]!r} ({error})" if text.strip() else "nothing"
        raise UsageError(f"{where}: expected a JSON object, got {got}; {AGAIN}") from error
    return _check(where, value, types)


def _check(where: str | Path, value: object, types: dict[str, type]) -> dict[str, Any]:
    """`value` as an object that has these keys with these types, and the optional ones with theirs or null."""
    if not isinstance(value, dict):
        raise UsageError(f"{where}: expected a JSON object, got {value!r}; {AGAIN}")
    given = {key: kind for key, kind in _MAYBE.items() if value.get(key) is not None}
    for key, kind in (given | types).items():
        got = value.get(key)
        if not isinstance(got, (int, float) if kind is float else kind) or isinstance(got, bool):
            raise UsageError(f"{where}: expected {key!r} to be {kind.__name__}, got {got!r}; {AGAIN}")
    return value


def _row(where: str, line: str, folder: Path, ids: Iterable[str]) -> Row:
    """One line of scores.jsonl; its picture must lie in the folder."""
    raw = _object(where, line, _ROW)
    allowed = {"edit": tuple(ids), "role": ROLES, "score": SCORES, "value": (0, 1, None)}
    for key, values in allowed.items():
        got = raw.get(key, "nothing")
        if got not in values:
            expected = " or ".join(map(repr, values))
            raise UsageError(f"{where}: expected {key!r} to be {expected}, got {got!r}; {AGAIN}")
    image = folder / raw["image"]
    drawn = raw["image"] and image.resolve().is_relative_to(folder.resolve()) and image.is_file()
    if not drawn and (raw["image"] or raw["value"] is not None):  # only a cell that failed may lack its picture
        raise UsageError(f"{where}: expected a picture in the run's store, got no file {raw['image']!r}; {AGAIN}")
    return raw | {"seen": str(raw.get("seen") or "")}


def _paired(path: Path, rows: tuple[Row, ...], ids: list[str]) -> None:
    """A before and an after are comparable only on the same prompts and seeds, each counted once."""
    drawn = {i: Counter(tuple(row[k] for k in _KEY) for row in rows if row["edit"] == i) for i in ids}
    if not drawn[BASE]:
        raise UsageError(f"{path}: expected scores of the unedited model ({BASE!r}), got none; {AGAIN}")
    for i, counts in drawn.items():
        odd = next((k for k in counts | drawn[BASE] if counts[k] != 1 or drawn[BASE][k] != 1), None)
        if odd is not None:
            times = f"{counts[odd]} for {i!r} and {drawn[BASE][odd]} for {BASE!r}"
            raise UsageError(f"{path}: expected one {odd[4]} row for {odd[2]!r}, seed {odd[3]}, got {times}; {AGAIN}")
