"""Errors of a detector on pictures of the unedited model, to be shown with every rate it gives. Without torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from efface.metrics.rates import Rate

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Calibration:
    """Error rates of a detector, overall and by concept.

    `misses` is an upper bound: a concept that the unedited model failed to draw also counts as missed.
    """

    misses: Rate
    false_alarms: Rate
    by_concept: dict[str, "Calibration"] = field(default_factory=dict)


def calibration(rows: Iterable[Mapping[str, Any]], base: str = "base") -> dict[str, Calibration]:
    """Each detector's errors, by its id, over the best guesses ("top1") for `base`'s unattacked pictures in rows of scores.jsonl.

    Misses: pictures of a concept that are not classified as it. False alarms of a concept: pictures of other concepts that are
    classified as it; overall: pictures classified as another concept in the rows, each picture once.
    """
    by_detector: dict[str, dict[tuple[Any, ...], Mapping[str, Any]]] = {}
    for r in rows:
        if r["edit"] == base and r["score"] == "top1" and not r.get("attack"):
            # a picture that several comparisons share is one picture
            by_detector.setdefault(r["detector"], {})[r["concept"], r["prompt"], r["seed"]] = r
    return {name: _errors(list(pictures.values())) for name, pictures in by_detector.items()}


def same_label(label: str, asked: str) -> bool:
    """Whether a detector's label is the expected one, ignoring case, underscores and further names after a comma."""
    names = {label, *label.split(",")}
    return " ".join(asked.lower().split()) in {" ".join(n.lower().replace("_", " ").split()) for n in names}


def _errors(pictures: Rows) -> Calibration:
    concepts = list(dict.fromkeys(p["concept"] for p in pictures))
    named = {seen: {c for c in concepts if same_label(seen, c)} for seen in {p["seen"] for p in pictures}}
    each = {
        c: Calibration(
            _rate([p for p in pictures if p["concept"] == c], lambda p: not p["value"]),
            _rate([p for p in pictures if p["concept"] != c], lambda p, c=c: c in named[p["seen"]]),
        )
        for c in concepts
    }
    wrong = _rate(pictures, lambda p: not p["value"] and named[p["seen"]])
    return Calibration(_rate(pictures, lambda p: not p["value"]), wrong, each)


def _rate(pictures: Rows, hit: Any) -> Rate:
    """Share of the judged pictures that `hit`; pictures on which the detector failed are left out."""
    judged = [p for p in pictures if p["value"] is not None]
    return Rate(sum(bool(hit(p)) for p in judged), len(judged), len(pictures) - len(judged))
