"""The ranked table of a leaderboard: one row for each method, at most nine columns, one ranking rule."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from html import escape
from math import fsum, sqrt
from statistics import fmean
from typing import NamedTuple

from efface.metrics.rates import Rate
from efface.report.names import GAP, percent
from efface.report.page import Th, note, seconds, size, small, table
from efface.report.scores import Row, Scores, is_rate, wilson_at
from efface.report.summary import GROUPS

Lines = Sequence[tuple[str, str]]  # a cell: values, each with its small print

GONE = {"erased": ("erase",), "other words": ("synonym", "implicit")}  # a column of the table and its roles
KEPT = {"neighbours": ("neighbour",), "distant": ("distant",), "style kept": ("companion",)}
HEADS = ["method", *GONE, *KEPT, "many at once", "seconds", "size"]
RULE = (
    "Rank: one plus the number of methods whose whole 95 % interval of the score lies above this method's, so that methods which the "
    "pictures cannot tell apart share a rank. Score: the harmonic mean of what was erased (the mean of “erased” and “other words”) and "
    "of what was kept (the mean of “neighbours”, “distant” and “style kept”)."
)
MEANING = (
    "Percent, a mean over the tasks; below it the 95 % interval, as wide as the tasks differ. Only pictures count whose concept the "
    "unedited model draws at the same prompt and seed. Erased: what was erased is not found when "
    "asked for by name; other words: by another name or a description. Neighbours: concepts of the same group, still found; distant: of "
    "other groups; style kept: what else a prompt for an erased thing asked for (its style, or the thing in an erased style). Many at "
    "once: the harmonic mean of erased and kept (neighbours, distant) where several concepts are erased at once. Seconds: of training; "
    "size: of the edit's tensors (medians)."
)


class Estimate(NamedTuple):
    """A number from 0 to 1 with its 95 % interval."""

    value: float
    low: float
    high: float


def task_mean(rates: Sequence[Rate], seeds: int = 1) -> Estimate:
    """Mean of the rates of tasks, each judged by its own detector, with Wilson's interval at the effective number of pictures.

    The variance of the mean of m rates r_i is Σ (r_i - r)² / (m (m - 1)). n is how many independent pictures have that variance, but
    never more than m² / Σ 1/n_i, what independent pictures would be worth, divided by the number of training seeds: the same prompts
    drawn once more are no further evidence.
    """
    m, value = len(rates), fmean(rate.value for rate in rates)
    n = m * m / fsum(1 / rate.n for rate in rates)
    between = fsum((rate.value - value) ** 2 for rate in rates) / (m * (m - 1)) if m > 1 else 0.0
    binomial = value * (1 - value) / n
    return Estimate(value, *wilson_at(value, n / max(seeds, between / binomial if binomial else 1)))


def combined(function: Callable[[Sequence[float]], float], parts: Sequence[Estimate]) -> Estimate:
    """A function that grows with each of its parts, with an interval from theirs as if they were independent.

    MOVER (Zou and Donner 2008): the distance to the lower limit is the root of the sum of squares of what each part alone, at its own
    lower limit, would take from the value; for the upper limit likewise.
    """
    values = [part.value for part in parts]
    value = function(values)

    def away(limits: Sequence[float]) -> float:
        moved = [function([*values[:i], limit, *values[i + 1 :]]) - value for i, limit in enumerate(limits)]
        return sqrt(fsum(x * x for x in moved))

    low, high = away([part.low for part in parts]), away([part.high for part in parts])
    return Estimate(value, max(0.0, value - low), min(1.0, value + high))


def harmonic(gone: float, kept: float) -> float:
    """Harmonic mean of two shares, 0 where one is."""
    return 2 * gone * kept / (gone + kept) if gone and kept else 0.0


class Ranking:
    """Methods by their score.

    `rows` are of the tasks that the table is about, `many` of those that erase several concepts at once. A picture counts only where
    every unedited model (`bases`) shows what was asked for at the same prompt and seed: elsewhere nothing was there to erase or to keep.
    """

    def __init__(self, rows: Iterable[Row], many: Iterable[Row], methods: Sequence[str], bases: Sequence[str]) -> None:
        self.methods, self.bases = list(methods), set(bases)
        self._tasks = _by_task(_drawn(rows, self.bases))
        self._many = _by_task(_drawn(many, self.bases))

    def column(self, method: str, roles: Sequence[str], group: str = "") -> Estimate | None:
        """The mean over tasks of what a method did to these roles; None where it was not measured or not judged."""
        return _estimate(self._tasks, method, roles, group)

    @cached_property
    def columns(self) -> dict[str, tuple[str, ...]]:
        """The columns that were measured for any model, with their roles."""
        return {
            name: roles
            for name, roles in (GONE | KEPT).items()
            if any(_cells(self._tasks, m, roles) for m in self.methods)
        }

    @cached_property
    def neighbour_groups(self) -> list[str]:
        """Whether neighbours in the methods' preserved concepts and other neighbours have separate columns."""
        there = {row["group"] for scores in self._tasks.values() for row in _rows(scores, self.methods, ("neighbour",))}
        return [g for g in GROUPS if g in there]

    def score(self, method: str) -> Estimate | None:
        """The harmonic mean of erased and kept; None if the method lacks a column that others have."""
        parts = {name: self.column(method, roles) for name, roles in self.columns.items()}
        known = [part for part in parts.values() if part]
        gone = sum(name in GONE for name in parts)
        if len(known) < len(parts) or not 0 < gone < len(parts) or self.lacking(method):
            return None
        return combined(lambda v: harmonic(fmean(v[:gone]), fmean(v[gone:])), known)

    def lacking(self, method: str) -> int:
        """The number of tasks that the method was not measured on."""
        judged = [scores for scores in self._tasks.values() if scores.main()]
        return sum(not any(scores.rows(method, column) for column in scores.main()) for scores in judged)

    def many(self, method: str) -> Estimate | None:
        """The harmonic mean of erased and kept over the tasks that erase several concepts at once."""
        gone = _estimate(self._many, method, ("erase",))
        kept = [
            _estimate(self._many, method, (role,)) for role in ("neighbour", "distant") if self._measured_many(role)
        ]
        known = [part for part in (gone, *kept) if part]
        if not gone or not kept or len(known) < 1 + len(kept):
            return None
        return combined(lambda v: harmonic(v[0], fmean(v[1:])), known)

    def _measured_many(self, role: str) -> bool:
        return any(_cells(self._many, m, (role,)) for m in self.methods)

    @cached_property
    def scores(self) -> dict[str, Estimate]:
        """Scores of the methods that have one, best first."""
        found = {m: score for m in self.methods if m not in self.bases and (score := self.score(m))}
        return dict(sorted(found.items(), key=lambda pair: -pair[1].value))

    def rank(self, method: str) -> int | None:
        """One plus the number of methods whose whole interval lies above this one's."""
        own = self.scores.get(method)
        return 1 + sum(other.low > own.high for other in self.scores.values()) if own else None

    @property
    def order(self) -> list[str]:
        """Methods in display order: by score, then those without one, then the unedited model."""
        edits = [m for m in self.methods if m not in self.bases and m not in self.scores]
        return [*self.scores, *edits, *(m for m in self.methods if m in self.bases)]

    def why_not(self, method: str, roles: Sequence[str] = (), many: bool = False) -> str:
        """Why a method has no value in a column."""
        tasks, roles = (self._many, ("erase",)) if many else (self._tasks, roles)
        if not any(_cells(tasks, m, roles) for m in self.methods):
            return "not asked for"
        return "not judged" if _cells(tasks, method, roles) else "not run"

    def why_unranked(self, method: str) -> str:
        """Why a method has no score."""
        if lacking := self.lacking(method):
            return f"no rank: {lacking} task{'s' if lacking > 1 else ''} not run"
        return "no rank: a column is lacking"


