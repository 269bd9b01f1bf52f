"""Reads and checks the folders of runs and sweeps; a damaged one is an EffaceError."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

from efface.benchmarks.row import ROLES
from efface.core.errors import EffaceError, UsageError
from efface.core.files import from_json
from efface.report.scores import BASE, Row, Scores, is_rate

AGAIN = "run `efface evaluate` again"

Types = Mapping[str, type]
RUN: Types = {
    "title": str, "model": str, "fingerprint": str, "created": str, "version": str, "steps": int, "guidance": float, "seeds": int,
    "concept": dict, "edits": list, "detectors": dict, "commands": list, "benchmark": str, "task": str, "protocol": str,
    "sensitive": bool, "source": str,
}  # fmt: skip
SWEEP: Types = {
    "benchmark": str, "about": str, "source": str, "model": str, "fingerprint": str, "version": str, "size": str, "sampler": dict,
    "commands": list, "tasks": list, "edits": list,
}  # fmt: skip
TASK: Types = {"name": str, "erased": list, "kind": str, "protocol": str, "after": list}
FIT: Types = {"label": str, "method": str, "task": str, "seed": int}
ROW: Types = {
    "protocol": str, "task": str, "edit": str, "fit": int, "role": str, "concept": str, "prompt": str, "seed": int, "attack": str,
    "judge": str, "score": str, "image": str,
}  # fmt: skip
MAYBE: Types = {
    "settings": dict, "preserve": list, "file": str, "target": str, "kind": str, "pictures": str, "held_out_top1": float,
    "seconds": float, "bytes": float, "calls": float, "n": int, "seen": str, "group": str, "cell": str, "asked": str,
    "attempt": str,
}  # fmt: skip
_SAME = ("role", "concept", "prompt", "seed", "judge", "score")  # equal in two models' rows that may be compared


@dataclass(frozen=True)
class Run:
    """One task: `run.json` as `info`, and the rows of `scores.jsonl`."""

    folder: Path  # that the rows' pictures are relative to
    info: dict[str, Any]
    rows: tuple[Row, ...]

    @cached_property
    def scores(self) -> Scores:
        """The rows by edit."""
        return Scores(self.rows)

    @property
    def erased(self) -> str:
        """What was erased, as text."""
        return self.info["concept"]["name"]

    @cached_property
    def names(self) -> dict[str, str]:
        """Displayed name by id, the unedited model first; if a method is used twice, all names have their ids."""
        edits = self.info["edits"]
        twice = len({e["method"] for e in edits}) < len(edits)
        return {BASE: "unedited"} | {e["id"]: e["id"] if twice else e["method"] for e in edits}

    @property
    def edits(self) -> list[str]:
        """Ids without the unedited model's."""
        return [i for i in self.names if i != BASE]


@dataclass(frozen=True)
class Sweep:
    """Many tasks: `bench.json` as `info`, where a task's `erased` is without those `after` which it comes.

    Rows carry their `method` and `nth`, which of the method's training seeds it was.
    """

    folder: Path
    info: dict[str, Any]
    rows: tuple[Row, ...]

    @property
    def methods(self) -> list[str]:
        """The unedited model, then the methods as they were given."""
        return [BASE, *dict.fromkeys(e["method"] for e in self.info["edits"])]


def read_run(folder: Path) -> Run:
    """A run folder, checked.

    Raises:
        UsageError: no run there.
        EffaceError: a file is damaged, or an edit was not measured on the unedited model's prompts and seeds.
    """
    path = folder / "run.json"
    info = _object(path, _text(path), RUN)
    _check(f"{path}: concept", info["concept"], {"name": str})
    for judge, card in info["detectors"].items():
        _check(f"{path}: detectors: {judge}", card, {"name": str, "id": str})
    for i, edit in enumerate(info["edits"]):
        _check(f"{path}: edits[{i}]", edit, {"id": str, "method": str})
    ids = [BASE, *(edit["id"] for edit in info["edits"])]
    if len(set(ids)) < len(ids):
        raise EffaceError(f"{path}: edits: expected different ids other than {BASE!r}, got {ids[1:]}; {AGAIN}")
    pictures = folder / info.get("pictures", ".")
    rows = tuple(_rows(folder / "scores.jsonl", {info["task"]: info["protocol"]}, ids))
    there: set[str] = set()  # pictures that were looked for
    for i, row in enumerate(rows, 1):
        _judged(f"{folder / 'scores.jsonl'}: row {i}", row, info["detectors"])
        if row["image"] not in there:
            _picture(f"{folder / 'scores.jsonl'}: row {i}", row, pictures)
            there |= {row["image"]} - {""}
    _paired(folder / "scores.jsonl", rows, ids)
    return Run(pictures, info, rows)


def read_sweep(folder: Path) -> Sweep:
    """A sweep's folder, checked.

    Raises:
        UsageError: no sweep there.
        EffaceError: a file is damaged, or a judge's rows come from several detectors.
    """
    path = folder / "bench.json"
    info = _object(path, _text(path), SWEEP)
    for i, task in enumerate(info["tasks"]):
        _check(f"{path}: tasks[{i}]", task, TASK)
        task["after"] = [name for one in task["after"] for name in ([one] if isinstance(one, str) else one)]
        task["erased"] = [name for name in task["erased"] if name not in task["after"]]
    for i, fit in enumerate(info["edits"]):
        _check(f"{path}: edits[{i}]", fit, FIT)
    method = {fit["label"]: fit["method"] for fit in info["edits"]} | {BASE: BASE}
    seeds = {m: sorted({e["seed"] for e in info["edits"] if e["method"] == m}) for m in method.values() if m != BASE}
    nth = {e["label"]: seeds[e["method"]].index(e["seed"]) for e in info["edits"]} | {BASE: 0}
    path = folder / "scores.jsonl"
    protocols = {task["name"]: task["protocol"] for task in info["tasks"]}
    rows = tuple(
        row | {"method": method[row["edit"]], "nth": nth[row["edit"]]} for row in _rows(path, protocols, method)
    )
    used: dict[str, str] = {}
    for row in rows:
        if is_rate(row["score"]) and used.setdefault(row["judge"], row["detector"]) != row["detector"]:
            got = f"{used[row['judge']]} and {row['detector']}"
            raise EffaceError(f"{path}: expected one detector for the judge {row['judge']!r}, got {got}; {AGAIN}")
    return Sweep(folder, info, rows)


