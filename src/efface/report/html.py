"""A run folder as one HTML file: no network, no script, pictures inside, numbers that say what they do not show."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TypeVar

from efface.core.errors import UsageError
from efface.core.files import write_text
from efface.metrics.rates import Rate
from efface.report.tables import ABOUT, AGAIN, BASE, GAP, ROLES, SCORES, Row, Run, percent, read_run, verdict

COLUMNS = 8  # pictures in a row of a grid
CONCEPTS = 12  # concepts shown of a role; all of them count
NO_ATTACK = "No attack was tried: this says nothing about what a determined user can bring back."


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the report of a run folder, whole or not at all; `output` is `report.html` in the folder if not given.

    Raises:
        UsageError: the folder is damaged.
        EffaceError: the report cannot be written.
    """
    folder = Path(folder)
    path = folder / "report.html" if output is None else Path(output)
    write_text(path, render(read_run(folder)))
    return path


def render(run: Run) -> str:
    """The page."""
    parts = (_verdicts, _scores, _grids, _trade_off, _instead, _method)
    return page(run.info["title"], "".join(f"<section>{part(run)}</section>" for part in parts))


def page(title: str, body: str) -> str:
    """A whole page: one file, no network, no script."""
    title = escape(title)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{STYLE}</style></head><body><main><h1>{title}</h1>{body}</main></body></html>\n"
    )


def _verdicts(run: Run) -> str:
    """What to know if nothing else is read."""
    edits = [(name, i) for i, name in run.names.items() if i != BASE]
    items = "".join(f"<li><b>{escape(name)}</b>: {escape(verdict(run, i))}</li>" for name, i in edits)
    means = f"“Appears” means: the detector {run.info['detector']['name']} names the concept first."
    return f'<ul class="verdict">{items}</ul><p>{escape(means)} {NO_ATTACK}</p>'


def _scores(run: Run) -> str:
    """The score table."""
    heads = [(k.replace("top", f"{'ESR' if role == 'erase' else 'PSR'}-"), role) for role in ROLES for k in SCORES]
    top = "".join(f'<th scope="col">{name}<small>{ABOUT[role]}</small></th>' for name, role in heads)
    made = {edit["id"]: edit for edit in run.info["edits"]}
    rows = ""
    for i, name in run.names.items():
        cells = "".join(f"<td>{cell(run.rate(i, role, score))}</td>" for role in ROLES for score in SCORES)
        cost = f"<td>{seconds(made.get(i, {}).get('seconds'))}</td><td>{size(made.get(i, {}).get('bytes'))}</td>"
        rows += f'<tr><th scope="row">{escape(name)}</th>{cells}{cost}</tr>'
    note = (
        "ESR-k: share of pictures asked for by the erased name in which the detector does not find it among its k best "
        "guesses. PSR-k: share in which it finds the concept that was asked for. Higher is better for both. "
        "Small: Wilson 95&nbsp;% interval and number of pictures n."
    )
    head = f'<tr><th scope="col">Model</th>{top}<th scope="col">Training</th><th scope="col">File</th></tr>'
    table = f'<table class="scores"><thead>{head}</thead><tbody>{rows}</tbody></table>'
    return f'<h2>Scores</h2>{scroll("Scores", table)}<p class="note">{note}</p>'


def cell(rate: Rate) -> str:
    """A rate with its interval and count."""
    failed = f"<small>{rate.failed} not judged</small>" if rate.failed else ""
    if not rate.n:
        return f"&ndash;<small>n = 0</small>{failed}"
    low, high = (percent(x).removesuffix(f"{GAP}%") for x in rate.interval)
    return f"{percent(rate.value)}<small>{low}&ndash;{high}{GAP}%</small><small>n = {rate.n}</small>{failed}"


def seconds(x: int | float | None) -> str:
    """A duration, short."""
    if x is None:
        return "&ndash;"
    return f"{x:.1f}{GAP}s" if x < 120 else f"{x / 60:.0f}{GAP}min"