def _drawn(rows: Iterable[Row], bases: Collection[str]) -> list[Row]:
    """Rows of pictures whose concept is found in the unedited models' pictures of the same prompt and seed."""
    rows = list(rows)
    lacking = {_picture(row) for row in rows if row["method"] in bases and row["value"] != 1 and is_rate(row["score"])}
    return [row for row in rows if _picture(row) not in lacking]


def _picture(row: Row) -> tuple[object, ...]:
    return tuple(row[k] for k in ("task", "role", "concept", "prompt", "seed", "judge", "score"))


def _by_task(rows: Iterable[Row]) -> dict[str, Scores]:
    own: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        own[row["task"]].append(row)
    return {task: Scores(given, "method") for task, given in own.items()}


def _rows(scores: Scores, methods: Sequence[str], roles: Sequence[str]) -> list[Row]:
    return [row for m in methods for column in scores.main(*roles) for row in scores.rows(m, column)]


def _cells(tasks: Mapping[str, Scores], method: str, roles: Sequence[str], group: str = "") -> list[Rate]:
    """A rate for each task and judge with rows: rates of different judges are averaged, their rows never combined."""
    where = {"group": group} if group else {}
    found: dict[tuple[str, str], list[Rate]] = defaultdict(list)
    for task, scores in tasks.items():
        for column in scores.main(*roles):
            if scores.rows(method, column, **where):
                found[task, column.judge].append(scores.rate(method, column, **where))
    return [Rate(sum(r.hits for r in own), sum(r.n for r in own), sum(r.failed for r in own)) for own in found.values()]


