"""A run's numbers for machines: JSON, CSV and LaTeX."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from efface.benchmarks.row import FIELDS
from efface.metrics.calibration import Calibration, calibration
from efface.metrics.rates import Rate
from efface.metrics.statistics import mcnemar
from efface.report.attacks import budget, success
from efface.report.folder import Run
from efface.report.latex import tabular, tex, tex_rate
from efface.report.matrix import changes, columns
from efface.report.scores import BASE, Row
from efface.report.words import chances, column, verdicts


def rates(rate: Rate) -> dict[str, Any]:
    """A rate as JSON: null where nothing was counted."""
    low, high = rate.interval
    value = round(rate.value, 6) if rate.n else None
    return {
        "value": value,
        "low": round(low, 6),
        "high": round(high, 6),
        "hits": rate.hits,
        "n": rate.n,
        "failed": rate.failed,
    }


def errors(found: Mapping[str, Calibration]) -> dict[str, Any]:
    """The judges' errors on the unedited model's pictures, by detector id."""
    return {
        i: {
            "misses": rates(c.misses), "false_alarms": rates(c.false_alarms),
            "by_concept": {k: {"misses": rates(v.misses), "false_alarms": rates(v.false_alarms)} for k, v in c.by_concept.items()},
        }
        for i, c in found.items()
    }  # fmt: skip


def numbers(run: Run) -> str:
    """report.json: every number of the page and where it comes from; successes, so that more is better."""
    scores, keys, chance = run.scores, columns(run.scores), chances(run.scores, run.edits)
    tests = [(e, ask, *scores.pairs(BASE, e, ask), p) for (e, ask), p in chance.items()]
    found = {
        "run": {k: v for k, v in run.info.items() if k != "edits"},
        "edits": run.info["edits"],
        "verdicts": verdicts(run),
        "rates": [
            {"edit": i, **ask._asdict(), "concept": c, **rates(scores.rate(i, ask, **({"concept": c} if c else {})))}
            for i in run.names for ask in scores.rates for c in (None, *scores.concepts(ask))
        ],
        "means": [
            {"edit": i, **ask._asdict(), **scores.mean(i, ask)._asdict()}
            for i in run.names for ask in scores.numbers if scores.mean(i, ask).n
        ],
        "changes": [
            {"edit": i, **ask._asdict(), "concept": c, "change": round(x, 6)}
            for i in run.edits for (ask, c), x in changes(scores, i, keys).items()
        ],
        "tests": [
            {"edit": e, **ask._asdict(), "lost": lost, "won": won, "p": mcnemar(lost, won), "p_holm": p}
            for e, ask, lost, won, p in tests
        ],
        "attacks": [
            {"edit": i, "attack": name, "success": rates(success(rows)), "budget": budget(rows)}
            for i in run.names for name, rows in scores.attacks(i).items()
        ],
        "calibration": errors(calibration(run.rows)),
    }  # fmt: skip
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def table_csv(rows: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> str:
    """Rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def rows_csv(rows: Iterable[Row]) -> str:
    """scores.csv: every row of scores.jsonl, long form."""
    return table_csv(list(rows), FIELDS)


def run_tex(run: Run) -> str:
    """table.tex: the first score of each role and judge, in percent with Wilson intervals."""
    asks = run.scores.main()
    rows = [[tex(name), *[tex_rate(run.scores.rate(i, ask)) for ask in asks]] for i, name in run.names.items()]
    caption = f"{run.info['title']}; protocol {run.info['protocol']}; percent with Wilson 95 % intervals; no correction of the judge"
    return tabular(caption, ["Model", *[column(ask, run.scores) for ask in asks]], rows)
