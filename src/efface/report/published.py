"""Published results under a protocol, compared with ours."""

import csv
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from efface.report.board import Board
from efface.report.names import column_title, score_name
from efface.report.page import note, rate_cell, table
from efface.report.scores import BASE, Row

FIELDS = ("method", "protocol", "metric", "value", "std", "source", "note")


def published(protocol: str) -> list[Row]:
    """Rows of benchmarks/data/published.csv for a benchmark."""
    file = files("efface.benchmarks").joinpath("data/published.csv")
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    return [row for row in csv.DictReader(lines) if row["protocol"] == protocol]


def section(rows: Sequence[Row], board: Board, model: str) -> str:
    """Published numbers, and ours where method and metric have the same names."""
    if not rows:
        return ""
    columns = {
        name: column
        for column in reversed(board.scores.rates)
        for name in (score_name(column), column_title(column, board.scores))
    }
    named, shown = {m.lower(): m for m in board.methods}, []
    if model.endswith("stable-diffusion-v1-4"):
        named["sd 1.4"] = BASE
    for row in rows:
        column = columns.get(row["metric"])
        ours = "&ndash;"
        if column and (mine := named.get(row["method"].lower())):
            ours = rate_cell(board.scores.rate(mine, column), "#tasks", board.scores.interval(mine, column))
        std = f" ± {escape(row['std'])}" if row["std"] else ""
        cells = [
            escape(row["metric"]),
            f"{escape(row['value'])}{std}",
            ours,
            escape(row["source"]),
            escape(row["note"]),
        ]
        shown.append((escape(row["method"]), cells))
    heads = ["Method", "Metric", "Published", "Ours", "Source", "Note"]
    explanation = "As the papers print them, with their models, seeds and detectors: not measured here."
    return f"<h2>Published</h2>{table('Published', heads, shown, 'seen')}{note(explanation)}"
