"""The words that the search of AP or AGE found, over training steps: as text and as a page. Reads an edit's header only."""

from collections.abc import Mapping
from html import escape
from typing import Any

from efface.report.page import facts, note, page
from efface.report.plots import line_chart

Found = Mapping[str, Any]  # of one concept: how many candidates there were, steps, and at each the shares by word


def search_results(record: Mapping[str, Any]) -> Mapping[str, Found]:
    """The search results in an edit's recipe, by concept; empty for a method that does not search."""
    return record.get("notes", {}).get("found", {})


def as_text(record: Mapping[str, Any], moments: int = 5) -> str:
    """For each concept the word with the largest share at some steps: a line each."""
    out = ""
    for concept, seen in search_results(record).items():
        last = len(seen["steps"]) - 1
        at = sorted({round(i * last / (moments - 1)) for i in range(moments)})
        lines = []
        for mark in at:
            word, shares = max(seen["shares"].items(), key=lambda entry: entry[1][mark])
            lines.append(f"step {seen['steps'][mark]} {word} {100 * shares[mark]:.0f} %")
        out += f"{concept}, of {seen['of']} words: {'; '.join(lines)}\n"
    return out


def as_page(record: Mapping[str, Any]) -> str:
    """A page with the largest shares over the training steps, a figure for each concept."""
    recipe = {"method": record["method"], "model": record["model"], "made": record["created"]}
    figures = [facts(recipe.items())]
    for concept, seen in search_results(record).items():
        series = {
            w: [(float(step), s) for step, s in zip(seen["steps"], shares, strict=True)]
            for w, shares in seen["shares"].items()
        }
        figures.append(
            f"<h2>{escape(concept)}</h2>"
            + line_chart(series, "training step", "chosen, %")
            + note(
                f"How often the search would choose a word, of {seen['of']}: at first each is as likely as any other."
            )
        )
    return page(f"What {record['method']} found while erasing {', '.join(search_results(record))}", figures)
