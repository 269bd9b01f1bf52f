"""Rates and means over rows of scores: every number in a report is a group-by over `scores.jsonl`."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from math import fsum, nan, sqrt
from typing import Any, NamedTuple

from efface.benchmarks.row import BASE as BASE
from efface.benchmarks.row import GONE, ROLES, paired
from efface.metrics.rates import Rate, erased, found
from efface.metrics.statistics import bootstrap

FEWEST = 50  # pictures of a set whose distance is shown: of fewer, a Fréchet distance mostly measures how few they are

Row = dict[str, Any]  # a row of efface.benchmarks.row as it was read, with what a reader adds to it


class Column(NamedTuple):
    """A column of a table: role, judge and score. Rows of different judges are never combined."""

    role: str
    judge: str
    score: str

    @property
    def gone(self) -> bool:
        """Whether success means that the concept is NOT found."""
        return self.role in GONE


class Mean(NamedTuple):
    """Mean of a number over `n` pictures with its bootstrap interval; `failed` of them have none.

    A number about sets of pictures has no interval, and `smallest` is how many pictures its smallest set has.
    """

    value: float
    n: int
    failed: int = 0
    low: float | None = None
    high: float | None = None
    smallest: int | None = None

    @property
    def too_few(self) -> bool:
        """Whether it is a distance of too few pictures to be meaningful."""
        return self.smallest is not None and self.smallest < FEWEST


def is_rate(score: str) -> bool:
    """Whether a score is found / not found: "topK", "anyT"."""
    return re.fullmatch(r"top\d+|any[\d.]+", score) is not None


def wilson_at(rate: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate that is worth `n` independent pictures, which need not be a whole number."""
    z2 = 1.959964**2 / n
    middle, half = (rate + z2 / 2) / (1 + z2), sqrt(z2 * (rate * (1 - rate) + z2 / 4)) / (1 + z2)
    return max(0.0, middle - half), min(1.0, middle + half)


