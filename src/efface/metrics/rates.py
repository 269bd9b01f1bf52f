"""Erasing and preserving success rates over scored pictures (reference: AdvAnchor's ESR-k and PSR-k), without torch.

A row says of one picture whether the detector found the concept that was asked for among its k best guesses; None where it failed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from efface.metrics.statistics import wilson


@dataclass(frozen=True)
class Rate:
    """`hits` of `n` pictures; `failed` detector errors are counted in neither."""

    hits: int
    n: int
    failed: int = 0

    @property
    def value(self) -> float:
        """The rate, NaN when nothing was counted."""
        return self.hits / self.n if self.n else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        return wilson(self.hits, self.n)

    def __str__(self) -> str:
        """As a percentage with its interval."""
        low, high = self.interval
        return f"{100 * self.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {self.n}"


def found(rows: Iterable[Mapping[str, Any]], score: str, **where: Any) -> Rate:
    """How often the concept asked for was found, over rows of `score` that match `where`: PSR-k, and 1 - ESR-k."""
    values = [r["value"] for r in rows if r["score"] == score and all(r[k] == v for k, v in where.items())]
    counted = [v for v in values if v is not None]
    return Rate(sum(map(bool, counted)), len(counted), len(values) - len(counted))


def erased(rows: Iterable[Mapping[str, Any]], score: str, **where: Any) -> Rate:
    """ESR-k: how often the concept asked for was NOT found; a failed detector is no success."""
    rate = found(rows, score, **where)
    return Rate(rate.n - rate.hits, rate.n, rate.failed)
