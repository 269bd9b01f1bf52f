"""Rows of scores, grouped: every number in a report is a group-by over `scores.jsonl`."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from math import fsum, nan, sqrt
from typing import Any, NamedTuple

from efface.benchmarks.row import BASE as BASE
from efface.benchmarks.row import GONE, ROLES
from efface.metrics.rates import Rate, erased, found
from efface.metrics.statistics import bootstrap

Row = dict[str, Any]  # a row of efface.benchmarks.row as it was read, with what a reader adds to it


class Ask(NamedTuple):
    """What a number is about. What different judges said is never counted together."""

    role: str
    judge: str
    score: str

    @property
    def gone(self) -> bool:
        """Whether it counts as a success that the concept is NOT found."""
        return self.role in GONE


class Mean(NamedTuple):
    """Mean of a number over `n` pictures with its bootstrap interval; `failed` of them have none. A number about sets has no interval."""

    value: float
    n: int
    failed: int = 0
    low: float | None = None
    high: float | None = None


def is_rate(score: str) -> bool:
    """Whether a score says found or not found: "topK", "anyT"."""
    return re.fullmatch(r"top\d+|any[\d.]+", score) is not None


class Scores:
    """Rows by model (`who`: the row's key that names it) and by what was asked; rows of attacks apart."""

    def __init__(self, rows: Iterable[Row], who: str = "edit") -> None:
        self._groups: dict[tuple[str, Ask], list[Row]] = defaultdict(list)
        self._attacks: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            if row["attack"]:
                self._attacks[row[who]].append(row)
            else:
                self._groups[row[who], Ask(row["role"], row["judge"], row["score"])].append(row)
        seen = dict.fromkeys(ask for _, ask in self._groups)
        self._asks = tuple(sorted(seen, key=lambda ask: ROLES.index(ask.role)))  # stable: scores as the writer has them

    @property
    def rates(self) -> tuple[Ask, ...]:
        """Everything that has a success rate, in the order of ROLES."""
        return tuple(ask for ask in self._asks if is_rate(ask.score))

    @property
    def numbers(self) -> tuple[Ask, ...]:
        """Everything that has a mean."""
        return tuple(ask for ask in self._asks if not is_rate(ask.score))

    def main(self, *roles: str) -> tuple[Ask, ...]:
        """The first success rate of each judge in these roles, or in all."""
        first = {(ask.role, ask.judge): ask for ask in reversed(self.rates) if ask.role in (roles or ROLES)}
        return tuple(reversed(first.values()))

    def pick(self, who: str, ask: Ask, **where: object) -> list[Row]:
        """Rows of a model with these fields."""
        rows = self._groups.get((who, ask), ())
        return [row for row in rows if all(row[k] == v for k, v in where.items())]

    def concepts(self, ask: Ask) -> tuple[str, ...]:
        """What was asked for, in the order in which it was drawn."""
        return tuple(dict.fromkeys(row["concept"] for (_, a), rows in self._groups.items() if a == ask for row in rows))

    def rate(self, who: str, ask: Ask, **where: object) -> Rate:
        """ESR (concept not found) for what was erased, PSR (concept found) for the rest."""
        return (erased if ask.gone else found)(self.pick(who, ask, **where), ask.score)

    def mean(self, who: str, ask: Ask, **where: object) -> Mean:
        """Mean over pictures, or over the sets of pictures it was measured on."""
        rows = self.pick(who, ask, **where)
        values = [row["value"] for row in rows if row["value"] is not None]
        n = sum(row.get("n", 1) for row in rows if row["value"] is not None)
        alone = len(values) > 1 and not any("n" in row for row in rows)
        low, high = bootstrap(values, draws=400) if alone else (None, None)
        return Mean(fsum(values) / len(values) if values else nan, n, len(rows) - len(values), low, high)

    def pairs(self, before: str, after: str, ask: Ask) -> tuple[int, int]:
        """Equal prompts and seeds on which `before` succeeds and `after` does not, and the reverse."""
        one, two = ({_key(row): row["value"] for row in self.pick(who, ask)} for who in (before, after))
        both = Counter((one[key], value) for key, value in two.items() if key in one)
        lost, won = both[1, 0], both[0, 1]
        return (won, lost) if ask.gone else (lost, won)

    def interval(self, who: str, ask: Ask) -> tuple[float, float]:
        """Wilson's 95 % interval at the number of pictures that would say as much if those of one task were independent.

        The variance of a rate over m tasks of n_i pictures with h_i hits is m/(m-1) Σ (h_i - r n_i)² / n² (the ratio estimator's,
        Cochran 1977, §9A); n is divided by how many times that exceeds r(1-r)/n. It is at most the number of pictures of one training
        seed: the same prompts and seeds drawn once more are no further evidence about prompts.
        """
        rows = self.pick(who, ask)
        rate, tasks, fits = self.rate(who, ask), Counter[str](), len({row["nth"] for row in rows})
        wanted = 0 if ask.gone else 1
        for row in rows:
            if row["value"] is not None:
                tasks[row["task"]] += (row["value"] == wanted) - rate.value
        plain = rate.hits * (rate.n - rate.hits) / rate.n if rate.n else 0.0
        if not rate.n:
            return rate.interval
        spread = fsum(x * x for x in tasks.values()) * len(tasks) / max(1, len(tasks) - 1)
        n = rate.n / max(fits, spread / plain if plain and len(tasks) > 1 else 1)
        z2 = 1.959964**2 / n
        middle, half = (rate.value + z2 / 2) / (1 + z2), sqrt(z2 * (rate.value * (1 - rate.value) + z2 / 4)) / (1 + z2)
        return max(0.0, middle - half), min(1.0, middle + half)

    def attacks(self, who: str) -> dict[str, list[Row]]:
        """Attacked cells by attack, and by judge where several judged: their first score that says found or not."""
        rows = [row for row in self._attacks.get(who, ()) if is_rate(row["score"])]
        first = {row["judge"]: row["score"] for row in reversed(rows)}
        tried: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            if row["score"] == first[row["judge"]]:
                tried[f"{row['attack']}, {row['judge']} judge" if len(first) > 1 else row["attack"]].append(row)
        return dict(tried)


def _key(row: Row) -> tuple[Any, ...]:
    return row["task"], row["concept"], row["prompt"], row["seed"], row.get("nth", 0)