class Scores:
    """Rows by model (the row's field `key`) and by column; rows of attacks are separate."""

    def __init__(self, rows: Iterable[Row], key: str = "edit") -> None:
        self._groups: dict[tuple[str, Column], list[Row]] = defaultdict(list)
        self._attacks: dict[str, list[Row]] = defaultdict(list)
        for row in paired(rows):
            if row["attack"]:
                self._attacks[row[key]].append(row)
            else:
                self._groups[row[key], Column(row["role"], row["judge"], row["score"])].append(row)
        seen = dict.fromkeys(column for _, column in self._groups)
        self._columns = tuple(
            sorted(seen, key=lambda column: ROLES.index(column.role))
        )  # stable: scores as the writer has them

    @property
    def rates(self) -> tuple[Column, ...]:
        """Columns with a success rate, in the order of ROLES."""
        return tuple(column for column in self._columns if is_rate(column.score))

    @property
    def numbers(self) -> tuple[Column, ...]:
        """Columns with a mean."""
        return tuple(column for column in self._columns if not is_rate(column.score))

    def main(self, *roles: str) -> tuple[Column, ...]:
        """The first success rate of each judge in these roles, or in all."""
        first = {
            (column.role, column.judge): column for column in reversed(self.rates) if column.role in (roles or ROLES)
        }
        return tuple(reversed(first.values()))

    def rows(self, model: str, column: Column, **where: object) -> list[Row]:
        """Rows of a model with these fields."""
        own = self._groups.get((model, column), ())
        return [row for row in own if all(row.get(k) == v for k, v in where.items())]

    def concepts(self, column: Column) -> tuple[str, ...]:
        """Concepts of a column, in the order in which they were drawn."""
        return tuple(
            dict.fromkeys(row["concept"] for (_, a), rows in self._groups.items() if a == column for row in rows)
        )

    def rate(self, model: str, column: Column, **where: object) -> Rate:
        """ESR (concept not found) for what was erased, PSR (concept found) for the rest.

        ESR is over the pairs in which the unedited model's picture shows it, and what did not change was not erased: see `row.paired`.
        """
        return (erased if column.gone else found)(self._counted(model, column, **where), column.score)

    def _counted(self, model: str, column: Column, **where: object) -> list[Row]:
        return [row for row in self.rows(model, column, **where) if row.get("shown", True)]

    def drawn(self, column: Column) -> Rate:
        """In how many of its pictures the unedited model shows what was asked for."""
        return found(self.rows(BASE, column), column.score)

    def unchanged(self, model: str, column: Column) -> tuple[int, int]:
        """Pictures that are as before although they ask for what was erased, and how many of them the detector called otherwise."""
        rows = self._counted(model, column)
        return sum(row.get("unchanged", False) for row in rows), sum(row.get("flipped", False) for row in rows)

    def mean(self, model: str, column: Column, **where: object) -> Mean:
        """Mean over pictures, or over the sets of pictures it was measured on."""
        rows = self.rows(model, column, **where)
        values = [row["value"] for row in rows if row["value"] is not None]
        n = sum(row.get("n", 1) for row in rows if row["value"] is not None)
        alone = len(values) > 1 and not any("n" in row for row in rows)
        low, high = bootstrap(values, draws=400) if alone else (None, None)
        smallest = min((row["n"] for row in rows if "n" in row and row["value"] is not None), default=None)
        return Mean(fsum(values) / len(values) if values else nan, n, len(rows) - len(values), low, high, smallest)

    def pairs(self, before: str, after: str, column: Column, **where: object) -> tuple[int, int]:
        """Equal prompts and seeds on which `before` succeeds and `after` does not, and the reverse."""
        one, two = ({_key(row): row["value"] for row in self.rows(model, column, **where)} for model in (before, after))
        both = Counter((one[key], value) for key, value in two.items() if key in one)
        lost, won = both[1, 0], both[0, 1]
        return (won, lost) if column.gone else (lost, won)

    def interval(self, model: str, column: Column) -> tuple[float, float]:
        """Wilson's 95 % interval at the effective number of pictures, since pictures of one task are not independent.

        The variance of a rate over m tasks of n_i pictures with h_i hits is m/(m-1) Σ (h_i - r n_i)² / n² (the ratio estimator's,
        Cochran 1977, §9A); n is divided by how many times that exceeds r(1-r)/n. It is at most the number of pictures of one training
        seed: the same prompts and seeds drawn once more are no further evidence about prompts.
        """
        rows = self._counted(model, column)
        rate, tasks, fits = self.rate(model, column), Counter[str](), len({row["nth"] for row in rows})
        wanted = 0 if column.gone else 1
        for row in rows:
            if row["value"] is not None:
                tasks[row["task"]] += (row["value"] == wanted) - rate.value
        binomial = rate.hits * (rate.n - rate.hits) / rate.n if rate.n else 0.0
        if not rate.n:
            return rate.interval
        variance = fsum(x * x for x in tasks.values()) * len(tasks) / max(1, len(tasks) - 1)
        n = rate.n / max(fits, variance / binomial if binomial and len(tasks) > 1 else 1)
        return wilson_at(rate.value, n)

    def attacks(self, model: str) -> dict[str, list[Row]]:
        """Attacked cells by attack, and by judge where several judged: their first score that says found or not."""
        rows = [row for row in self._attacks.get(model, ()) if is_rate(row["score"])]
        first = {row["judge"]: row["score"] for row in reversed(rows)}
        tried: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            if row["score"] == first[row["judge"]]:
                tried[f"{row['attack']}, {row['judge']} judge" if len(first) > 1 else row["attack"]].append(row)
        return dict(tried)


def _key(row: Row) -> tuple[Any, ...]:
    return row["task"], row["concept"], row["prompt"], row["seed"], row.get("nth", 0)
