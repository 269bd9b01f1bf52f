"""Comparison of methods: rates over several tasks, variation between training seeds, and tests of differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from statistics import fmean, median, stdev
from typing import Any, NamedTuple

from efface.metrics.rates import Rate
from efface.metrics.statistics import holm, mcnemar
from efface.report import ranking
from efface.report.latex import tabular, tex, tex_rate
from efface.report.names import DISTANCES, GAP, RATES, column_title, percent, role_name, score_name
from efface.report.page import WIDEST, Th, folded, mean_cell, note, parts, rate_cell, seconds, size, small, table
from efface.report.plots import scatter
from efface.report.ranking import Ranking
from efface.report.scores import BASE, Column, Mean, Row, Scores
from efface.report.summary import is_quality

KEPT = ("neighbour", "distant")
ALMOST_NOTHING = 0.1  # share of erased pictures below which a method counts as doing nothing
MEANS = (
    "Means over pictures; a distance of sets is a mean over tasks. Quality: whether a picture is of anything, from 0 (a mush) to 1. "
    "Distances: to the unedited model's pictures of equal prompts and seeds."
)


class Best(NamedTuple):
    """The best method of a column, and the p-value of every other method's difference from it."""

    methods: Sequence[str]  # several where equal
    p_values: Mapping[str, float]  # for the others: McNemar's p-values, by Holm over the column

    def bold(self, method: str) -> bool:
        """Whether to name this method the best: only where another differs from it."""
        return method in self.methods and any(p <= 0.05 for p in self.p_values.values())


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
    many: tuple[Row, ...] = ()  # of tasks that erase several concepts at once
    attacks: tuple[Row, ...] = ()  # of attacks, in this sweep or in like ones

    @cached_property
    def ranking(self) -> Ranking:
        """The methods by their score."""
        return Ranking(self.rows, self.many, self.methods, self.bases, self.attacks)

    @cached_property
    def scores(self) -> Scores:
        """The rows by method."""
        return Scores(self.rows, "method")

    @cached_property
    def tasks(self) -> Mapping[str, int]:
        """The number of tasks that each method was measured on."""
        pairs = {(row["method"], row["task"]) for row in self.rows}
        return {m: sum(method == m for method, _ in pairs) for m in self.methods}

    def name(self, method: str) -> str:
        """The displayed name."""
        return "unedited" if method == BASE else method

    def seeds(self, method: str, column: Column) -> Seeds | None:
        """Mean and standard deviation over training seeds, None for a single one."""
        nths = {row["nth"] for row in self.scores.rows(method, column)}
        rates = [rate.value for i in sorted(nths) if (rate := self.scores.rate(method, column, nth=i)).n]
        return Seeds(fmean(rates), stdev(rates), len(rates)) if len(rates) > 1 else None

    def best(self, column: Column) -> Best | None:
        """The edited model with the highest rate, against the others on equal tasks, prompts, seeds and training seeds.

        What erases almost nothing is not the best at keeping, which is easy then.
        """
        edited = [m for m in self.methods if m not in self.bases]
        if not column.gone:
            edited = [m for m in edited if self.erases(m)] or edited
        rates = {m: r for m in edited if (r := self.scores.rate(m, column)).n}
        if not rates:
            return None
        highest = max(r.value for r in rates.values())
        first = [m for m, r in rates.items() if r.value == highest]
        others = [m for m in rates if m not in first]
        found = holm([mcnemar(*self.scores.pairs(first[0], m, column)) for m in others])
        return Best(first, dict(zip(others, found, strict=True)))

    def erases(self, method: str) -> bool:
        """Whether a method erases more than almost nothing; true where that was not measured."""
        rates = [r.value for column in self.scores.main("erase") if (r := self.scores.rate(method, column)).n]
        return not rates or fmean(rates) >= ALMOST_NOTHING

    def costs(self, method: str) -> dict[str, float | None]:
        """Medians over a method's edits of seconds and of bytes."""
        return {key: self.cost(method, key) for key in ("seconds", "bytes")}

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
            line[column_title(column, board.scores)] = round(mean.value, 6) if mean.n and not mean.too_few else ""
        score, cost = board.ranking.scores.get(m), {k: board.cost(m, k) for k in ("seconds", "memory", "bytes")}
        line["rank"] = board.ranking.rank(m) or ""
        line |= {
            f"score{k}": round(x, 4) if score else ""
            for k, x in zip(("", " low", " high"), score or (0, 0, 0), strict=True)
        }
        line["fit seconds"] = "" if cost["seconds"] is None else round(cost["seconds"], 2)
        line["fit bytes"] = "" if cost["memory"] is None else round(cost["memory"])
        line["bytes"] = "" if cost["bytes"] is None else round(cost["bytes"])
        found.append(line)
    return found


def section(board: Board, to: str) -> str:
    """The ranked table and a figure; below, folded, every rate by judge and all other numbers. Rates link to `to`."""
    top = ranking.section(board.ranking, board.costs, board.name)
    rates = folded("Every rate, by judge", _rates(board, to), shown=len(board.scores.main()) < WIDEST - 4)
    return f"{top}{_trade_off(board)}{rates}{_numbers(board)}"


