"""What may be said of a picture that asks for what was erased: only where the unedited model drew it, and only if it changed."""

from typing import Any

from efface.benchmarks.row import UNCHANGED, paired


def row(edit: str, seed: int, value: float | None, score: str = "top1", **changes: Any) -> dict[str, Any]:
    return {
        "task": "tiger", "edit": edit, "role": "erase", "concept": "tiger", "prompt": "a tiger", "seed": seed, "attack": "",
        "judge": "concept", "score": score, "value": value, "cell": f"{edit}{seed}", **changes,
    }  # fmt: skip


def of(edit: str, rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [
        (r["value"], r["shown"], r["unchanged"], r["flipped"]) for r in paired(rows)
        if r["edit"] == edit and r["score"] == "top1"
    ]  # fmt: skip


def test_pairs_are_counted_where_the_unedited_model_shows_it_and_what_did_not_change_is_not_erased() -> None:
    base = [row("base", s, v) for s, v in enumerate([1, 1, 0, 1, None])]
    edit = [row("uce", s, v) for s, v in enumerate([0, 0, 0, 1, 0])]
    far = [row("uce", s, v, "perceptual", judge="") for s, v in enumerate([0.4, UNCHANGED / 2, 0.4, 0.0, 0.4])]
    assert of("uce", base + edit + far) == [
        (0, True, False, False),
        (1, True, True, True),  # the same picture, and the detector says leopard: its error
        (0, False, False, False),  # not drawn before: nothing to erase
        (1, True, True, False),
        (0, True, False, False),  # the unedited picture could not be judged
    ]


def test_another_task_edit_or_role_is_another_picture() -> None:
    other = [row("uce", 0, 0.0, "perceptual", task="rose"), row("esd", 0, 0.0, "perceptual")]
    rows = [row("base", 0, 1), row("uce", 0, 0), *other]
    assert of("uce", rows) == [(0, True, False, False)]
    kept = [row("base", 0, 0, role="neighbour"), row("uce", 0, 1, role="neighbour")]
    assert paired(kept) == kept


def test_the_rows_themselves_stay_as_they_were() -> None:
    rows = [row("base", 0, 1), row("uce", 0, 0), row("uce", 0, 0.0, "perceptual")]
    before = [dict(r) for r in rows]
    paired(rows)
    assert rows == before
