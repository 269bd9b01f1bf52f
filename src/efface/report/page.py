"""Building blocks of HTML pages: one file without scripts or network, for phones, desktops, print and dark mode."""

import re
from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple, TypeVar
from urllib.parse import quote

from efface.metrics.rates import Rate
from efface.report.names import GAP, percent
from efface.report.scores import Column, Mean

T = TypeVar("T")

WIDEST = 9  # maximum columns of a table: they fit a desktop screen without scrolling


def page(title: str, sections: Iterable[str]) -> str:
    """A whole page."""
    title, body = escape(title), "".join(f"<section>{s}</section>" for s in sections if s)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="generator" content="efface">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{STYLE}</style></head><body><main><h1>{title}</h1>{body}</main></body></html>\n"
    )


class Th(NamedTuple):
    """Head of a column, with small print."""

    text: str
    small: str = ""


def table(label: str, heads: Sequence[Th | str], rows: Iterable[tuple[str, Sequence[str]]], css: str = "scores") -> str:
    """A table that scrolls horizontally in its own box, split into several if it has more than WIDEST columns.

    Heads are text; a row is (head, cells), both HTML. The further parts are folded.
    """
    rows = [(head, list(cells)) for head, cells in rows]
    if len(heads) <= WIDEST:
        return _table(label, heads, rows, css)
    first, *others = parts(range(1, len(heads)))
    names = {p: f"{label}, columns {p[0]} to {p[-1]}" for p in others}
    shown = {
        p: _table(
            names.get(p, label), [heads[0], *[heads[i] for i in p]], [(h, [c[i - 1] for i in p]) for h, c in rows], css
        )
        for p in (first, *others)
    }
    return shown[first] + "".join(folded(names[p], shown[p]) for p in others)


