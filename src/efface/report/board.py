"""Methods side by side: rates over several tasks, what the training seed changes, and which differences are more than chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from statistics import fmean, median, stdev
from typing import Any, NamedTuple

from efface.metrics.rates import Rate
from efface.metrics.statistics import holm, mcnemar
from efface.report.latex import tabular, tex, tex_rate
from efface.report.names import GAP, column_title, percent, role_name, score_name
from efface.report.page import Th, mean_cell, note, rate_cell, seconds, size, small, table
from efface.report.plots import scatter
from efface.report.scores import BASE, Column, Row, Scores

KEPT = ("neighbour", "distant")


class Best(NamedTuple):
    """The best of a column, and for each other method how likely a difference this uneven is by chance."""

    methods: Sequence[str]  # several where equal
    p_values: Mapping[str, float]  # for the others: McNemar's p-values, by Holm over the column


class Seeds(NamedTuple):
    """A rate over several training seeds."""

    mean: float
    std: float  # of a sample: n - 1 below
    n: int


@dataclass(frozen=True)
class Board:
    """Rows with `method` and `nth`, the methods in order, which of them are unedited models, and the edits by method."""

    rows: tuple[Row, ...]
    methods: Sequence[str]
    edits: Mapping[str, Sequence[Mapping[str, Any]]]
    bases: Sequence[str] = (BASE,)

    @cached_property
    def scores(self) -> Scores:
        """The rows by method."""
        return Scores(self.rows, "method")

    @cached_property
    def tasks(self) -> Mapping[str, int]:
        """How many tasks each method was measured on."""
        pairs = {(row["method"], row["task"]) for row in self.rows}
        return {m: sum(method == m for method, _ in pairs) for m in self.methods}

    def name(self, method: str) -> str:
        """As shown."""
        return "unedited" if method == BASE else method

    def seeds(self, method: str, column: Column) -> Seeds | None:
        """Mean and standard deviation over training seeds, None for a single one."""
        nths = {row["nth"] for row in self.scores.rows(method, column)}
        rates = [rate.value for i in sorted(nths) if (rate := self.scores.rate(method, column, nth=i)).n]
        return Seeds(fmean(rates), stdev(rates), len(rates)) if len(rates) > 1 else None

    def best(self, column: Column) -> Best | None:
        """The edited model with the highest rate, against the others on equal tasks, prompts, seeds and training seeds."""
        rates = {m: r for m in self.methods if m not in self.bases and (r := self.scores.rate(m, column)).n}
        if not rates:
            return None
        highest = max(r.value for r in rates.values())
        first = [m for m, r in rates.items() if r.value == highest]
        others = [m for m in rates if m not in first]
        found = holm([mcnemar(*self.scores.pairs(first[0], m, column)) for m in others])
        return Best(first, dict(zip(others, found, strict=True)))

    def balance(self, method: str) -> float | None:
        """Harmonic mean of what was erased by name and of what was kept; 0 when any is, None where one was not measured."""
        rates = [self.scores.rate(method, column) for column in self.scores.main("erase", *KEPT)]
        if not rates or not all(r.n for r in rates):
            return None
        return len(rates) / sum(1 / r.value for r in rates) if all(r.hits for r in rates) else 0.0

    def cost(self, method: str, key: str) -> float | None:
        """Median over a method's edits."""
        known = [e[key] for e in self.edits.get(method, ()) if e.get(key) is not None]
        return float(median(known)) if known else None


