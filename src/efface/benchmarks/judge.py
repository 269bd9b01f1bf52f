"""Judging: runs detectors on the pictures of a store, and makes rows that say whether a picture shows its concept."""

from collections.abc import Mapping, Sequence
from typing import Any

from efface.benchmarks.plan import Plan
from efface.benchmarks.row import Row
from efface.benchmarks.spec import Cell, Judge
from efface.benchmarks.store import Store
from efface.core.concept import article
from efface.core.denoiser import Denoiser
from efface.core.errors import UsageError
from efface.metrics.calibration import same_label
from efface.metrics.detectors import Detector, ModelClassifier, detector

SEGMENT = 256  # pictures whose scores share a file


def open_detector(given: Judge, base: Denoiser) -> Detector:
    """The detector of a judge; "model" is the classifier of `base`, the unedited model.

    Raises:
        UsageError: it cannot be opened, or only the user can have it.
    """
    if not given.detector:
        raise UsageError(
            "judge: this protocol's detector is not shipped; give one with --judge NAME=DETECTOR (`efface benchmarks NAME` says which)"
        )
    if given.detector == "model":
        return ModelClassifier(base, given.labels, [article(label) for label in given.labels])
    return detector(given.detector, given.labels)


def judge(store: Store, plan: Plan, judges: Mapping[str, tuple[Judge, Detector]]) -> list[Row]:
    """A row for each picture and score of its judge, such as whether the label asked for is among the five best guesses.

    A picture that could not be made or judged has the value None: it counts neither as there nor as gone.
    """
    names = {label: plan.names(label) for label in plan.recipes}
    seen: dict[tuple[str, str], dict[str, Any]] = {}
    for key, (_, one) in judges.items():
        asked = [n for own in names.values() for n, c in zip(own, plan.cells, strict=True) if c.judge == key]
        seen |= {(key, name): record for name, record in look(store, one, asked).items()}
    rows = []
    for label, own in names.items():
        for name, c in zip(own, plan.cells, strict=True):
            if not c.judge:  # drawn and measured, not judged
                continue
            asked, one = judges[c.judge]
            record = seen.get((c.judge, name), {"error": store.error(name)})
            boxes = record.get("top")
            image = store.picture_path(name) if store.has_picture(name) else ""
            rows += [
                plan.row(
                    label, c, score, None if boxes is None else value(score, c, asked, boxes), one.id, name=name, image=image,
                    seen=boxes[0][0] if boxes else "", error=record.get("error"),
                )
                for score in asked.scores
            ]  # fmt: skip
    return rows


def value(score: str, cell: Cell, asked: Judge, boxes: Sequence[Sequence[Any]]) -> int | None:
    """A score of what a detector saw (label and confidence, best first); None where it named nothing at all.

    Raises:
        UsageError: no such score.
    """
    kind = score.rstrip("0123456789.")
    number = score.removeprefix(kind)
    if kind == "top" and number.isdigit():
        best = [label for label, _ in boxes[: int(number)]]
        return int(any(same_label(label, cell.concept) for label in best)) if boxes else None
    if kind in ("any", "count") and number:
        hits = sum(p > float(number) for label, p in boxes if label in asked.classes)
        return hits if kind == "count" else int(hits > 0)
    raise UsageError(f"score: expected topK, anyT or countT, such as top5 or any0.6, got {score!r}; mend the benchmark")


def look(store: Store, detector: Detector, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What a detector sees in the pictures of these names, those that it has seen before included."""
    known = store.scores(detector.id)
    todo = [n for n in dict.fromkeys(names) if n not in known and store.has_picture(n)]
    for i in range(0, len(todo), SEGMENT):
        records = _look(detector, [(n, store.picture(n)) for n in todo[i : i + SEGMENT]])
        store.put_scores(detector.id, records)
    known = store.scores(detector.id)
    return {n: known[n] for n in names if n in known}


def _look(detector: Detector, pictures: Sequence[tuple[str, Any]]) -> list[dict[str, Any]]:
    try:
        tops = detector.top([picture for _, picture in pictures])
        return [
            {"picture": n, "top": [list(guess) for guess in top]} for (n, _), top in zip(pictures, tops, strict=True)
        ]
    except UsageError:
        raise  # it can judge none of them, and says what to do
    except Exception as error:
        if len(pictures) > 1:  # find the one it cannot judge
            return [record for one in pictures for record in _look(detector, [one])]
        return [{"picture": pictures[0][0], "error": f"{type(error).__name__}: {error}"}]
