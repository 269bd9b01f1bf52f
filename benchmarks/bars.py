"""Is it gone, and who else was hurt: UCE and ESD-x on ten of Moji's concepts, beside the unedited model, with intervals.

    .venv/bin/python benchmarks/bars.py [--only tiger,noto] [--output bars]

Prints one Markdown table and writes it, with every row of scores, to the output folder; concepts that are there are not measured again.
"""

import argparse
import json
import time
from pathlib import Path

from efface.benchmarks.moji import kind, members, neighbours, plan
from efface.benchmarks.run import evaluate
from efface.core.concept import Concept
from efface.core.denoiser import load
from efface.core.files import write_text
from efface.erasers import make
from efface.metrics.rates import Rate, erased, found

CONCEPTS = ("tiger", "rose", "bus", "guitar", "banana", "blob", "contrast", "santa", "robot", "alcohol")
METHODS = ("uce", "esd-x")
STYLE = "noto"  # UCE's target for a style: asked for no style, Moji draws any of its six, the erased one among them


def rows_of(name: str, base, folder: Path) -> tuple[list[dict], dict[str, float]]:
    """Scores of one concept, measured or read, and the seconds each method took."""
    if (folder / "seconds.json").exists():
        rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
        return rows, json.loads((folder / "seconds.json").read_text())
    gone = members(name)
    edits = {}
    for method in METHODS:
        kept = neighbours(gone, 8) if method == "uce" else ()
        target = STYLE if method == "uce" and kind(name) == "style" else ""
        edits[method] = make(method).fit(base, [Concept(g, target, kind=kind(g)) for g in gone], kept, model="moji")
    cells = plan(gone, pictures=max(6, 24 // len(gone)), others=6, near=4, far=5)
    rows = evaluate(base, edits, cells, folder, name=name)
    seconds = {m: e.header.seconds for m, e in edits.items()}
    write_text(folder / "seconds.json", json.dumps(seconds))
    return rows, seconds


def line(label: str, rows: list[dict], seconds: float | None, method: str) -> str:
    def cell(rate: Rate) -> str:
        low, high = rate.interval
        return f"{100 * rate.value:.0f} [{100 * low:.0f}, {100 * high:.0f}]"

    values = [cell(erased(rows, f"top{k}", edit=method, role="erase")) for k in (1, 5)]
    values += [cell(found(rows, f"top{k}", edit=method, role=r)) for r in ("neighbour", "distant") for k in (1, 5)]
    return f"| {label} | {method} | {' | '.join(values)} | {'' if seconds is None else f'{seconds:.1f}'} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(CONCEPTS))
    parser.add_argument("--output", type=Path, default=Path("bars"))
    args = parser.parse_args()
    base, everything, times = load("moji"), [], {m: [] for m in METHODS}
    table = [
        "| erased | edit | ESR-1 | ESR-5 | PSR-1 near | PSR-5 near | PSR-1 far | PSR-5 far | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in args.only.split(","):
        started = time.perf_counter()
        rows, seconds = rows_of(name, base, args.output / name)
        everything += rows
        for method in ("base", *METHODS):
            table.append(line(name, rows, seconds.get(method), method))
            if method in seconds:
                times[method].append(seconds[method])
        print("\n".join(table[-3:]), f"  ({time.perf_counter() - started:.0f} s)", flush=True)
    table += [line("**all**", everything, max(times[m]) if m in times else None, m) for m in ("base", *METHODS)]
    kept = {
        m: sum(found(everything, "top1", edit=m, role=r).hits for r in ("neighbour", "distant"))
        for m in ("base", *METHODS)
    }
    share = "; ".join(f"{m} keeps {100 * kept[m] / kept['base']:.1f} % of the unedited model's PSR-1" for m in METHODS)
    page = "\n".join([*table, "", f"{share}. The last column of the last rows is the longest fit.", ""])
    write_text(args.output / "table.md", page)
    print(page)


if __name__ == "__main__":
    main()