def csv_rows(board: Board) -> list[dict[str, Any]]:
    """A row of the CSV for each method: rates with counts and intervals, means, cost."""
    winners = {column: board.best(column) for column in board.scores.rates}
    found = []
    for m in board.methods:
        line: dict[str, Any] = {"method": m, "tasks": board.tasks[m]}
        for column in board.scores.rates:
            name, rate, over = column_title(column, board.scores), board.scores.rate(m, column), board.seeds(m, column)
            low, high = board.scores.interval(m, column)
            winner = winners[column]
            line |= {
                name: round(rate.value, 4) if rate.n else "", f"{name} low": round(low, 4), f"{name} high": round(high, 4),
                f"{name} n": rate.n, f"{name} failed": rate.failed,
                f"{name} seeds mean": round(over.mean, 4) if over else "", f"{name} seeds std": round(over.std, 4) if over else "",
                f"{name} p": round(winner.p_values[m], 6) if winner and m in winner.p_values else "",
            }  # fmt: skip
        for column in board.scores.numbers:
            mean = board.scores.mean(m, column)
            line[column_title(column, board.scores)] = round(mean.value, 6) if mean.n else ""
        balance, cost = board.balance(m), {k: board.cost(m, k) for k in ("seconds", "memory", "bytes")}
        line["harmonic mean"] = "" if balance is None else round(balance, 4)
        line["fit seconds"] = "" if cost["seconds"] is None else round(cost["seconds"], 2)
        line["fit bytes"] = "" if cost["memory"] is None else round(cost["memory"])
        line["bytes"] = "" if cost["bytes"] is None else round(cost["bytes"])
        found.append(line)
    return found


def section(board: Board, to: str) -> str:
    """The table, the plot, and the numbers that are no rates; `to` is where rates link to."""
    columns = board.scores.main()
    winners = {column: board.best(column) for column in columns}
    rows = []
    for m in board.methods:
        cells = [_cell(board, m, column, winners[column], to) for column in columns]
        balance = board.balance(m)
        cells += ["&ndash;" if balance is None else percent(balance)]
        cells += [seconds(board.cost(m, "seconds")), *(size(board.cost(m, key)) for key in ("memory", "bytes"))]
        lacking = max(board.tasks.values()) - board.tasks[m]
        head = escape(board.name(m)) + small(f"without {lacking} of the tasks" if lacking else "")
        rows.append((head, cells))
    heads = [Th(score_name(column), role_name(column, board.scores)) for column in columns]
    shown = table("Methods", ["Method", *heads, Th("Balance", "harmonic mean"), "Fit", "Memory", "File"], rows)
    failed = sum(board.scores.rate(m, column).failed for m in board.methods for column in columns)
    lost = f" Not made or not judged, and counted nowhere: {failed}." if failed else ""
    explanation = (
        "ESR-k: what was erased is not among the detector's k best guesses. PSR-k: what was asked for is. All tasks together. Bold: the "
        "best edit of a column; *: differs from it by McNemar's exact test on pairs of equal task, prompt and seed, p &le; 0.05 after "
        "Holm's correction over the column. Small: Wilson 95&nbsp;% interval, widened by how much more the tasks differ than independent "
        "pictures would (one task alone is not widened; further training seeds are no further pictures); ±: standard deviation over "
        "training seeds. Balance: of the rates for the erased, neighbours and unrelated concepts. "
        f"Fit and file: medians.{lost}"
    )
    return shown + note(explanation) + _numbers(board) + _trade_off(board)


def _cell(board: Board, method: str, column: Column, winner: Best | None, to: str) -> str:
    rate, over = board.scores.rate(method, column), board.seeds(method, column)
    differs = winner is not None and winner.p_values.get(method, 1.0) <= 0.05
    shown = rate_cell(rate, to, board.scores.interval(method, column), "*" if differs else "")
    if over:
        shown += small(f"{percent(over.mean)} ± {100 * over.std:.1f}{GAP}({over.n}{GAP}seeds)")
    return f'<td class="best">{shown}</td>' if winner and method in winner.methods else shown


