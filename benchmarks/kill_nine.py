"""Does a sweep survive `kill -9`? One undisturbed, one killed again and again, two at once: compared byte for byte.

    .venv/bin/python benchmarks/kill_nine.py [--kills 10] [--methods uce,esd-x] [--concepts tiger,rose] [--size quick]

Prints the times; exits with 1 when a byte of the scores or the pictures differs.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MAIN = "from efface.cli import main; main()"


def start(words: list[str], folder: Path, store: Path) -> subprocess.Popen[bytes]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}  # as many threads for each, whatever runs beside it
    command = [sys.executable, "-c", MAIN, "bench", *words, "-o", str(folder), "--store", str(store)]
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def contents(folder: Path, store: Path) -> dict[str, bytes]:
    files = [folder / "scores.jsonl", *sorted((store / "pictures").rglob("*.png"))]
    return {f.name: f.read_bytes() for f in files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--methods", default="uce,uce-2023,esd-x,esd-strict")
    parser.add_argument("--concepts", default="tiger,rose,bus,guitar,banana,noto,santa,alcohol")
    parser.add_argument("--size", default="quick")
    args = parser.parse_args()
    words = ["--methods", args.methods, "--concepts", args.concepts, "--size", args.size]
    moments = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        began = time.monotonic()
        if start(words, root / "whole", root / "whole-store").wait():
            raise SystemExit("the undisturbed sweep failed: run it by hand to see why")
        whole = time.monotonic() - began
        print(f"undisturbed: {whole:.0f} s", flush=True)
        for kill in range(args.kills):
            part = start(words, root / "parts", root / "parts-store")
            pause = moments.uniform(0.02, 2 / (args.kills + 1)) * whole
            time.sleep(pause)
            os.kill(part.pid, signal.SIGKILL)
            part.wait()
            done = len(list((root / "parts-store").rglob("*.png")))
            print(f"kill {kill + 1} after {pause:.0f} s: {done} pictures are there", flush=True)
        start(words, root / "parts", root / "parts-store").wait()
        began = time.monotonic()
        for one in [start(words, root / f"both{i}", root / "both-store") for i in range(2)]:
            one.wait()
        both = time.monotonic() - began
        print(f"two processes on one store: {both:.0f} s, {both / whole:.2f} of one's time", flush=True)
        expected = contents(root / "whole", root / "whole-store")
        for folder, store in (("parts", "parts-store"), ("both0", "both-store"), ("both1", "both-store")):
            same = contents(root / folder, root / store) == expected
            print(f"{folder}: {'the same bytes' if same else 'DIFFERS'} ({len(expected) - 1} pictures and the scores)")
            if not same:
                raise SystemExit(1)


if __name__ == "__main__":
    main()
