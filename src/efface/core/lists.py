"""The user's lists of concepts and prompts: names separated by commas, or @FILE, with one grammar for every command. No torch."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from efface.core.concept import Kind
from efface.core.errors import UsageError, nearest
from efface.core.files import read_text

NAMES = ("name", "concept", "prompt")  # a table's columns, in order of preference
TARGETS = ("target", "to")
WORDS = ("prompts", "synonyms", "words")
SEVERAL = "|"  # separates several values in one field


@dataclass(frozen=True)
class Entry:
    """One entry of a list; a table may give a target, a kind, other words for it, and what to preserve with it."""

    name: str
    target: str | None = None
    kind: str = ""
    prompts: tuple[str, ...] = ()
    preserve: tuple[str, ...] = ()


def entries(text: str, flag: str, prefer: str = "name") -> list[Entry]:
    """The entries of a user's list: separated by commas, with "quotes" around a name that has a comma, or in a file, as @FILE.

    A file has one entry a line; empty lines and lines that start with # are ignored. Or it is a table, CSV or TSV, with a column
    "name", "concept" or "prompt" (`prefer` is taken first) and perhaps "target" or "to", "kind", "prompts", "synonyms" or "words",
    and "preserve", where | separates several.

    Raises:
        UsageError: no such file, no names in it, other separators, an unclosed quote, or a broken row: the message has its number.
    """
    if text.startswith("@"):
        return _read(Path(text[1:]), flag, prefer)
    if ";" in text:
        raise UsageError(f"{flag}: expected names separated by commas, got {text!r}; write a,b,c or give @FILE")
    return [Entry(name) for name in _split(text, flag) if name]


def listed(text: str, flag: str, prefer: str = "name") -> list[str]:
    """The names alone of a list for a flag that takes nothing else of a table.

    Raises:
        UsageError: as `entries`.
    """
    return [entry.name for entry in entries(text, flag, prefer)]


def _split(text: str, where: str) -> list[str]:
    try:
        rows = list(csv.reader([text], skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise UsageError(
            f"{where}: expected names separated by commas, got {text!r} ({error}); close the quote"
        ) from error
    return [name.strip() for row in rows for name in row]


def _read(path: Path, flag: str, prefer: str) -> list[Entry]:
    if not path.is_file():
        raise UsageError(f"{flag}: no such file {str(path)!r}; give @FILE with one name a line, or a CSV file")
    text = read_text(path)
    lines = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip() and not line.startswith("#")]
    if not lines:
        raise UsageError(f"{flag}: expected names in {str(path)!r}, got none; write one a line")
    first, suffix = lines[0][1], path.suffix.lower()
    mark = "\t" if suffix == ".tsv" or ("\t" in first and suffix != ".csv") else ","
    head = [cell.strip().lower() for cell in first.split(mark)]
    if suffix in (".csv", ".tsv") or (len(head) > 1 and any(cell in NAMES for cell in head)):
        return _table(path, text, mark, flag, prefer)
    for i, line in lines:
        if ";" in line and prefer == "name":
            raise UsageError(
                f"{flag}: {path}, line {i}: expected one name, got {line.strip()!r}; write one a line, or a CSV file with a column 'name'"
            )
    return [Entry(line.strip()) for _, line in lines]


def _table(path: Path, text: str, mark: str, flag: str, prefer: str) -> list[Entry]:
    lines = [line for line in text.splitlines(keepends=True) if line.strip() and not line.startswith("#")]
    try:
        rows = list(csv.reader(lines, delimiter=mark, skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise UsageError(f"{flag}: {path}: expected a table, got a broken row ({error}); close its quotes") from error
    head = [cell.strip().lower() for cell in rows[0]]
    order = [prefer, *(name for name in NAMES if name != prefer)]
    column = next((name for name in order if name in head), None)
    if column is None:
        raise UsageError(
            f"{flag}: expected a column {', '.join(map(repr, NAMES))} in {str(path)!r}, got {rows[0]}; rename the column"
        )
    found = []
    for i, row in enumerate(rows[1:], 1):
        where = f"{flag}: {path}, row {i}"
        if len(row) != len(head):
            raise UsageError(
                f"{where}: expected {len(head)} fields, got {len(row)}: {mark.join(row)!r}; quote a field that contains {mark!r}"
            )
        cells = dict(zip(head, (cell.strip() for cell in row), strict=True))
        found.append(_entry(cells, column, where))
    if not found:
        raise UsageError(f"{flag}: expected rows below the header of {str(path)!r}, got none; write one for each name")
    return found


def _entry(cells: dict[str, str], column: str, where: str) -> Entry:
    if not cells[column]:
        raise UsageError(f"{where}: expected a {column}, got none; fill it in or delete the row")
    kind, kinds = cells.get("kind", ""), get_args(Kind)
    if kind and kind not in kinds:
        raise UsageError(f"{where}: unknown kind {kind!r}; {nearest(kind, kinds)}")
    own = _first(cells, TARGETS)
    words = _first(cells, [name for name in WORDS if name != column]) or ""
    return Entry(cells[column], own, kind, _several(words), _several(cells.get("preserve", "")))


def _first(cells: dict[str, str], names: Sequence[str]) -> str | None:
    return next((cells[name] for name in names if name in cells), None)


def _several(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(SEVERAL) if part.strip())


def quoted(name: str) -> str:
    """A name as an entry of a list."""
    return f'"{name}"' if "," in name else name