def size(x: int | float | None) -> str:
    """A number of bytes, short."""
    if x is None:
        return "&ndash;"
    return f"{x / 1e3:.0f}{GAP}kB" if x < 1e6 else f"{x / 1e6:.1f}{GAP}MB"


def scroll(label: str, inside: str) -> str:
    """A box that scrolls sideways by itself, also by keyboard."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{inside}</div>'


def _grids(run: Run) -> str:
    """Before and after: a row a model, a column a prompt and seed, evenly spaced over all of them."""
    legend = (
        '<span class="yes">✓</span> the detector names the concept first, <span class="no">✗</span> it names another, '
        '<span class="unsure">?</span> it failed; beside it, what it named. '
        f"At most {COLUMNS} pictures a row and {CONCEPTS} concepts a role, evenly spaced, not chosen; all count above."
    )
    parts = [f"<h2>Before and after</h2><p>Equal prompts and seeds in each column. {legend}</p>"]
    for role in ROLES:
        bodies = "".join(_grid(run, role, concept) for concept in _spread(run.concepts(role), CONCEPTS))
        head = f"Erased: {run.erased}" if role == "erase" else ABOUT[role].capitalize()
        aim = "aim: ✗ in the rows of the edits" if role == "erase" else "aim: as before"
        if bodies:
            table = scroll(head, f'<table class="grid">{bodies}</table>')
            parts.append(f"<h3>{escape(head)} <small>{aim}</small></h3>{table}")
    return "".join(parts)


def _grid(run: Run, role: str, concept: str) -> str:
    """The rows of one concept."""
    rows = {(r["edit"], r["prompt"], r["seed"]): r for r in run.pick(role=role, concept=concept, score="top1")}
    keys = _spread([(prompt, seed) for edit, prompt, seed in rows if edit == BASE], COLUMNS)
    heads = "".join(f'<th scope="col">{escape(prompt)}<small>seed {seed}</small></th>' for prompt, seed in keys)
    body = f'<tr><th scope="row">{escape(concept)}</th>{heads}</tr>'
    for i, name in run.names.items():
        tiles = "".join(_tile(run.folder, rows[i, *key], name) for key in keys)
        body += f'<tr><th scope="row">{escape(name)}</th>{tiles}</tr>'
    return f"<tbody>{body}</tbody>"


def _tile(folder: Path, row: Row, name: str) -> str:
    """A picture and what the detector made of it."""
    kind, mark = {1: ("yes", "✓"), 0: ("no", "✗"), None: ("unsure", "?")}[row["value"]]
    seen = "not judged" if row["value"] is None else row["seen"] or "no label"
    about = escape(f"{name}: {row['prompt']}, seed {row['seed']}; detector: {seen}")
    if not row["image"]:
        return f'<td><span class="none" title="{about}"></span><span class="unsure">? not drawn</span></td>'
    path = folder / row["image"]
    data = path.read_bytes()
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise UsageError(f"{path}: expected a PNG picture, got a file that starts with {data[:8]!r}; {AGAIN}")
    small = " px" if int.from_bytes(data[16:20]) <= 128 else ""  # the width, by the PNG specification
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    image = f'<img class="{kind}{small}" src="{source}" alt="{about}" title="{about}">'
    return f'<td>{image}<span class="{kind}">{mark} {escape(seen)}</span></td>'


T = TypeVar("T")


def _spread(items: Sequence[T], most: int) -> list[T]:
    """All items, or `most` of them at equal distances."""
    return [items[i * len(items) // most] for i in range(most)] if len(items) > most else list(items)


def _trade_off(run: Run) -> str:
    """What was erased against what was kept."""
    rates = {run.names[i]: (run.rate(i, "neighbour", "top1"), run.rate(i, "erase", "top1")) for i in run.names}
    if not all(rate.n for pair in rates.values() for rate in pair):
        return "<h2>Trade-off</h2><p>No plot: neighbours or the erased concept were not measured for every model.</p>"
    return f"<h2>Trade-off</h2>{scatter(rates, run.names[BASE], 'PSR-1 over neighbours, % (kept)')}"


def scatter(rates: Mapping[str, tuple[Rate, Rate]], base: str, across: str) -> str:
    """(kept, erased) of each model with intervals, as SVG; `base` is the unedited one."""
    marks, labels = "", ""
    for tick in (0, 25, 50, 75, 100):
        x, y = _at(tick / 100, tick / 100)
        marks += f'<path class="rule" d="M{x} 20V260M50 {y}H330"/><text x="{x}" y="276">{tick}</text>'
        marks += f'<text class="left" x="44" y="{y + 4}">{tick}</text>'
    taken: list[tuple[float, float]] = []
    for name, (kept, gone) in rates.items():
        (x, y), kind = _at(kept.value, gone.value), "base" if name == base else "edit"
        (left, bottom), (right, top) = (_at(*corner) for corner in zip(kept.interval, gone.interval, strict=True))
        shape = f'<circle cx="{x}" cy="{y}" r="4.5"/>' if kind == "edit" else f'<path d="M{x - 4} {y - 4}h8v8h-8z"/>'
        marks += f'<g class="{kind}"><path d="M{left} {y}H{right}M{x} {bottom}V{top}"/>{shape}</g>'
        spot = y - 8
        while any(abs(spot - below) < 13 and abs(x - beside) < 90 for beside, below in taken):
            spot += -13 if y > 140 else 13  # towards the middle, until the label stands free
        taken.append((x, spot))
        place = f'class="{kind} left" x="{x - 9}"' if x > 190 else f'class="{kind} right" x="{x + 9}"'
        labels += f'<text {place} y="{spot:.1f}">{escape(name)}</text>'
    points = (f"{name}: kept {percent(k.value)}, erased {percent(g.value)}" for name, (k, g) in rates.items())
    axes = f'<text x="190" y="294">{escape(across)}</text>'
    axes += '<text transform="translate(14 140) rotate(-90)">ESR-1, % (erased)</text>'
    svg = f'<svg viewBox="0 0 340 300" role="img" aria-label="{escape("; ".join(points))}">{marks}{axes}{labels}</svg>'
    return f'{svg}<p class="note">Up and right is better. Bars: Wilson 95&nbsp;% intervals.</p>'


def _at(kept: float, gone: float) -> tuple[float, float]:
    """Plot coordinates of two rates."""
    return round(50 + 280 * kept, 1), round(260 - 240 * gone, 1)


def _instead(run: Run) -> str:
    """What the detector saw where the erased concept was asked for and not found."""
    rows = ""
    for i, name in run.names.items():
        seen = run.seen_instead(i)
        top = ", ".join(f"{escape(label)}{GAP}<b>{count}</b>" for label, count in seen.most_common(5)) or "&ndash;"
        rows += f'<tr><th scope="row">{escape(name)}</th><td>{seen.total()}</td><td>{top}</td></tr>'
    heads = ("Model", "Pictures", "Named first (top five)")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    table = f'<table class="seen"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f"<h2>Seen instead of {escape(run.erased)}</h2>{scroll('Seen instead', table)}"


def _method(run: Run) -> str:
    """How it was measured, and how to repeat it."""
    info, concept, right = run.info, run.info["concept"], run.info["detector"].get("held_out_top1")
    wrong = (
        "its own error is not recorded" if right is None else f"wrong on {percent(1.0 - right)} of held-out pictures"
    )
    facts = {
        "Erased": f"{concept['name']}, {concept.get('kind', 'object')}, to become {concept.get('target') or 'nothing'}",
        "Model": f"{info['model']}, fingerprint {info['fingerprint']}",
        "Sampler": f"{info.get('sampler') or 'not recorded'}, {info['steps']} steps, guidance {info['guidance']:g}",
        "Seeds": f"{info['seeds']} a prompt, the same for every model",
        "Detector": f"{info['detector']['name']}, {wrong}",
        "Written by": f"efface {info['version']}, {info['created']}",
    }
    for edit in info["edits"]:
        settings = ", ".join(f"{k} = {v}" for k, v in (edit.get("settings") or {}).items()) or "no settings"
        kept = ", ".join(map(str, edit.get("preserve") or ())) or "nothing"
        facts[run.names[edit["id"]]] = f"{edit.get('file') or 'no file'}; {settings}; told to preserve: {kept}"
    if info.get("seconds") is not None:
        facts["Time"] = f"{info['seconds']:.0f} s"
    terms = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
    commands = escape("\n".join(map(str, info["commands"])))
    return f'<h2>How it was measured</h2><dl>{terms}</dl><h3>Repeat it</h3><pre tabindex="0">{commands}</pre>'


STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1c1c1e; --soft: #5c5f66; --line: #d9dbe0; }
:root { --yes: #0a5cb8; --no: #a84300; }
@media (prefers-color-scheme: dark) {
  :root { --page: #17191c; --ink: #ececee; --soft: #a4a8b0; --line: #3a3d44; --yes: #7db5ff; --no: #ff9f5a; }
}
* { box-sizing: border-box; }
html { font: 16px/1.5 system-ui, sans-serif; background: var(--page); color: var(--ink); overflow-wrap: anywhere; }
body { margin: 0; }
main { max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
h3 small, .note { color: var(--soft); font-weight: normal; font-size: .85rem; }
.verdict { padding-left: 1.1rem; font-size: 1.08rem; }
.verdict li { margin: .4rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; overflow-wrap: normal; font-variant-numeric: tabular-nums; }
table small { display: block; color: var(--soft); font-weight: normal; font-size: .75rem; line-height: 1.35; }
th, td { padding: .35rem .6rem; text-align: left; vertical-align: top; }
tr > th:first-child { position: sticky; left: 0; background: var(--page); }
.scores, .seen { width: 100%; }
.scores tr, .seen tr { border-bottom: 1px solid var(--line); }
.scores td, .scores thead th + th { text-align: right; white-space: nowrap; }
.grid th, .grid td { padding: .15rem .3rem .3rem; }
.grid th:first-child { min-width: 5.5rem; max-width: 7rem; font-weight: normal; overflow-wrap: anywhere; }
.grid tr:first-child th { padding-top: .8rem; vertical-align: bottom; }
.grid tr:first-child th:first-child { font-weight: bold; }
.grid tr:first-child th + th { max-width: 90px; font: .7rem/1.25 system-ui, sans-serif; color: var(--soft); }
.grid td { font-size: .72rem; line-height: 1.3; }
.grid span, img { display: block; width: 84px; }
.grid span { padding-top: 2px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
img { height: 84px; object-fit: contain; border: 2px solid; border-radius: 4px; }
.px { image-rendering: pixelated; }
.yes, svg .edit { color: var(--yes); }
.no { color: var(--no); }
.unsure, svg .base { color: var(--soft); }
.grid .none { height: 84px; border: 2px dotted var(--soft); border-radius: 4px; }
img.no { border-style: dashed; }
img.unsure { border-style: dotted; }
svg { display: block; width: 100%; max-width: 30rem; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); text-anchor: middle; }
svg .rule { stroke: var(--line); stroke-width: .7; }
svg g { fill: currentColor; stroke: currentColor; stroke-width: 1.2; }
svg .left { text-anchor: end; }
svg .right { text-anchor: start; }
svg text.edit, svg text.base { fill: currentColor; font-weight: 600; }
svg text.edit, svg text.base { paint-order: stroke; stroke: var(--page); stroke-width: 3px; }
dl { display: grid; grid-template-columns: minmax(5.5rem, max-content) 1fr; gap: .3rem 1rem; }
dt { font-weight: 600; }
dd { margin: 0; }
pre { overflow-x: auto; padding: .7rem; border: 1px solid var(--line); border-radius: 4px; font-size: .85rem; }
@media print {
  :root { color-scheme: light; --page: #fff; --ink: #000; --soft: #444; --line: #bbb; --yes: #0a5cb8; --no: #a84300; }
  html { font-size: 11px; }
  main { max-width: none; padding: 0; }
  .scroll { overflow: visible; }
  pre { white-space: pre-wrap; }
  .grid span, img { width: 62px; }
  img { height: 62px; }
  svg { max-width: 26rem; }
  tr, .grid tbody, svg, dl { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
"""
