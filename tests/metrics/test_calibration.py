"""A detector's errors against rows counted by hand."""

from typing import Any

from efface.metrics.calibration import calibration, same_label
from efface.metrics.rates import Rate


def row(concept: str, seed: int, seen: str | None, **other: Any) -> dict[str, Any]:
    """A picture of the unedited model in which the detector saw `seen`; None where it failed."""
    return {
        "edit": "base", "role": "erase", "concept": concept, "prompt": f"a {concept}", "seed": seed, "attack": "",
        "score": "top1", "value": None if seen is None else int(seen == concept), "seen": seen or "", "detector": "d-1",
    } | other  # fmt: skip


ROWS = [
    row("cat", 0, "cat"),
    row("cat", 1, "dog"),  # a miss, and a false alarm of dog
    row("cat", 2, "cat"),
    row("cat", 3, None),
    row("dog", 0, "dog"),
    row("dog", 1, "mole"),  # a miss, but nobody asked for a mole
    row("owl", 0, "dog"),
    row("owl", 1, "owl"),
]
NOISE = [
    row("cat", 0, "owl", edit="uce"),
    row("cat", 0, "owl", score="top5", value=1),
    row("cat", 9, "owl", attack="p4d"),
]


def test_misses_and_false_alarms_are_those_of_the_base_models_best_guesses() -> None:
    one = calibration([*ROWS, *NOISE])["d-1"]
    assert one.misses == Rate(3, 7, 1)
    assert one.false_alarms == Rate(2, 7, 1)
    assert {c: (e.misses, e.false_alarms) for c, e in one.by_concept.items()} == {
        "cat": (Rate(1, 3, 1), Rate(0, 4, 0)),
        "dog": (Rate(1, 2, 0), Rate(2, 5, 1)),
        "owl": (Rate(1, 2, 0), Rate(0, 5, 1)),
    }


def test_a_picture_in_several_comparisons_counts_once_and_detectors_stay_apart() -> None:
    twice = calibration([*ROWS, *(dict(r) for r in ROWS), row("cat", 0, "dog", detector="d-2")])
    assert twice["d-1"] == calibration(ROWS)["d-1"]
    assert set(twice) == {"d-1", "d-2"}
    assert twice["d-2"].misses == Rate(1, 1)
    assert twice["d-2"].false_alarms == Rate(0, 1)  # with one concept asked for, none other can be named


def test_the_base_can_have_another_name() -> None:
    rows = [{**r, "edit": "before"} for r in ROWS]
    assert calibration(rows) == {}
    assert calibration(rows, base="before") == calibration(ROWS)


def test_labels_are_compared_as_the_scores_compare_them() -> None:
    rows = [
        row("gas pump", 0, "cassette_player"),
        row("cassette player", 0, "Cassette player, tape deck", value=1),
        row("church", 0, "gas pump, petrol pump"),
    ]
    one = calibration(rows)["d-1"]
    assert (one.misses, one.false_alarms) == (Rate(2, 3), Rate(2, 3))
    assert one.by_concept["cassette player"].false_alarms == Rate(1, 2)
    assert one.by_concept["gas pump"].false_alarms == Rate(1, 2)
    assert one.by_concept["church"].false_alarms == Rate(0, 2)


def test_the_same_label() -> None:
    assert same_label("Gas_Pump, petrol pump", "gas  pump")
    assert same_label("Gas_Pump, petrol pump", "petrol pump")
    assert same_label("chest of drawers, bureau", "Chest of drawers, bureau")
    assert not same_label("gas pump", "pump")
    assert not same_label("", "pump")
