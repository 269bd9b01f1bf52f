"""A run folder as one HTML file and the files beside it; numbers that say what they do not show."""

from html import escape
from pathlib import Path

from efface.core.errors import UsageError
from efface.core.files import write_text
from efface.metrics.calibration import calibration
from efface.report import attacks, axes, grids, matrix
from efface.report.card import card
from efface.report.data import report_json, rows_csv, run_tex
from efface.report.folder import Run, read_run
from efface.report.judges import judges_section
from efface.report.leaderboard import write_leaderboard
from efface.report.names import GAP, NO_ATTACK, percent, role_name, score_name
from efface.report.page import Th, anchor, commands, facts, mean_cell, note, page, rate_cell, seconds, size, table
from efface.report.plots import scatter
from efface.report.scores import BASE, Column, is_rate
from efface.report.summary import seen_instead, verdicts


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the report of a run's or a sweep's folder and return its page.

    A run gets report.html, report.json (every number), scores.csv (every row), table.tex and card.md, or `output` and files of its
    name beside it; a sweep gets a leaderboard, and each of its tasks a report.

    Raises:
        UsageError: the folder is damaged, or a sweep's page is to go where its links lead nowhere.
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
    """The page."""
    parts = (
        _verdicts,
        axes.section,
        _scores,
        grids.section,
        _trade_off,
        matrix.section,
        _instead,
        attacks.section,
        _cost,
        _method,
    )
    return page(run.info["title"], (part(run) for part in parts))


def _verdicts(run: Run) -> str:
    """What to know if nothing else is read."""
    items = "".join(f"<li><b>{escape(run.names[i])}</b>: {escape(text)}</li>" for i, text in verdicts(run).items())
    judges = ", ".join(dict.fromkeys(run.info["detectors"][column.judge]["name"] for column in run.scores.main()))
    tried = any(run.scores.attacks(i) for i in run.edits)
    means = f"“Appears” means: the detector ({judges}) finds it." if judges else "No detector judged the pictures."
    means += "" if tried else f" {NO_ATTACK}"
    several = " over the edits by Holm's correction" if len(run.edits) > 1 else ""
    tests = f"“May be chance”: McNemar's exact test on pairs of equal prompt and seed{several} gives p above 0.05."
    return f'<ul class="verdict">{items}</ul><p>{escape(means)}</p>{note(escape(tests))}'


def _scores(run: Run) -> str:
    """Every rate and mean, and beside them how wrong the judges are."""
    scores = run.scores
    columns = [*scores.rates, *scores.numbers]
    heads = [Th(score_name(column), role_name(column, scores)) for column in columns]
    rows = [(escape(name), [_number(run, i, column) for column in columns]) for i, name in run.names.items()]
    explanation = (
        "ESR-k: share of pictures of what was erased in which the detector does not find it among its k best guesses. PSR-k: share in "
        "which it finds the concept that was asked for. Small: 95&nbsp;% interval (Wilson's, bootstrap for what is no rate) and "
        "number of pictures n."
    )
    shown = f"<h2>All scores</h2>{table('All scores', ['Model', *heads], rows)}{note(explanation)}"
    return shown + judges_section(calibration(run.rows), run.info["detectors"])


def _number(run: Run, edit: str, column: Column) -> str:
    to = f"#{anchor(column)}"
    return (
        rate_cell(run.scores.rate(edit, column), to)
        if is_rate(column.score)
        else mean_cell(run.scores.mean(edit, column))
    )


def _trade_off(run: Run) -> str:
    """What was erased against what was kept, as the same judge sees it."""
    for gone in run.scores.main("erase"):
        for kept in run.scores.main("neighbour", "distant"):
            rates = {name: (run.scores.rate(i, kept), run.scores.rate(i, gone)) for i, name in run.names.items()}
            if kept.judge == gone.judge and all(rate.n for pair in rates.values() for rate in pair):
                explanation = f"{score_name(kept)} over {role_name(kept, run.scores)}, % (kept)"
                return f"<h2>Trade-off</h2>{scatter(rates, [run.names[BASE]], explanation)}"
    return "<h2>Trade-off</h2><p>No plot: neighbours or the erased concept were not measured for every model.</p>"


def _instead(run: Run) -> str:
    """What the detector saw where the erased concept was asked for and not found."""
    rows = []
    for i, name in run.names.items():
        seen = seen_instead(run, i)
        top = ", ".join(f"{escape(label)}{GAP}<b>{count}</b>" for label, count in seen.most_common(5)) or "&ndash;"
        rows.append((escape(name), [str(seen.total()), top]))
    shown = table("Seen instead", ["Model", "Pictures", "Named first (top five)"], rows, "seen")
    return f"<h2>Seen instead of {escape(run.erased)}</h2>{shown}"


def _cost(run: Run) -> str:
    """What each edit took, and what it was told."""
    rows = []
    for edit in run.info["edits"]:
        settings = ", ".join(f"{k} = {v}" for k, v in (edit.get("settings") or {}).items()) or "no settings"
        kept = ", ".join(map(str, edit.get("preserve") or ())) or "nothing"
        cells = [
            seconds(edit.get("seconds")),
            size(edit.get("memory")),
            size(edit.get("bytes")),
            f"{escape(settings)}; told to preserve: {escape(kept)}",
        ]
        cells.append(
            f"{escape(edit.get('file') or 'no file')}<small>{escape(str(edit.get('fingerprint') or ''))}</small>"
        )
        rows.append((escape(run.names[edit["id"]]), cells))
    heads = ["Edit", "Training", "Memory", "Size", "Settings", Th("File", "fingerprint")]
    return f"<h2>Cost</h2>{table('Cost', heads, rows, 'seen')}"


def _method(run: Run) -> str:
    """How it was measured, and how to repeat it."""
    info, concept = run.info, run.info["concept"]
    given = {
        "Protocol": f"{info['protocol']}: {info['benchmark']}, task {info['task']}",
        "Source": info["source"] or "none",
        "Erased": f"{concept['name']}, {concept.get('kind') or 'object'}, to become {concept.get('target') or 'nothing'}",
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
    beside = (
        "Beside this page: report.json has every number, scores.csv every row, table.tex a table, card.md a model card."
    )
    return f"<h2>How it was measured</h2>{facts(given.items())}<h3>Repeat it</h3>{commands(info['commands'])}{note(beside)}"
