"""Mutation tests: each listed error in a formula or a released value must make a test fail. A nightly run; `--only uce` for some.

    .venv/bin/python benchmarks/mutants.py            # or: make mutants

mutants.toml lists them: a file of src/efface, a text that occurs in it exactly once, its erroneous replacement, and the tests that
must fail. Each is applied to a copy of the source, two at once; a mutant that survives shows a missing test.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent


def tried(mutant: dict[str, str]) -> str:
    """Run a mutant's tests: "red" (a test failed), "SURVIVED" (none did), or why it could not be run."""
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        file = source / "efface" / mutant["file"]
        text = file.read_text(encoding="utf-8")
        if (times := text.count(mutant["old"])) != 1:
            return f"STALE: {mutant['old']!r} occurs {times} times in {mutant['file']}; correct mutants.toml"
        file.write_text(text.replace(mutant["old"], mutant["new"]), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant["tests"].split()]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )  # fmt: skip
        if done.returncode == 1:
            return "red"
        return (
            "SURVIVED"
            if done.returncode == 0
            else f"NOT RUN: pytest exited with {done.returncode}: {done.stdout[-300:]}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only mutants whose file or text contains this")
    parser.add_argument("--at-once", type=int, default=2)
    given = parser.parse_args()
    listed = tomllib.loads((ROOT / "benchmarks" / "mutants.toml").read_text(encoding="utf-8"))["mutant"]
    wanted = [m for m in listed if given.only in f"{m['file']} {m['old']} {m['new']}"]
    bad = 0
    with ThreadPoolExecutor(given.at_once) as pool:
        for i, (mutant, verdict) in enumerate(zip(wanted, pool.map(tried, wanted), strict=True), 1):
            bad += verdict != "red"
            print(f"{i}/{len(wanted)} {verdict}: {mutant['file']}: {mutant['old']} -> {mutant['new']}", flush=True)
    print(
        f"{len(wanted) - bad} of {len(wanted)} mutants turned a test red."
        + (" The others show missing tests." if bad else "")
    )
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