def _rates(board: Board, to: str) -> str:
    columns = board.scores.main()
    winners = {column: board.best(column) for column in columns}
    rows = []
    for m in board.methods:
        cells = [_cell(board, m, column, winners[column], to) for column in columns]
        cells += [seconds(board.cost(m, "seconds")), *(size(board.cost(m, key)) for key in ("memory", "bytes"))]
        lacking = max(board.tasks.values()) - board.tasks[m]
        head = escape(board.name(m)) + small(f"without {lacking} of the tasks" if lacking else "")
        rows.append((head, cells))
    heads = [Th(score_name(column), role_name(column, board.scores)) for column in columns]
    shown = table("Methods", ["Method", *heads, "Fit", "Memory", "File"], rows)
    failed = sum(board.scores.rate(m, column).failed for m in board.methods for column in columns)
    lost = f" Not made or not judged, and counted nowhere: {failed}." if failed else ""
    explanation = (
        f"{RATES} All tasks together. Bold: the "
        "best edit of a column, where another differs from it; what erases almost nothing is no best keeper; "
        "*: differs from it by McNemar's exact test on pairs of equal task, prompt and seed, p &le; 0.05 after "
        "Holm's correction over the column. Small: Wilson 95&nbsp;% interval, widened by how much more the tasks differ than independent "
        "pictures would (one task alone is not widened; further training seeds are no further pictures); ±: standard deviation over "
        f"training seeds. Fit and file: medians.{lost}"
    )
    return shown + note(explanation)


def _cell(board: Board, method: str, column: Column, winner: Best | None, to: str) -> str:
    rate, over = board.scores.rate(method, column), board.seeds(method, column)
    differs = winner is not None and winner.p_values.get(method, 1.0) <= 0.05
    shown = rate_cell(rate, to, board.scores.interval(method, column), "*" if differs else "")
    if over:
        shown += small(f"{percent(over.mean)} ± {100 * over.std:.1f}{GAP}({over.n}{GAP}seeds)")
    return f'<td class="best">{shown}</td>' if winner and winner.bold(method) else shown


def _number_columns(board: Board) -> list[Column]:
    """Columns with means, the quality of the pictures first."""
    return sorted(board.scores.numbers, key=lambda column: not is_quality(column))


def _numbers(board: Board) -> str:
    columns = _number_columns(board)
    rows = [
        (escape(board.name(m)), [mean_cell(board.scores.mean(m, column)) for column in columns]) for m in board.methods
    ]
    heads = [Th(score_name(column), role_name(column, board.scores)) for column in columns]
    explanation = f"{MEANS} Small: bootstrap 95&nbsp;% interval. {DISTANCES}"
    shown = f"{table('Pictures', ['Method', *heads], rows)}{note(explanation)}"
    return folded("Pictures as pictures: quality and distances", shown) if columns else ""


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
    """The ranked table as Markdown."""
    return ranking.markdown(board.ranking, board.costs, board.name)


def markdown_rates(board: Board) -> str:
    """Every rate by judge as Markdown tables of at most nine columns, in percent with the page's intervals."""
    columns = board.scores.main()
    winners = {column: board.best(column) for column in columns}
    found: dict[str, list[str]] = {column_title(column, board.scores): [] for column in columns} | {"memory, MB": []}
    for m in board.methods:
        for column in columns:
            rate, winner = board.scores.rate(m, column), winners[column]
            low, high = board.scores.interval(m, column)
            value = f"**{100 * rate.value:.1f}**" if winner and winner.bold(m) else f"{100 * rate.value:.1f}"
            star = r"\*" if winner and winner.p_values.get(m, 1.0) <= 0.05 else ""
            shown = f"{value}{star} [{100 * low:.0f}, {100 * high:.0f}]" if rate.n else "–"
            found[column_title(column, board.scores)].append(shown)
        memory = board.cost(m, "memory")
        found["memory, MB"].append("–" if memory is None else f"{memory / 1e6:.0f}")
    return _markdown_tables(board, found)


def markdown_numbers(board: Board) -> str:
    """Means of numbers that are not rates, as Markdown tables; "" if nothing was measured."""
    columns = _number_columns(board)
    found = {
        column_title(column, board.scores): [_mean(board.scores.mean(m, column)) for m in board.methods]
        for column in columns
    }
    return f"{MEANS} {DISTANCES}\n\n{_markdown_tables(board, found)}" if columns else ""


def _mean(mean: Mean) -> str:
    if mean.too_few:
        return f"– ({mean.smallest} pictures)"
    below = " (none found)" if mean.smallest is not None and mean.value < 0 else ""
    return f"{mean.value:.3g}{below}" if mean.n else "–"


def _markdown_tables(board: Board, columns: Mapping[str, Sequence[str]]) -> str:
    """Tables of at most nine columns, one below the other."""
    made = []
    for part in parts(list(columns)):
        text = [f"| method | {' | '.join(part)} |", "|---" * (len(part) + 1) + "|"]
        text += [
            f"| {board.name(m)} | {' | '.join(columns[c][i] for c in part)} |" for i, m in enumerate(board.methods)
        ]
        made.append("\n".join(text))
    return "\n\n".join(made)


def latex(board: Board, caption: str) -> str:
    """The table as LaTeX."""
    columns = board.scores.main()
    winners = {column: board.best(column) for column in columns}
    rows = []
    for m in board.methods:
        row = [tex(board.name(m))]
        for column in columns:
            winner = winners[column]
            bold, star = winner is not None and winner.bold(m), winner and winner.p_values.get(m, 1.0) <= 0.05
            row.append(
                tex_rate(board.scores.rate(m, column), board.scores.interval(m, column), bold)
                + ("$^*$" if star else "")
            )
        rows.append(row)
    explanation = (
        "percent with Wilson 95 % intervals widened for tasks; bold: best edit, where another differs; "
        "*: differs from it, McNemar with Holm, p <= 0.05"
    )
    return tabular(
        f"{caption}; {explanation}", ["Method", *[column_title(column, board.scores) for column in columns]], rows
    )