def _rows(path: Path, protocols: Mapping[str, str], edits: Collection[str]) -> Iterable[Row]:
    for i, line in enumerate(_text(path).splitlines(), 1):
        if line.strip():
            yield _row(f"{path}:{i}", line, protocols, edits)


def _row(where: str, line: str, protocols: Mapping[str, str], edits: Collection[str]) -> Row:
    """One line of scores.jsonl."""
    raw = _object(where, line, ROW)
    if "about" in raw:
        _check(where, raw, {"about": dict})
    for key, allowed in {"edit": edits, "role": ROLES, "task": protocols}.items():
        if raw[key] not in allowed:
            raise EffaceError(f"{where}: expected {key!r} to be {_or(allowed)}, got {raw[key]!r}; {AGAIN}")
    if raw["protocol"] != protocols[raw["task"]]:
        both = f"{protocols[raw['task']]!r}, got {raw['protocol']!r}"
        raise EffaceError(f"{where}: expected 'protocol' to be {both}; {AGAIN}, in an empty folder")
    value = raw.get("value", "nothing")
    if is_rate(raw["score"]) and value not in (0, 1, None):
        raise EffaceError(f"{where}: expected 'value' to be {_or((0, 1, None))}, got {value!r}; {AGAIN}")
    if value is not None and (not isinstance(value, int | float) or not isfinite(value)):
        raise EffaceError(f"{where}: expected 'value' to be a finite number or None, got {value!r}; {AGAIN}")
    return raw | {"seen": raw.get("seen") or "", "detector": str(raw.get("detector") or "")}


def _judged(where: str, row: Row, detectors: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a row whose detector is not the one of its judge."""
    if not is_rate(row["score"]):
        return
    if row["judge"] not in detectors:
        raise EffaceError(f"{where}: expected 'judge' to be {_or(detectors)}, got {row['judge']!r}; {AGAIN}")
    if row["detector"] != (expected := detectors[row["judge"]]["id"]):
        raise EffaceError(f"{where}: expected 'detector' to be {expected!r}, got {row['detector']!r}; {AGAIN}")


def _picture(where: str, row: Row, folder: Path) -> None:
    """Refuse a judged picture that is not in the run's store; failed cells and numbers about sets have no picture."""
    image = folder / row["image"]
    drawn = row["image"] and image.resolve().is_relative_to(folder.resolve()) and image.is_file()
    if not drawn and (row["image"] or (row["value"] is not None and row["seed"] >= 0)):
        raise EffaceError(f"{where}: expected a picture in the run's store, got no file {row['image']!r}; {AGAIN}")


def _paired(path: Path, rows: Collection[Row], ids: Iterable[str]) -> None:
    """Refuse edits that were not measured on the unedited model's prompts and seeds, equally often."""
    plain = [row for row in rows if is_rate(row["score"]) and not row["attack"]]
    drawn = {i: Counter[tuple[Any, ...]]() for i in ids}
    for row in plain:
        drawn[row["edit"]][tuple(row[k] for k in _SAME)] += 1
    if not drawn[BASE] and (plain or not rows):  # a protocol may have no judge, but never no number
        raise EffaceError(f"{path}: expected scores of the unedited model ({BASE!r}), got none; {AGAIN}")
    for i, counts in drawn.items():
        odd = next((k for k in counts | drawn[BASE] if counts[k] != drawn[BASE][k]), None)
        if odd is not None:
            times = f"{counts[odd]} for {i!r} and {drawn[BASE][odd]} for {BASE!r}"
            raise EffaceError(
                f"{path}: expected as many {odd[5]} rows for {odd[2]!r}, seed {odd[3]}, got {times}; {AGAIN}"
            )


def _or(values: Iterable[object]) -> str:
    return " or ".join(map(repr, values))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = "nothing there" if isinstance(error, FileNotFoundError) else str(error)
        remedy = "give a folder `efface evaluate` or `efface bench` wrote"
        raise UsageError(f"{path}: expected a readable UTF-8 file, got {why}; {remedy}") from error


def _object(where: str | Path, text: str, types: Types) -> dict[str, Any]:
    try:
        value = from_json(text)
    except ValueError as error:
        got = f"{text[:40]!r} ({error})" if text.strip() else "nothing"
        raise EffaceError(f"{where}: expected a JSON object, got {got}; {AGAIN}") from error
    return _check(where, value, types)


def _check(where: str | Path, value: object, types: Types) -> dict[str, Any]:
    """Refuse a `value` that is not an object with these keys and types; optional keys may be null."""
    if not isinstance(value, dict):
        raise EffaceError(f"{where}: expected a JSON object, got {value!r}; {AGAIN}")
    given = {key: kind for key, kind in MAYBE.items() if value.get(key) is not None}
    for key, kind in {**given, **types}.items():
        got = value.get(key)
        if not isinstance(got, (int, float) if kind is float else kind) or (isinstance(got, bool) and kind is not bool):
            raise EffaceError(f"{where}: expected {key!r} to be {kind.__name__}, got {got!r}; {AGAIN}")
    return value