def _estimate(tasks: Mapping[str, Scores], method: str, roles: Sequence[str], group: str = "") -> Estimate | None:
    rates = [rate for rate in _cells(tasks, method, roles, group) if rate.n]
    seeds = {row["nth"] for scores in tasks.values() for row in _rows(scores, [method], roles)}
    return task_mean(rates, len(seeds)) if rates else None


def cells(ranking: Ranking, method: str, cost: Mapping[str, float | None]) -> list[Lines]:
    """The eight cells of a method's row, after its name."""
    shown: list[Lines] = []
    for name, roles in (GONE | KEPT).items():
        groups = ranking.neighbour_groups if name == "neighbours" else []
        whole = [_shown(ranking.column(method, roles), ranking.why_not(method, roles))]
        lines = [_shown(ranking.column(method, roles, g), "not run", GROUPS[g]) for g in groups]
        shown.append(lines or whole)
    shown.append([_shown(ranking.many(method), ranking.why_not(method, many=True))])
    why = "no edit" if method in ranking.bases else "not recorded"
    for key, text in (("seconds", seconds), ("bytes", size)):
        x = cost.get(key)
        shown.append([("–", why) if x is None else (text(x), "")])
    return shown


def _shown(estimate: Estimate | None, why: str, name: str = "") -> tuple[str, str]:
    if estimate is None:
        return "–", f"{name}: {why}" if name else why
    low, high = (percent(x).removesuffix(f"{GAP}%") for x in (estimate.low, estimate.high))
    return percent(estimate.value).removesuffix(f"{GAP}%"), f"{low}–{high}{f' {name}' if name else ''}"


def _named(ranking: Ranking, method: str, name: str) -> tuple[str, str]:
    """A method's rank and name, and its score."""
    if method in ranking.bases:
        return name, "for comparison"
    score = ranking.scores.get(method)
    if score is None:
        return name, ranking.why_unranked(method)
    value, interval = _shown(score, "")
    return f"{ranking.rank(method)} · {name}", f"score {value}, {interval}"


Costs = Callable[[str], Mapping[str, float | None]]


def section(ranking: Ranking, costs: Costs, name: Callable[[str], str]) -> str:
    """The table and its rule, as HTML."""
    rows = []
    for m in ranking.order:
        head, below = _named(ranking, m, name(m))
        shown = ["".join(f"{escape(a)}{small(escape(b))}" for a, b in cell) for cell in cells(ranking, m, costs(m))]
        rows.append((f"{escape(head)}{small(escape(below))}", shown))
    return f"{table('Leaderboard', [Th(h) for h in HEADS], rows)}<p>{escape(RULE)}</p>{note(escape(MEANING))}"


def markdown(ranking: Ranking, costs: Costs, name: Callable[[str], str]) -> str:
    """The table and its rule, as Markdown that fits the width of a page on GitHub: small print stands below each value."""
    text = [f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
    for m in ranking.order:
        given = [_lines([_named(ranking, m, name(m))]), *(_lines(cell) for cell in cells(ranking, m, costs(m)))]
        text.append(f"| {' | '.join(given)} |")
    return "\n".join([*text, "", RULE, "", MEANING])


def _lines(lines: Lines) -> str:
    return "<br>".join(f"{a}<br><sub>{b}</sub>" if b else a for a, b in lines).replace(GAP, " ")