def parts(columns: Sequence[T]) -> list[tuple[T, ...]]:
    """Columns split into as few parts of equal size as fit in tables with the first column repeated."""
    n = -(-len(columns) // (WIDEST - 1))
    ends = [-(-i * len(columns) // n) for i in range(n + 1)]
    return [tuple(columns[a:b]) for a, b in pairwise(ends)]


def folded(label: str, inside: str, shown: bool = False) -> str:
    """A section that a click opens or closes; open at first if `shown`."""
    return f"<details{' open' if shown else ''}><summary>{escape(label)}</summary>{inside}</details>"


def matrix_table(label: str, heads: Sequence[Th | str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """A table of many narrow columns in its own scrolling box."""
    return _table(label, heads, rows, "matrix")


def _table(label: str, heads: Sequence[Th | str], rows: Iterable[tuple[str, Sequence[str]]], css: str) -> str:
    given = (head if isinstance(head, Th) else Th(head) for head in heads)
    top = "".join(f'<th scope="col">{escape(h.text)}{small(escape(h.small))}</th>' for h in given)
    body = "".join(
        f'<tr><th scope="row">{head}</th>{"".join(c if c.startswith("<td") else f"<td>{c}</td>" for c in cells)}</tr>'
        for head, cells in rows
    )
    return scroll(label, f'<table class="{css}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>')


def scroll(label: str, inside: str) -> str:
    """A box that scrolls horizontally, also by keyboard."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{inside}</div>'


def small(inside: str) -> str:
    """Small print on a line of its own."""
    return f"<small>{inside}</small>" if inside else ""


def note(inside: str) -> str:
    """A paragraph of small print."""
    return f'<p class="note">{inside}</p>'


def link(inside: str, to: str) -> str:
    """A link, or its content alone if there is no address."""
    return f'<a href="{escape(to)}">{inside}</a>' if to else inside


def report_link(task: str) -> str:
    """The address of a task's report, relative to its sweep's page."""
    return f"{quote(task)}/report.html"


def anchor(column: Column) -> str:
    """The anchor of the pictures behind a number."""
    return re.sub(r"\W+", "-", f"{column.role}-{column.judge}".rstrip("-"))


def rate_cell(rate: Rate, to: str = "", interval: tuple[float, float] | None = None, mark: str = "") -> str:
    """A rate with its interval and count, linked to its pictures."""
    failed = small(f"{rate.failed} not judged" if rate.failed else "")
    if not rate.n:
        return f"&ndash;{small('n = 0')}{failed}"
    low, high = (percent(x).removesuffix(f"{GAP}%") for x in interval or rate.interval)
    shown = link(percent(rate.value), to) + mark
    return f"{shown}{small(f'{low}&ndash;{high}{GAP}%')}{small(f'n = {rate.n}')}{failed}"


def mean_cell(mean: Mean, to: str = "") -> str:
    """A mean with its interval and count, linked to its pictures; a distance from too few pictures is left out."""
    failed = small(f"{mean.failed} without" if mean.failed else "")
    if mean.too_few:
        return f"&ndash;{small(f'only {mean.smallest} pictures')}{failed}"
    if mean.n and mean.smallest is not None and mean.value < 0:
        failed = small("below 0: none found") + failed
    interval = "" if mean.low is None else small(f"{mean.low:.3g}&ndash;{mean.high:.3g}")
    return (
        f"{link(f'{mean.value:.3g}', to)}{interval}{small(f'n = {mean.n}')}{failed}" if mean.n else f"&ndash;{failed}"
    )


def seconds(x: int | float | None) -> str:
    """A duration in short form."""
    if x is None:
        return "–"
    return f"{x:.1f}{GAP}s" if x < 120 else f"{x / 60:.0f}{GAP}min"


def size(x: int | float | None) -> str:
    """A number of bytes in short form."""
    if x is None:
        return "–"
    return f"{x / 1e3:.0f}{GAP}kB" if x < 1e6 else f"{x / 1e6:.1f}{GAP}MB"


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """A definition list."""
    return f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>' for k, v in pairs)}</dl>"


def commands(given: Iterable[object]) -> str:
    """The commands that repeat a run."""
    return f'<pre tabindex="0">{escape(chr(10).join(map(str, given)))}</pre>'


STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1c1c1e; --soft: #5c5f66; --line: #d9dbe0; }
:root { --yes: #00755a; --no: #a84300; }
@media (prefers-color-scheme: dark) {
  :root { --page: #17191c; --ink: #ececee; --soft: #a4a8b0; --line: #3a3d44; --yes: #5ed3a8; --no: #ff9f5a; }
}
* { box-sizing: border-box; }
html { font: 16px/1.5 system-ui, sans-serif; background: var(--page); color: var(--ink); overflow-wrap: anywhere; }
body { margin: 0; }
main { max-width: 84rem; margin: 0 auto; padding: 1rem; }
p, ul, dl, pre { max-width: 52rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
h3 small, .note { color: var(--soft); font-weight: normal; font-size: .85rem; }
a { color: inherit; text-decoration-color: var(--soft); text-underline-offset: .15em; }
:target { scroll-margin-top: .5rem; }
summary { cursor: pointer; padding: .3rem 0; }
.summary { padding-left: 1.1rem; font-size: 1.08rem; }
.summary li { margin: .4rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; overflow-wrap: normal; font-variant-numeric: tabular-nums; }
table small { display: block; color: var(--soft); font-weight: normal; font-size: .75rem; line-height: 1.35; }
th, td { padding: .35rem .6rem; text-align: left; vertical-align: top; }
tr > th:first-child { position: sticky; left: 0; background: var(--page); z-index: 1; }
.scores, .seen, .axes { width: 100%; }
.scores tr, .seen tr, .axes tr { border-bottom: 1px solid var(--line); }
.scores .best { font-weight: 700; }
.scores td, .scores thead th + th { text-align: right; }
.scores td { white-space: nowrap; }
.axes th[scope=rowgroup] { padding-top: .9rem; color: var(--soft); font-size: .85rem; text-align: left; }
.axes th[scope=row] { font-weight: normal; }
.axes td { min-width: 7.5rem; }
.bar { display: block; height: 4px; margin: .15rem 0; background: var(--line); border-radius: 2px; overflow: hidden; }
.bar.bad i { background: var(--no); }
.bar i { display: block; height: 100%; background: var(--yes); }
.grids { display: flex; flex-wrap: wrap; gap: 0 2rem; }
.grids > .scroll { max-width: 100%; }
.grid th, .grid td { padding: .15rem .3rem .3rem; }
.grid th:first-child { min-width: 6.5rem; max-width: 7rem; font-weight: normal; overflow-wrap: anywhere; }
.grid tr:first-child th { padding-top: .8rem; vertical-align: bottom; }
.grid tr:first-child th:first-child { font-weight: bold; }
.grid tr:first-child th + th { max-width: 90px; font: .7rem/1.25 system-ui, sans-serif; color: var(--soft); }
.strip th, .strip td { padding: .15rem .3rem .3rem; font-size: .75rem; line-height: 1.3; }
.strip th[scope=colgroup] { font-size: .95rem; padding: 0 .3rem .2rem; }
.strip th[scope=col] { max-width: 112px; font-weight: normal; color: var(--soft); vertical-align: bottom; }
.strip th[scope=row] { font-size: .95rem; min-width: 5.5rem; max-width: 9rem; overflow-wrap: anywhere; }
.strip span, .strip img { display: block; width: 106px; }
.strip td span { padding-top: 2px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.strip img, .strip .blur, .strip .none { height: 106px; }
.strip .none { border: 2px dotted var(--soft); border-radius: 4px; }
.grid td { font-size: .72rem; line-height: 1.3; }
.grid td small { max-width: 84px; }
.grid span, img { display: block; width: 84px; }
.grid span { padding-top: 2px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
img { height: 84px; object-fit: contain; border: 2px solid; border-radius: 4px; }
.px { image-rendering: pixelated; }
.blur { display: block; width: 84px; height: 84px; overflow: hidden; border-radius: 4px; }
.blur img { filter: blur(14px) grayscale(.6); }
.blur:hover img, .blur:focus img, .blur:active img { filter: none; }
.yes, svg .edit { color: var(--yes); }
.no { color: var(--no); }
.unsure, .plain, svg .base { color: var(--soft); }
.grid .none { height: 84px; border: 2px dotted var(--soft); border-radius: 4px; }
img.no { border-style: dashed; }
img.unsure { border-style: dotted; }
.matrix td { text-align: right; font-size: .75rem; padding: .2rem .35rem; min-width: 2.6rem; border: 1px solid var(--line); }
.matrix td { background: rgb(var(--hue) / var(--much)); }
.matrix td.up { --hue: 30 120 220; }
.matrix td.down { --hue: 230 110 20; }
.matrix td a { text-decoration: none; }
.matrix thead th + th { font-size: .75rem; font-weight: normal; writing-mode: vertical-rl; text-align: left; max-height: 11rem; }
.matrix thead th { vertical-align: bottom; }
.matrix thead th small { display: inline; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 0 2rem; }
.plots > div { min-width: 0; break-inside: avoid; }
svg { display: block; width: 100%; max-width: 30rem; }
svg.wide { max-width: 38rem; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); text-anchor: middle; }
svg .rule { stroke: var(--line); stroke-width: .7; }
svg .lead { stroke: var(--soft); stroke-width: .4; }
svg g { fill: currentColor; stroke: currentColor; stroke-width: 1.2; }
svg .line { fill: none; stroke-width: 2; }
svg .left { text-anchor: end; }
svg .right { text-anchor: start; }
svg text.edit, svg text.base { fill: currentColor; font-weight: 600; }
svg text.edit, svg text.base { paint-order: stroke; stroke: var(--page); stroke-width: 3px; }
dl { display: grid; grid-template-columns: minmax(5.5rem, max-content) 1fr; gap: .3rem 1rem; }
dt { font-weight: 600; max-width: 10rem; }
dd { margin: 0; }
pre { overflow-x: auto; padding: .7rem; border: 1px solid var(--line); border-radius: 4px; font-size: .85rem; }
@media (max-width: 40rem) {
  .strip span, .strip img { width: 84px; }
  .strip img, .strip .blur, .strip .none { height: 84px; }
  .scores tr > th:first-child { max-width: 7rem; font-size: .85rem; }
  .strip th[scope=row], .grid th:first-child { min-width: 4.7rem; max-width: 5.2rem; font-size: .75rem; }
}
@media print {
  :root { color-scheme: light; --page: #fff; --ink: #000; --soft: #444; --line: #bbb; --yes: #00755a; --no: #a84300; }
  html { font-size: 11px; }
  main { max-width: none; padding: 0; }
  .scroll { overflow: visible; }
  details::details-content { content-visibility: visible; block-size: auto; }
  pre { white-space: pre-wrap; }
  .grid span, .grid img, .grid .blur, .strip span, .strip img { width: 62px; }
  .grid img, .grid .blur, .strip img, .strip .blur { height: 62px; }
  .matrix td { print-color-adjust: exact; }
  svg { max-width: 26rem; }
  tr, .grid tbody, svg, dl { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
"""
