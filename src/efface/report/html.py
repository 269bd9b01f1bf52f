"""The HTML report of a run folder, and the data files next to it."""

from html import escape
from pathlib import Path

from efface.core.errors import UsageError
from efface.core.files import write_text
from efface.metrics.calibration import calibration
from efface.report import attacks, axes, grids, matrix, opening
from efface.report.card import card
from efface.report.data import report_json, rows_csv, run_tex
from efface.report.folder import Run, read_run
from efface.report.judges import judges_section
from efface.report.leaderboard import write_leaderboard
from efface.report.names import DISTANCES, GAP, RATES, percent, role_name, score_name
from efface.report.page import (
    Th,
    anchor,
    commands,
    facts,
    mean_cell,
    note,
    page,
    rate_cell,
    seconds,
    size,
    small,
    table,
)
from efface.report.plots import scatter
from efface.report.scores import BASE, Column, is_rate
from efface.report.summary import aim, p_values, seen_instead


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the report of a run's or a sweep's folder and return its page.

    A run gets report.html, report.json (every number), scores.csv (every row), table.tex and card.md, or `output` and files with its
    name; a sweep gets a leaderboard, and each of its tasks a report.

    Raises:
        UsageError: the folder is damaged, or `output` is given for a sweep.
        EffaceError: the report cannot be written.
    """
    folder = Path(folder)
    if (folder / "bench.json").exists():
        if output is not None:
            raise UsageError(
                f"output: expected none for a sweep, whose page links to its reports, got {output}; leave it out"
            )
        for run in sorted(folder.glob("*/run.json")):
            write_report(run.parent)
        return write_leaderboard(folder)
    run = read_run(folder)
    path = folder / "report.html" if output is None else output
    given = {
        "report.json": report_json(run), "scores.csv": rows_csv(run.rows), "table.tex": run_tex(run),
        "card.md": card(run),
    }  # fmt: skip
    write_text(path, render(run))
    for name, text in given.items():
        write_text(folder / name if output is None else output.with_suffix(Path(name).suffix), text)
    return path


def render(run: Run) -> str:
    """The page: pictures and sentences, then figures and tests, then tables."""
    parts = (
        opening.section,
        _terms,
        _trade_off,
        _tests,
        attacks.section,
        grids.section,
        axes.section,
        _scores,
        matrix.section,
        _instead,
        _cost,
        _method,
    )
    return page(run.info["title"], (part(run) for part in parts))


def _terms(run: Run) -> str:
    """Definitions of the two rates."""
    return f"<h2>Figures and tests</h2>{note(RATES)}" if run.scores.rates else ""


def _tests(run: Run) -> str:
    """Tests of the changes."""
    scores, columns = run.scores, run.scores.main()
    if not columns:
        return ""
    p_holm, rows = p_values(scores, run.edits), []
    for column in columns:
        cells = []
        for edit in run.edits:
            (lost, won), p = scores.pairs(BASE, edit, column), p_holm[edit, column]
            shown = f"p = {p:.2g}" if p >= 0.001 else "p &lt; 0.001"
            cells.append(f"{f'<b>{shown}</b>' if p <= 0.05 else shown}{small(f'{won} better, {lost} worse')}")
        rows.append((f"{escape(score_name(column))}{small(escape(role_name(column, scores)))}", cells))
    explanation = (
        "Pairs of equal prompt and seed that count as a success after the edit and not before (better), or the reverse (worse). "
        "p: McNemar's exact test that both are equally likely, corrected over the edits of a row by Holm; bold: p &le; 0.05."
    )
    heads = ["Rate", *(run.names[i] for i in run.edits)]
    return f"<h3>More than chance?</h3>{table('Tests', heads, rows)}{note(explanation)}"


def _scores(run: Run) -> str:
    """Every rate and mean, and the judges' errors."""
    columns = [*run.scores.rates, *run.scores.numbers]
    rows = [
        (
            f"{escape(score_name(column))}{small(escape(role_name(column, run.scores)))}",
            [_number(run, i, column) for i in run.names],
        )
        for column in columns
    ]
    explanation = (
        f"Small: 95&nbsp;% interval (Wilson's, bootstrap for what is no rate) and number of pictures n. {DISTANCES}"
    )
    shown = f"<h2>All scores</h2>{table('All scores', ['Score', *run.names.values()], rows)}{note(explanation)}"
    return shown + judges_section(calibration(run.rows), run.info["detectors"])


