"""Checks that a sweep survives `kill -9`: one undisturbed, one killed repeatedly, two at once, compared byte for byte.

    .venv/bin/python benchmarks/kill_nine.py [--kills 10] [--methods uce,esd-x] [--concepts tiger,rose] [--size quick]
        [--whole FOLDER STORE] [--fits 2] [--alone]

Prints the times; exits with 1 when a byte of the scores or the pictures differs. `--whole` names a sweep of the same methods, concepts
and size that nothing disturbed, instead of making one; the killed one is then given its fitted edits, all but `--fits` of them, since
training is most of the time. `--alone` leaves out the two processes at once.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from efface.benchmarks.store import Store

MAIN = "from efface.cli import main; main()"


def start(words: list[str], folder: Path, store: Path) -> subprocess.Popen[bytes]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}  # as many threads for each, whatever runs beside it
    command = [sys.executable, "-c", MAIN, "bench", *words, "-o", str(folder), "--store", str(store)]
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def contents(folder: Path, store: Path) -> dict[str, bytes]:
    """The scores, and each picture that they name."""
    scores = (folder / "scores.jsonl").read_bytes()
    images = {json.loads(line)["image"] for line in scores.splitlines()} - {""}
    return {"scores": scores, **{image: (store / image).read_bytes() for image in images}}


def lend(folder: Path, edits: Path, store: Path, without: int) -> None:
    """Give a store the fitted edits of a sweep, all but the slowest to fit: those of most bytes are trained ones."""
    runs = [json.loads(path.read_text()) for path in folder.glob("*/run.json")]
    used = {edit["file"] for run in runs for edit in run["edits"]}
    files = sorted(
        (f for f in edits.rglob("*.safetensors") if f.name in used), key=lambda f: (-f.stat().st_size, f.name)
    )
    Store(store)
    for f in files[without:]:
        target = store / "edits" / f.relative_to(edits)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(f, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--methods", default="uce,uce-2023,esd-x,esd-strict")
    parser.add_argument("--concepts", default="tiger,rose,bus,guitar,banana,noto,santa,alcohol")
    parser.add_argument("--size", default="quick")
    parser.add_argument("--whole", nargs=2, type=Path)
    parser.add_argument("--fits", type=int, default=2)
    parser.add_argument("--alone", action="store_true")
    args = parser.parse_args()
    words = ["--methods", args.methods, "--concepts", args.concepts, "--size", args.size]
    moments = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folder, store = args.whole or (root / "whole", root / "whole-store")
        began = time.monotonic()
        if not args.whole and start(words, folder, store).wait():
            raise SystemExit("the undisturbed sweep failed: run it by hand to see why")
        whole = time.monotonic() - began
        expected = contents(folder, store)
        if args.whole:
            lend(folder, store / "edits", root / "parts-store", args.fits)
            whole = 0.4 * len(expected)  # about what drawing takes here
        print(f"undisturbed: {len(expected) - 1} pictures, {whole:.0f} s", flush=True)
        for kill in range(args.kills):
            part = start(words, root / "parts", root / "parts-store")
            pause = moments.uniform(0.02, 2 / (args.kills + 1)) * whole
            time.sleep(pause)
            os.kill(part.pid, signal.SIGKILL)
            part.wait()
            done = len(list((root / "parts-store").rglob("*.png")))
            print(f"kill {kill + 1} after {pause:.0f} s: {done} pictures are there", flush=True)
        start(words, root / "parts", root / "parts-store").wait()
        compared = [("parts", "parts-store")]
        if not args.alone:
            began = time.monotonic()
            for one in [start(words, root / f"both{i}", root / "both-store") for i in range(2)]:
                one.wait()
            both = time.monotonic() - began
            print(f"two processes on one store: {both:.0f} s, {both / whole:.2f} of one's time", flush=True)
            compared += [("both0", "both-store"), ("both1", "both-store")]
        for folder_, store_ in compared:
            same = contents(root / folder_, root / store_) == expected
            print(f"{folder_}: {'the same bytes' if same else 'DIFFERS'} ({len(expected) - 1} pictures and the scores)")
            if not same:
                raise SystemExit(1)


if __name__ == "__main__":
    main()
