"""The cost of a benchmark, counted before it runs: fits, pictures, denoiser calls, and the files and judges the user must give."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efface.benchmarks.spec import Benchmark

Picture = tuple[str, int, float | None]  # prompt, seed, guidance


def cost(
    benchmark: Benchmark,
    prompts: int | None = None,
    *,
    tasks: int | None = None,
    files: Mapping[str, Path] | None = None,
    seconds: float = 0.3,
) -> dict[str, Any]:
    """Counts for one method, and for the unedited model, whose pictures serve every task and method.

    A picture is a prompt with a seed and a guidance: judged twice, it is drawn once. Tasks are looked at one after the other.

    Args:
        benchmark: any.
        prompts: of each role and concept, None for all.
        tasks: the first so many, None for all.
        files: the prompts it needs.
        seconds: to draw one picture; 0.3 is one of 512 pixels in 50 steps on a data-centre GPU, 2 on a workstation's.

    Raises:
        UsageError: a prompt file is missing.
    """
    done = pictures = calls = 0
    fits: set[Any] = set()
    base: set[Picture] = set()
    for task in benchmark.made(files, prompts=prompts, tasks=tasks):
        drawn = {(cell.prompt, cell.seed, cell.guidance) for cell in task.cells}
        done, pictures, calls = done + 1, pictures + len(drawn), calls + _calls(benchmark, drawn)
        base |= drawn
        chain = (*task.after, task.erase)
        fits |= {(chain[:n], task.preserve) for n in range(1, len(chain) + 1)}
    return {
        "tasks": done, "fits": len(fits), "pictures": pictures, "calls": calls, "hours": pictures * seconds / 3600,
        "base pictures": len(base), "base calls": _calls(benchmark, base), "base hours": len(base) * seconds / 3600, **needs(benchmark),
    }  # fmt: skip


def needs(benchmark: Benchmark) -> dict[str, Any]:
    """What must be there: the model, prompt files and where to get them, detectors (None: one to be given), measures."""
    return {
        "model": benchmark.model,
        "files": {name: file.where for name, file in benchmark.files.items()},
        "detectors": {name: judge.detector or None for name, judge in benchmark.judges.items()},
        "measures": list(benchmark.measures),
    }


def _calls(benchmark: Benchmark, pictures: set[Picture]) -> int:
    """Evaluations of the denoiser: two a step under guidance, with and without the prompt."""
    usual = benchmark.sampler.guidance
    plain = sum((usual if guidance is None else guidance) == 1 for _, _, guidance in pictures)
    return benchmark.sampler.steps * (2 * len(pictures) - plain)


def sentence(counts: Mapping[str, Any], methods: int, name: str) -> str:
    """What a sweep of `methods` fits of each task will draw."""
    pictures, calls = (methods * counts[k] + counts[f"base {k}"] for k in ("pictures", "calls"))
    return (
        f"{name}: {_many(counts['tasks'], 'task')}, {_many(methods * counts['fits'], 'fit')}, {pictures} pictures at most "
        f"({counts['base pictures']} of the unedited model), {calls} evaluations of the denoiser."
    )


def facts(benchmark: Benchmark) -> dict[str, str]:
    """What to know before a benchmark is run, by heading; counts where no prompt file is needed to know them."""
    wanted, sampler = needs(benchmark), benchmark.sampler
    told = {
        "asks": benchmark.about, "source": benchmark.source, "model": wanted["model"],
        "sampler": f"{sampler.name}, {sampler.steps} steps, guidance {sampler.guidance:g}, noise from the {sampler.rng}"
        + (f", negative prompt {sampler.negative!r}" if sampler.negative else ""),
        "prompts to give": "; ".join(f"--file {k}=PATH, from {where}" for k, where in wanted["files"].items()),
        "judges": "; ".join(
            f"{k}: {d or f'yours, --judge {k}=DETECTOR'} ({', '.join(benchmark.judges[k].scores)})" for k, d in wanted["detectors"].items()
        ),
        "measures": ", ".join(wanted["measures"]), "not as published": benchmark.differs,
    }  # fmt: skip
    if not benchmark.files:
        counts = cost(benchmark)
        told["cost"] = (
            f"{sentence(counts, 1, 'one method')} About {counts['hours'] + counts['base hours']:.1f} hours at 0.3 s a picture "
            "(512 pixels on a data-centre GPU)."
        )
    return {heading: text for heading, text in told.items() if text}


def _many(n: int, word: str) -> str:
    return f"{n} {word}{'' if n == 1 else 's'}"
