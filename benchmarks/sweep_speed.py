"""Pictures per second of a sweep (drawn, hashed, written to a store) against a bare diffusers loop at its best batch size.

    .venv/bin/python benchmarks/sweep_speed.py [--pictures 48] [--rounds 2] [--batches 4,8,16,32]

Both draw the same prompts and seeds with Moji, in turns in one process, so that what else the machine does falls on both. Prints the
best of each and their ratio; exits with 1 below 0.85.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from efface.benchmarks.draw import draw
from efface.benchmarks.moji import tasks
from efface.benchmarks.plan import recipes
from efface.benchmarks.spec import Sampler
from efface.benchmarks.store import Store
from efface.core.denoiser import load
from efface.core.log import Log


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batches", default="4,8,16,32")
    args = parser.parse_args()
    base, sampler = load("moji"), Sampler()
    (task,) = tasks("tiger", pictures=args.pictures, said=0, others=1, near=0, far=0)
    cells = [c for c in task.cells if c.role == "erase"]
    best: dict[str, float] = {}

    def note(name: str, seconds: float) -> None:
        best[name] = max(best.get(name, 0), len(cells) / seconds)
        print(f"{name}: {len(cells) / seconds:.2f} pictures a second", flush=True)

    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            store, began = Store(Path(folder) / "store"), time.perf_counter()
            draw(store, base, {}, recipes(base, {}, cells, sampler), Log())
            note("sweep", time.perf_counter() - began)
        for size in map(int, args.batches.split(",")):
            began = time.perf_counter()
            for i in range(0, len(cells), size):
                part = cells[i : i + size]
                base.pipeline(
                    [c.prompt for c in part], num_inference_steps=sampler.steps, guidance_scale=sampler.guidance,
                    generator=[torch.Generator().manual_seed(c.seed) for c in part],
                )  # fmt: skip
            note(f"diffusers, batch {size}", time.perf_counter() - began)
    name = max((n for n in best if n != "sweep"), key=lambda n: best[n])
    ratio = best["sweep"] / best[name]
    print(f"sweep {best['sweep']:.2f}, {name} {best[name]:.2f} pictures a second: {100 * ratio:.0f} %")
    raise SystemExit(ratio < 0.85)


if __name__ == "__main__":
    main()
