"""A run's numbers as JSON, CSV and LaTeX."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from efface.benchmarks.row import FIELDS
from efface.metrics.calibration import Calibration, calibration
from efface.metrics.rates import Rate
from efface.metrics.statistics import mcnemar
from efface.report.attacks import success, success_by_calls
from efface.report.folder import Run
from efface.report.latex import tabular, tex, tex_rate
from efface.report.matrix import changes, concept_columns
from efface.report.names import column_title
from efface.report.scores import BASE, Row
from efface.report.summary import details, p_values, sentences


def rate_json(rate: Rate) -> dict[str, Any]:
    """A rate as JSON; null if nothing was counted."""
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


def calibration_json(found: Mapping[str, Calibration]) -> dict[str, Any]:
    """The judges' errors on the unedited model's pictures, by detector id."""
    return {
        i: {
            "misses": rate_json(c.misses), "false_alarms": rate_json(c.false_alarms),
            "by_concept": {k: {"misses": rate_json(v.misses), "false_alarms": rate_json(v.false_alarms)} for k, v in c.by_concept.items()},
        }
        for i, c in found.items()
    }  # fmt: skip


def report_json(run: Run) -> str:
    """report.json: every number of the page and its source, as success rates (more is better)."""
    scores, keys, p_holm = run.scores, concept_columns(run.scores), p_values(run.scores, run.edits)
    tests = [(e, column, *scores.pairs(BASE, e, column), p) for (e, column), p in p_holm.items()]
    found = {
        "run": {k: v for k, v in run.info.items() if k != "edits"},
        "edits": run.info["edits"],
        "sentences": sentences(run),
        "details": details(run),
        "rates": [
            {"edit": i, **column._asdict(), "concept": c, **rate_json(scores.rate(i, column, **({"concept": c} if c else {})))}
            for i in run.names for column in scores.rates for c in (None, *scores.concepts(column))
        ],
        "means": [
            {"edit": i, **column._asdict(), **scores.mean(i, column)._asdict()}
            for i in run.names for column in scores.numbers if scores.mean(i, column).n
        ],
        "changes": [
            {"edit": i, **column._asdict(), "concept": c, "change": round(x, 6)}
            for i in run.edits for (column, c), x in changes(scores, i, keys).items()
        ],
        "tests": [
            {"edit": e, **column._asdict(), "lost": lost, "won": won, "p": mcnemar(lost, won), "p_holm": p}
            for e, column, lost, won, p in tests
        ],
        "attacks": [
            {"edit": i, "attack": name, "success": rate_json(success(rows)), "budget": success_by_calls(rows)}
            for i in run.names for name, rows in scores.attacks(i).items()
        ],
        "calibration": calibration_json(calibration(run.rows)),
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
    columns = run.scores.main()
    rows = [[tex(name), *[tex_rate(run.scores.rate(i, column)) for column in columns]] for i, name in run.names.items()]
    caption = f"{run.info['title']}; protocol {run.info['protocol']}; percent with Wilson 95 % intervals; no correction of the judge"
    return tabular(caption, ["Model", *[column_title(column, run.scores) for column in columns]], rows)
