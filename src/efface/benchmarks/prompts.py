"""Reads prompt files of other projects, which efface does not ship, and the lists of names that it ships."""

import csv
import hashlib
import io
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from efface.benchmarks.row import Role
from efface.benchmarks.spec import Cell, PromptFile
from efface.core.errors import UsageError, nearest
from efface.core.files import from_json

DATA = Path(__file__).parent / "data"
READ: dict[str, Callable[[str], list[dict[str, Any]]]] = {
    ".csv": lambda text: list(csv.DictReader(io.StringIO(text, newline=""))),
    ".tsv": lambda text: list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t")),
    ".json": from_json,
    ".jsonl": lambda text: [from_json(line) for line in text.splitlines() if line.strip()],
}
# what the copies that go round call their columns
PROMPT = ("prompt", "caption")
SEED = ("evaluation_seed", "sd_seed", "seed")
GUIDANCE = ("evaluation_guidance", "sd_guidance_scale", "guidance")
GIVE = ""  # a detector that only the user can have; --judge NAME=DETECTOR gives it
NONE = ""  # the judge of cells that are drawn and measured, but not judged
CLIP = "clip:openai/clip-vit-base-patch32"  # most papers' score of pictures and prompts
KID, FID = "kernel:inception", "frechet:inception"  # against the unedited model's pictures


@cache
def lists() -> dict[str, list[str]]:
    """Every list of names in data/names.toml."""
    return tomllib.loads((DATA / "names.toml").read_text(encoding="utf-8"))


def names(which: str) -> tuple[str, ...]:
    """One list of names, byte by byte as its protocol writes them.

    Raises:
        UsageError: no such list.
    """
    if which not in lists():
        raise UsageError(f"names: unknown list {which!r}; {nearest(which, lists())}")
    return tuple(lists()[which])


def read_prompts(path: Path, file: PromptFile) -> list[dict[str, Any]]:
    """Rows of a .csv, .tsv, .json or .jsonl file under our names: seed an int below 2^63, guidance a float, all else a string.

    Raises:
        UsageError: no such file, another format, a column that is missing, no rows or not as many as were published, a bad number.
    """
    if path.suffix.lower() not in READ:
        raise UsageError(
            f"{path}: expected a file of {', '.join(READ)}, got {path.suffix!r}; convert it to one of them"
        )
    try:
        rows = READ[path.suffix.lower()](
            path.read_text(encoding="utf-8-sig")
        )  # spreadsheets put a mark before the first column
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file of prompts; get it from {file.where}") from error
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read ({error}); get it anew from {file.where}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{path}: expected a list of objects, one for each prompt; get it anew from {file.where}")
    if not rows:
        raise UsageError(f"{path}: expected prompts, got an empty file; get it anew from {file.where}")
    if file.rows is not None and len(rows) != file.rows:
        raise UsageError(
            f"{path}: expected the {file.rows} rows of the published file, got {len(rows)}; "
            f"get the whole file from {file.where}, and to run a part of it give --prompts"
        )
    columns = {ours: _column(path, ours, theirs, rows[0]) for ours, theirs in file.columns.items()}
    return [
        {ours: _value(path, number, ours, row.get(theirs)) for ours, theirs in columns.items()}
        for number, row in enumerate(rows, 1)
    ]


def templated(
    role: Role, concepts: Iterable[str], templates: Sequence[str], seeds: Sequence[int], judge: str, group: str = ""
) -> list[Cell]:
    """Every concept in every template with every seed, in this order, as published prompt files have it."""
    return [
        Cell(role, concept, template.format(concept), seed, judge, group=group)
        for concept in concepts for template in templates for seed in seeds
    ]  # fmt: skip


def digest(path: Path) -> str:
    """SHA-256 of a file: what a run records of the prompts it was given."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def located(given: str | Path) -> Path:
    """A path as it is; "hf:datasets/OWNER/NAME/FILE" as the Hub's copy of that file.

    Raises:
        UsageError: a Hub address of another shape, or the Hub does not give the file.
    """
    if not str(given).startswith("hf:"):
        return Path(given)
    parts = str(given).removeprefix("hf:").split("/")
    if len(parts) < 4 or parts[0] != "datasets":
        raise UsageError(
            f"file: expected hf:datasets/OWNER/NAME/FILE, got {str(given)!r}; give such an address or a path"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download("/".join(parts[1:3]), "/".join(parts[3:]), repo_type="dataset"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UsageError(
            f"file: {str(given)!r} cannot be had from the Hub; check the address, or give a path"
        ) from error


def _column(path: Path, ours: str, theirs: Sequence[str], row: Mapping[str, Any]) -> str:
    """The first of the names that the file uses."""
    for name in theirs:
        if name in row:
            return name
    has = ", ".join(repr(name) for name in row)
    raise UsageError(
        f"{path}: expected a column {' or '.join(map(repr, theirs))} for the {ours}, got {has}; rename the column"
    )


def _value(path: Path, number: int, ours: str, value: Any) -> Any:
    """One entry as what it stands for. A prompt may be empty: one of I2P's is."""
    if value is None:
        raise UsageError(f"{path}: row {number} has no {ours}; complete the row")
    if ours not in ("seed", "guidance"):
        return str(value)
    try:
        return _seed(value) if ours == "seed" else float(value)
    except (ValueError, OverflowError) as error:
        expected = "a whole number from 0 to 2^63 - 1" if ours == "seed" else "a number"
        raise UsageError(
            f"{path}: row {number}: expected {expected} as {ours}, got {value!r}; correct the row"
        ) from error


def _seed(value: Any) -> int:
    """Half of I2P's seeds need more than 31 bits; pandas writes whole numbers as 7.0 where a column has gaps."""
    text = str(value).strip()
    seed = int(text.removesuffix(".0"))
    if not 0 <= seed < 2**63:
        raise ValueError(text)
    return seed