def _number(run: Run, edit: str, column: Column) -> str:
    to = f"#{anchor(column)}"
    return (
        rate_cell(run.scores.rate(edit, column), to)
        if is_rate(column.score)
        else mean_cell(run.scores.mean(edit, column))
    )


def _trade_off(run: Run) -> str:
    """A plot of erased against kept, by the same judge."""
    for gone in run.scores.main("erase"):
        for kept in run.scores.main("neighbour", "distant"):
            rates = {name: (run.scores.rate(i, kept), run.scores.rate(i, gone)) for i, name in run.names.items()}
            if kept.judge == gone.judge and all(rate.n for pair in rates.values() for rate in pair):
                explanation = f"{score_name(kept)} over {role_name(kept, run.scores)}, % (kept)"
                return f"<h2>Trade-off</h2>{scatter(rates, [run.names[BASE]], explanation)}"
    return "<h2>Trade-off</h2><p>No plot: neighbours or the erased concept were not measured for every model.</p>"


def _instead(run: Run) -> str:
    """The detector's labels for prompts of the erased concept where it was not found."""
    rows = []
    for i, name in run.names.items():
        seen = seen_instead(run, i)
        top = ", ".join(f"{escape(label)}{GAP}<b>{count}</b>" for label, count in seen.most_common(5)) or "&ndash;"
        rows.append((escape(name), [str(seen.total()), top]))
    shown = table("Seen instead", ["Model", "Pictures", "Named first (top five)"], rows, "seen")
    return f"<h2>Seen instead of {escape(run.erased)}</h2>{shown}"


def _cost(run: Run) -> str:
    """Each edit's time and memory, settings, and preserved concepts."""
    rows = []
    for edit in run.info["edits"]:
        settings = ", ".join(f"{k} = {v}" for k, v in (edit.get("settings") or {}).items()) or "no settings"
        kept = ", ".join(map(str, edit.get("preserve") or ())) or "nothing"
        cells = [
            seconds(edit.get("seconds")),
            size(edit.get("memory")),
            size(edit.get("bytes")),
            f"{escape(settings)}; asked to preserve: {escape(kept)}",
        ]
        cells.append(
            f"{escape(edit.get('file') or 'no file')}<small>{escape(str(edit.get('fingerprint') or ''))}</small>"
        )
        rows.append((escape(run.names[edit["id"]]), cells))
    heads = ["Edit", "Training", "Memory", "Size", "Settings", Th("File", "fingerprint")]
    return f"<h2>Cost</h2>{table('Cost', heads, rows, 'seen')}"


def _method(run: Run) -> str:
    """The protocol, and the commands that repeat the run."""
    info, concept = run.info, run.info["concept"]
    given = {
        "Protocol": f"{info['protocol']}: {info['benchmark']}, task {info['task']}",
        "Source": info["source"] or "none",
        "Asked for": f"{concept['name']}, {concept.get('kind') or 'object'}",
        **{f"{run.names[i]} was to": aim(run, i) for i in run.edits},
        "Model": f"{info['model']}, fingerprint {info['fingerprint']}",
        "Sampler": f"{info.get('sampler') or 'not recorded'}, {info['steps']} steps, guidance {info['guidance']:g}",
        "Seeds": f"{info['seeds']} different ones, the same for every model",
    }
    for judge, one in info["detectors"].items():
        right = one.get("held_out_top1")
        wrong = (
            "its own error is not recorded"
            if right is None
            else f"wrong on {percent(1.0 - right)} of held-out pictures"
        )
        given[f"Judge: {judge}"] = f"{one['name']}, {one['id']}, {wrong}"
    given["Written by"] = f"efface {info['version']}, {info['created']}"
    if info.get("seconds") is not None:
        given["Time"] = f"{info['seconds']:.0f} s"
    files = "In the same folder: report.json has every number, scores.csv every row, table.tex a table, card.md a model card."
    return (
        f"<h2>How it was measured</h2>{facts(given.items())}<h3>Repeat it</h3>{commands(info['commands'])}{note(files)}"
    )
