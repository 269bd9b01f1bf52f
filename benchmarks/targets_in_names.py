"""Erases names of Moji's that contain their target ("police car" to "car"): is the name gone, and is the target whole?

    python benchmarks/targets_in_names.py [--methods uce,rece] [--output docs/targets-in-names.md]

Each pair is fitted by itself; eight pictures of each name and of each target are judged by Moji's concept judge. Targets that Moji
does not draw by themselves ("tree" of "palm tree") have no column of their own.
"""

import argparse
from pathlib import Path

import efface
from efface.benchmarks import moji
from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.files import write_text
from efface.erasers import make
from efface.metrics.detectors import Detector, detector
from efface.metrics.statistics import wilson

PICTURES = 8
SEED = 5000


def pairs() -> list[tuple[str, str]]:
    """Every name of several words in Moji's vocabulary, and its last word."""
    return [(name, name.split()[-1]) for name in moji.concepts() if " " in name]


def shown(model: Denoiser, judge: Detector, name: str, asked: str = "") -> int:
    """In how many pictures of `asked`, or of `name` itself, the judge sees `name`."""
    styles = moji.concepts()[name]["styles"]
    prompts = [moji.prompt(asked or name, styles[i % len(styles)]) for i in range(PICTURES)]
    pictures = model.images(prompts, [SEED + i for i in range(PICTURES)])
    return sum(top[0][0] == name for top in judge.top(pictures, 1))


def main() -> None:
    """Fit, draw, judge, and write the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--methods", default="uce,rece")
    options.add_argument("--output", type=Path, default=Path("docs/targets-in-names.md"))
    given = options.parse_args()
    base, judge, methods = efface.load("moji"), detector("moji-concept"), given.methods.split(",")
    lines, totals = [], {m: [0, 0, 0, 0] for m in ["unedited", *methods]}
    for name, target in pairs():
        own = shown(base, judge, name, target)
        cells = [str(own)]
        for method in totals:
            edit = None if method == "unedited" else make(method).fit(base, Concept(name, target))
            model = base if edit is None else edit(base)
            counts = [shown(model, judge, name)]
            if target in moji.concepts():
                counts.append(shown(model, judge, target))
            for i, count in enumerate(counts):
                if own < PICTURES / 2:
                    totals[method][2 * i] += count
                    totals[method][2 * i + 1] += PICTURES
            cells.append(" / ".join(map(str, counts)))
        lines.append(f"| {name} | {target} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    lines.append("| **in percent** | | " + " | ".join(["", *(_percent(*totals[m]) for m in totals)]) + " |")
    head = f"| name | target | drawn for the target | {' | '.join(totals)} |\n|---|---|---|{'---|' * len(totals)}\n"
    text = (
        "# Targets inside names\n\nErasing a name to a word that it contains, such as \"police car\" to \"car\". In how many of "
        f"{PICTURES} pictures the judge sees the name (0 is right) / the target, where Moji draws it by itself ({PICTURES} is right). "
        "\"Drawn for the target\": in how many pictures of the target alone the unedited model draws the name: where it always does, as "
        "for \"cream\", nothing can be said. The last row is in percent, with 95 % Wilson intervals, over the other pairs. "
        "`python benchmarks/targets_in_names.py` makes this page.\n\n"
    )  # fmt: skip
    write_text(given.output, text + head + "\n".join(lines) + "\n")


def _percent(names: int, asked: int, targets: int, wanted: int) -> str:
    parts = []
    for count, n in ((names, asked), (targets, wanted)):
        low, high = wilson(count, n)
        parts.append(f"{100 * count / n:.0f} [{100 * low:.0f}, {100 * high:.0f}]")
    return " / ".join(parts)


if __name__ == "__main__":
    main()