def _numbers(board: Board) -> str:
    columns = board.scores.numbers
    rows = [
        (escape(board.name(m)), [mean_cell(board.scores.mean(m, column)) for column in columns]) for m in board.methods
    ]
    heads = [Th(score_name(column), role_name(column, board.scores)) for column in columns]
    explanation = (
        "Means over pictures with bootstrap 95&nbsp;% intervals; a distance of sets is a mean over tasks. "
        "Distances are to the unedited model's pictures."
    )
    return (
        f"<h2>Pictures as pictures</h2>{table('Pictures', ['Method', *heads], rows)}{note(explanation)}"
        if columns
        else ""
    )


def _trade_off(board: Board) -> str:
    for gone in board.scores.main("erase"):
        kept = [column for column in board.scores.main(*KEPT) if column.judge == gone.judge]
        rates: dict[str, tuple[Rate, Rate]] = {}
        for m in board.methods:
            each = [board.scores.rate(m, column) for column in kept]
            rates[board.name(m)] = (Rate(sum(r.hits for r in each), sum(r.n for r in each)), board.scores.rate(m, gone))
        if all(r.n for pair in rates.values() for r in pair):
            bases = [board.name(m) for m in board.bases]
            return f"<h2>Trade-off</h2>{scatter(rates, bases, 'neighbours and unrelated concepts kept, %')}"
    return ""


def markdown(board: Board) -> str:
    """The table as Markdown, in percent with the page's intervals."""
    columns = board.scores.main()
    winners = {column: board.best(column) for column in columns}
    head = f"| method | {' | '.join(column_title(column, board.scores) for column in columns)} | balance | fit, s | memory, MB | file, kB |"
    text = [head, "|---" * (len(columns) + 5) + "|"]
    for m in board.methods:
        cells = []
        for column in columns:
            rate, winner = board.scores.rate(m, column), winners[column]
            low, high = board.scores.interval(m, column)
            value = f"**{100 * rate.value:.1f}**" if winner and m in winner.methods else f"{100 * rate.value:.1f}"
            star = r"\*" if winner and winner.p_values.get(m, 1.0) <= 0.05 else ""
            cells.append(f"{value}{star} [{100 * low:.0f}, {100 * high:.0f}]" if rate.n else "–")
        balance, cost = board.balance(m), [board.cost(m, key) for key in ("seconds", "memory", "bytes")]
        cells += ["–" if balance is None else f"{100 * balance:.1f}"]
        cells += [
            "" if c is None else f"{c / unit:.{n}f}" for c, unit, n in zip(cost, (1, 1e6, 1e3), (1, 0, 0), strict=True)
        ]
        text.append(f"| {board.name(m)} | {' | '.join(cells)} |")
    return "\n".join(text) + "\n"


def markdown_numbers(board: Board) -> str:
    """Means of what is no rate as Markdown; "" where nothing was measured."""
    columns = board.scores.numbers
    text = [
        f"| method | {' | '.join(column_title(column, board.scores) for column in columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for m in board.methods:
        means = [board.scores.mean(m, column) for column in columns]
        text.append(f"| {board.name(m)} | {' | '.join(f'{x.value:.3g}' if x.n else '–' for x in means)} |")
    return "\n".join(["Means over pictures, to the unedited model's at equal seeds:\n", *text]) if columns else ""


def latex(board: Board, caption: str) -> str:
    """The table as LaTeX."""
    columns = board.scores.main()
    winners = {column: board.best(column) for column in columns}
    rows = []
    for m in board.methods:
        row = [tex(board.name(m))]
        for column in columns:
            winner = winners[column]
            bold, star = winner is not None and m in winner.methods, winner and winner.p_values.get(m, 1.0) <= 0.05
            row.append(
                tex_rate(board.scores.rate(m, column), board.scores.interval(m, column), bold)
                + ("$^*$" if star else "")
            )
        rows.append(row)
    explanation = "percent with Wilson 95 % intervals widened for tasks; bold: best edit; *: differs from it, McNemar with Holm, p <= 0.05"
    return tabular(
        f"{caption}; {explanation}", ["Method", *[column_title(column, board.scores) for column in columns]], rows
    )
