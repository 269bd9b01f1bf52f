"""Gradient passes a second of UnlearnDiffAtk, beside a bare loop of the denoiser's passes at its best batch size, on Moji.

    .venv/bin/python benchmarks/attack_speed.py

The bare loop takes the gradient of the same error in the same encoded prompts, and nothing else. Both take turns, and the best of each
counts, so that other work on the machine changes the ratio little.
"""

import time

import torch

from efface.attacks.base import Goal
from efface.attacks.unlearndiffatk import UnlearnDiffAtk
from efface.core.attempt import Drawing
from efface.core.concept import Concept
from efface.core.denoiser import Denoiser, load
from efface.core.meter import GRADIENT

PROMPTS, CALLS, TURNS = 4, 450, 3


def bare(model: Denoiser, batch: int, passes: int) -> float:
    """Gradient passes a second: one is one picture."""
    cond = model.embed(["a tiger"]).expand(batch)
    x, t = model.noise(list(range(batch))), torch.randint(len(model.schedule), (batch,))
    started, done = time.perf_counter(), 0
    while done < passes:
        rows = cond.tokens.clone().requires_grad_(True)
        error = model.predict(x, t, type(cond)(rows, cond.ids, cond.mask, cond.words)).square().mean()
        torch.autograd.grad(error, rows)
        done += batch
    return done / (time.perf_counter() - started)


def attacked(model: Denoiser, draws: int, passes: int) -> float:
    """Gradient passes a second of the whole search, with its comparisons of texts."""
    prompts = tuple(f"a {word} tiger" for word in ("red", "small", "happy", "old"))[:PROMPTS]
    goal = Goal(Concept("tiger", "cat"), prompts, model, (1, 2), Drawing(steps=4))
    UnlearnDiffAtk(draws=draws).prepare(model, goal)
    calls = GRADIENT * passes // PROMPTS
    started = time.perf_counter()
    found = UnlearnDiffAtk(draws=draws, every=10**6, judged=1).find(model, goal, calls)
    return found.calls / GRADIENT / (time.perf_counter() - started)


def main() -> None:
    model = load()
    batches = {batch: max(bare(model, batch, CALLS // 3) for _ in range(2)) for batch in (1, 2, 4, 8, 16)}
    best = max(batches, key=lambda b: batches[b])
    print(f"bare loop, passes a second by batch: {', '.join(f'{b}: {rate:.1f}' for b, rate in batches.items())}")
    pairs = [(bare(model, best, CALLS), attacked(model, max(1, best // PROMPTS), CALLS)) for _ in range(TURNS)]
    alone, search = (max(one) for one in zip(*pairs, strict=True))
    print(
        f"batch {best}: bare {alone:.1f}, UnlearnDiffAtk with {PROMPTS} prompts and {max(1, best // PROMPTS)} draws {search:.1f} passes a "
        f"second: {search / alone:.0%}"
    )


if __name__ == "__main__":
    main()
