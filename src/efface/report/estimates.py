"""Estimates over tasks: a mean of the tasks' rates with an interval as wide as the tasks differ, and functions of several."""

from collections.abc import Callable, Sequence
from math import fsum, sqrt
from statistics import fmean
from typing import NamedTuple

from efface.metrics.rates import Rate
from efface.report.names import GAP, percent
from efface.report.scores import wilson_at


class Estimate(NamedTuple):
    """A number from 0 to 1 with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def interval(self) -> tuple[float, float]:
        """The lower and the upper limit."""
        return self.low, self.high


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


def shown(estimate: Estimate | None, why: str, name: str = "") -> tuple[str, str]:
    """A cell's value in percent, and its small print: the interval, or why there is none."""
    if estimate is None:
        return "–", f"{name}: {why}" if name else why
    low, high = (percent(x).removesuffix(f"{GAP}%") for x in (estimate.low, estimate.high))
    return percent(estimate.value).removesuffix(f"{GAP}%"), f"{low}–{high}{f' {name}' if name else ''}"
