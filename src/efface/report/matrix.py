"""The matrix of changes: each edit's success rate on each concept, minus the unedited model's."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from efface.report.folder import Run
from efface.report.names import ROLE_NAMES, role_name
from efface.report.page import WIDEST, Th, anchor, folded, link, matrix_table, note
from efface.report.scores import BASE, Column, Scores

MOST = 80  # maximum columns on the page; the files in the same folder have all
EXPLANATION = "Change of the success rate against the unedited model, in percentage points. Blue is more erased, or more kept; orange less."

Key = tuple[Column, str]  # a column and a concept


def concept_columns(scores: Scores, *roles: str) -> list[Key]:
    """Every concept of every role."""
    return [(column, concept) for column in scores.main(*roles) for concept in scores.concepts(column)]


def changes(scores: Scores, model: str, keys: Iterable[Key], base: str = BASE, **where: object) -> dict[Key, float]:
    """Success rate of a model minus that of the unedited one, for concepts measured on both."""
    found = {}
    for column, concept in keys:
        after, before = (scores.rate(i, column, concept=concept, **where) for i in (model, base))
        if after.n and before.n:
            found[column, concept] = after.value - before.value
    return found


def shaded(change: float | None, to: str = "", title: str = "") -> str:
    """A cell coloured by the change, blue or orange."""
    if change is None:
        return "<td></td>"
    points = round(100 * change)
    way = "up" if points > 0 else "down" if points < 0 else "same"
    shown = f"{'+' if points > 0 else '−' if points < 0 else ''}{abs(points)}"
    style = f' style="--much:{min(0.7, abs(change) * 0.7):.2f}"' if points else ""
    return f'<td class="{way}"{style} title="{escape(title)}">{link(shown, to)}</td>'


def matrix(label: str, first: str, heads: Sequence[Th], rows: Mapping[str, Sequence[str]]) -> str:
    """The table; rows are (HTML head, cells)."""
    shown = [(head, cells[:MOST]) for head, cells in rows.items()]
    more = f" The first {MOST} of {len(heads)} columns." if len(heads) > MOST else ""
    wide = matrix_table(label, [first, *heads[:MOST]], shown)
    few = min(len(heads), MOST) < WIDEST
    return (wide if few else folded(f"{label}: {min(len(heads), MOST)} concepts", wide)) + note(EXPLANATION + more)


def section(run: Run) -> str:
    """Edits by concepts."""
    keys, scores = concept_columns(run.scores), run.scores
    heads = [Th(f"{concept} ", role_name(column, scores)) for column, concept in keys]
    rows = {}
    for i in run.edits:
        found = changes(scores, i, keys)
        rows[escape(run.names[i])] = [
            shaded(found.get((column, c)), f"#{anchor(column)}", f"{run.names[i]}: {c}, {ROLE_NAMES[column.role]}")
            for column, c in keys
        ]
    return f"<h2>Interference</h2>{matrix('Interference', 'Edit', heads, rows)}"
