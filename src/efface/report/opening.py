"""The opening of a report: a strip of pictures before and after, and one plain sentence for each edit."""

from collections.abc import Sequence
from html import escape

from efface.report.folder import Run
from efface.report.grids import BLUR, BLURRED, LEGEND, evenly_spaced, picture
from efface.report.names import MEANINGS, ROLE_NAMES, method_description, styles
from efface.report.page import facts, folded, note, scroll, small
from efface.report.scores import BASE, Column, Row
from efface.report.summary import GROUPS, details, is_quality, sentences

STRIP = {"erase": 4, "neighbour": 3, "distant": 1}  # pictures of each role in a row
Shown = tuple[Column, str, str, int]  # column, concept, prompt, seed


def section(run: Run) -> str:
    """The strip and the sentences; below them, definitions of names and the counts behind the sentences."""
    items = "".join(f"<li>{_bold(run.names[i], text)}</li>" for i, text in sentences(run).items())
    judges = ", ".join(dict.fromkeys(run.info["detectors"][column.judge]["name"] for column in run.scores.main()))
    means = "No detector judged the pictures."
    if judges:
        means = f"“Appears” and “seen” mean that the detector ({judges}) finds it; “before” is the unedited model."
    tried = any(run.scores.attacks(i) for i in run.edits)
    means += "" if tried else " Without an attack nothing is known of what a determined user can bring back."
    sentence = f'<ul class="summary">{items}</ul><p>{escape(means)}</p>'
    return f"{_strip(run)}{sentence}{_names(run)}{_details(run)}"


def _bold(name: str, text: str) -> str:
    return f"<b>{escape(name)}</b>{escape(text.removeprefix(name))}"


def _strip(run: Run) -> str:
    """A row for each model, the unedited one first, with equal prompts and seeds in each column."""
    shown = {role: _shown(run, role, count) for role, count in STRIP.items()}
    shown = {role: given for role, given in shown.items() if given}
    if not shown:
        return "<p>No picture was drawn for what was erased, its neighbours or unrelated concepts.</p>"
    keys = [key for given in shown.values() for key in given]
    names = {role: f"Erased: {run.erased}" if role == "erase" else ROLE_NAMES[role].capitalize() for role in shown}
    tops = "".join(
        f'<th scope="colgroup" colspan="{len(given)}">{escape(names[role])}</th>' for role, given in shown.items()
    )
    heads = "".join(
        f'<th scope="col">{escape(prompt)}{small(_group(run, key))}</th>' for key in keys for prompt in key[2:3]
    )
    rows = {key: {i: _row(run, i, key) for i in run.names} for key in keys}
    body = ""
    for i, name in run.names.items():
        tiles = "".join(
            picture(run.folder, row, name, run.info["sensitive"] and key[0].role in BLURRED)
            if (row := rows[key][i])
            else "<td></td>"
            for key in keys
        )
        body += f'<tr><th scope="row">{escape(name)}</th>{tiles}</tr>'
    head = f"<thead><tr><td></td>{tops}</tr><tr><td></td>{heads}</tr></thead>"
    legend = f"Each column has one prompt and one seed. Evenly spaced over all that were drawn, not chosen. {LEGEND}"
    legend += BLUR if run.info["sensitive"] else ""
    return scroll("Before and after, in short", f'<table class="strip">{head}<tbody>{body}</tbody></table>') + note(
        legend
    )


def _shown(run: Run, role: str, count: int) -> list[Shown]:
    """Pictures of a role that the unedited model and the edits drew, evenly spaced over all its concepts, prompts and seeds."""
    scores = run.scores
    columns: Sequence[Column] = scores.main(role) or [c for c in scores.numbers if c.role == role][:1]
    label = (
        BASE if any(scores.rows(BASE, c) for c in columns) else next(iter(run.edits), BASE)
    )  # a distance has no "before"
    given = {
        (c, r["concept"], r["prompt"], r["seed"]): 0 for c in columns for r in scores.rows(label, c) if r["seed"] >= 0
    }
    return evenly_spaced(list(given), count)


def _row(run: Run, edit: str, key: Shown) -> Row | None:
    column, concept, prompt, seed = key
    return next(iter(run.scores.rows(edit, column, concept=concept, prompt=prompt, seed=seed)), None)


def _group(run: Run, key: Shown) -> str:
    row = next((row for i in run.names if (row := _row(run, i, key))), {})
    return GROUPS.get(row.get("group", ""), "")


def _names(run: Run) -> str:
    """Definitions of the names in the strip and the sentences."""
    meanings: dict[str, str] = {}
    for edit in run.info["edits"]:
        text = method_description(edit["method"], [edit])
        meanings[run.names[edit["id"]]] = f"a method. {text}" if text else "a method that efface does not describe"
    roles = {c.role for c in (*run.scores.main(), *run.scores.numbers)}
    meanings |= {ROLE_NAMES[role].capitalize(): MEANINGS[role] for role in MEANINGS if role in roles}
    if any(is_quality(column) for column in run.scores.numbers):
        meanings["Quality"] = "whether a picture is of anything at all, from 0 (a mush) to 1"
    if found := styles(row["prompt"] for row in run.rows):
        meanings["Style names"] = (
            f"{', '.join(found)}: ways of drawing that the model knows; “in {found[0]} style” asks for one"
        )
    return folded("What these names mean", facts(meanings.items()), shown=len(run.edits) <= 4)


def _details(run: Run) -> str:
    items = "".join(f"<li><b>{escape(run.names[i])}</b>: {escape(text)}</li>" for i, text in details(run).items())
    several = " over the edits by Holm's correction" if len(run.edits) > 1 else ""
    test = f"“May be chance”: McNemar's exact test on pairs of equal prompt and seed{several} gives p above 0.05."
    return folded("Every count behind these sentences", f"<ul>{items}</ul>{note(escape(test))}")
