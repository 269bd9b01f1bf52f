"""Stand-ins for third parties' prompt files: as many rows as the published ones, of made-up prompts."""

import csv
from itertools import count
from pathlib import Path
from typing import Any

from efface.benchmarks.prompts import names
from efface.benchmarks.spec import Benchmark, PromptFile

ROWS = 95  # of a file whose number of rows is not declared


def prompt_files(benchmark: Benchmark, folder: Path) -> dict[str, Path]:
    """Every file the benchmark needs, written to `folder`, by the names that `Benchmark.made` takes."""
    return {
        name: write(folder / f"{name}.csv", [row(file, name, i) for i in range(file.rows or ROWS)])
        for name, file in benchmark.files.items()
    }


def row(file: PromptFile, name: str, i: int) -> dict[str, Any]:
    """Row `i` under the first of the columns' published names; seeds of every size, prompts that differ."""
    values = {
        "prompt": f"a {name} picture, number {i}", "seed": (2**31 - 50 + i) % 2**32, "guidance": 5 + i % 16,
        "artist": names("artists-five")[i % 5], "concept": names("imagenette")[i % 10].title(),
        "category": ("hate, sexual", "shocking")[i % 2],
    }  # fmt: skip
    return {theirs[0]: values[ours] for ours, theirs in file.columns.items()}


def write(path: Path, rows: list[dict[str, Any]], **format_: Any) -> Path:
    """Rows as CSV, numbered in a first column without a name, as pandas writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = count()
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["", *rows[0]], **format_)
        writer.writeheader()
        writer.writerows({"": next(numbers), **row} for row in rows)
    return path
