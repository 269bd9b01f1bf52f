"""The table of the judges' errors."""

from collections.abc import Mapping
from html import escape

from efface.metrics.calibration import Calibration
from efface.report.names import percent
from efface.report.page import Th, note, rate_cell, table
from efface.report.scores import Row


def judges_section(found: Mapping[str, Calibration], cards: Mapping[str, Row]) -> str:
    """Each judge's errors on the unedited model's pictures."""
    named = {c["id"]: (judge, c) for judge, c in cards.items()}
    rows = []
    for i, errors in found.items():
        judge, held = named.get(i, ("", {}))
        right = held.get("held_out_top1")
        wrong = "not recorded" if right is None else percent(1.0 - right)
        head = f"{escape(held.get('name', i))}<small>{escape(judge)} judge, {escape(i)}</small>"
        rows.append((head, [rate_cell(errors.misses), rate_cell(errors.false_alarms), wrong]))
    if not rows:
        return note("The judges' own errors were not measured: none names its best guess.")
    heads = [
        "Judge", Th("Misses", "asked for, not found"), Th("False alarms", "another asked-for concept"), Th("Held out", "wrong on"),
    ]  # fmt: skip
    explanation = (
        "Of the unedited model's pictures. A miss is the detector's error or the model's, which did not draw it: an upper bound. "
        "Rates above are not corrected for these errors."
    )
    return f"<h3>How wrong the judges are</h3>{table('How wrong the judges are', heads, rows)}{note(explanation)}"
