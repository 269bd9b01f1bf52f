"""The command line. Commands are thin: they parse, call the library, and end with a sentence that says what came out and what is next.

Nothing heavy is imported before a command needs it, so that `--help` answers at once.
"""

import contextlib
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table

from efface import __version__
from efface.core.errors import EffaceError, UsageError

if TYPE_CHECKING:
    from efface.benchmarks.spec import Benchmark
    from efface.core.denoiser import Denoiser
    from efface.core.edit import Edit
    from efface.core.log import Log
    from efface.erasers.base import Eraser

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Erase concepts from text-to-image diffusion models, measure the result, ship the edit as a small file.",
)  # fmt: skip
out, err = (Console(stderr=e, highlight=False, soft_wrap=True, markup=False) for e in (False, True))

INTERRUPTED = 130
Model = Annotated[str, typer.Option(help="moji (shipped), a diffusers folder, or a Hub id")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps")]
Size = Annotated[str, typer.Option(help="smoke (under a minute), quick (about five) or full")]
Keys = Annotated[list[Path] | None, typer.Option(help="a key's file, which brings back what its edit hides")]
AnyBase = Annotated[bool, typer.Option("--any-base", help="apply an edit that was made for other weights all the same")]


@app.command(context_settings={"ignore_unknown_options": True})  # a method's own flags arrive among the names
def erase(
    concept: Annotated[list[str], typer.Argument(help="what to erase; several, or a group of Moji's such as alcohol")],
    method: Annotated[
        str, typer.Option(help="see `efface methods`; `efface methods NAME` lists its hyper-parameters, each a flag")
    ] = "uce",
    to: Annotated[str, typer.Option(help="what the concept becomes; empty: nothing in particular")] = "",
    preserve: Annotated[str, typer.Option(help="what shall stay, separated by commas, or @FILE with one a line")] = "",
    output: Annotated[Path, typer.Option("-o", "--output", help="file of the edit")] = Path("edit.safetensors"),
    model: Model = "moji",
    device: Device = "cpu",
    kind: Annotated[
        str, typer.Option(help="object, style, character, person, unsafe or mark; default: as Moji knows it, or object")
    ] = "",
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="of everything random in the method")] = 0,
) -> None:
    """Find an edit that erases a concept, and write it to a small safetensors file."""
    from efface.core.concept import Concept
    from efface.core.edit import Keyed
    from efface.core.files import writable

    if output.suffix != ".safetensors":
        raise UsageError(
            f"--output: expected a file name that ends in .safetensors, got {str(output)!r}; give such a name"
        )
    names, flags = _split(concept)
    eraser = _eraser(method, flags, seed)
    kept = _words(preserve)
    if kept and not eraser.keeps:
        raise UsageError(f"--preserve: {method} takes no list of what shall stay, got {preserve!r}; leave it out")
    targets = [Concept(n, to, kind=cast(Any, kind or known)) for word in names for n, known in _expand(word, model)]
    writable(output)
    base = _load(model, device)
    with _progress(output) as log:
        edit = eraser.fit(base, targets, kept, log=log, model=model)
    edit.save(output)
    size = output.stat().st_size / 2**20
    made = f"{edit.header.method} takes {_list(c.name for c in targets)} out of {model}"
    out.print(f"{output}: {made} ({size:.2f} MiB, {edit.header.seconds:.1f} s).")
    if isinstance(edit, Keyed):
        out.print(f"{output.with_suffix('.key.safetensors')}: the key that brings it back (--key); keep it apart.")
    out.print(f'Next: efface generate "a {targets[0].name}" --edit {output} --compare')


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="what to draw")],
    edit: Annotated[list[Path] | None, typer.Option(help="an edit's file; several are applied in order")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="the unedited model's pictures in a row above")] = False,
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG with all pictures")] = Path("pictures.png"),
    number: Annotated[int, typer.Option("-n", "--number", min=1, max=1000, help="pictures, one for each seed")] = 8,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1001, help="of the first picture")] = 0,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="of the DDIM sampler")] = 25,
    guidance: Annotated[float, typer.Option(help="scale of classifier-free guidance")] = 3.0,
    strength: Annotated[float, typer.Option(help="of the edit: 0 changes nothing, 1 is as fitted")] = 1.0,
    key: Keys = None,
    model: Model = "moji",
    device: Device = "cpu",
    any_base: AnyBase = False,
) -> None:
    """Draw pictures, with or without an edit, at equal seeds."""
    import numpy as np
    from PIL import Image

    from efface.core.files import replace_file

    whole = _whole(edit, key or []) if edit else None
    base, rows = _load(model, device), []
    models = [base] if compare or not whole else []
    if whole:
        models.append((whole * strength)(base, any_base=any_base))
    with _progress() as log:
        tick = log.stage("pictures", number * steps * len(models))
        for drawn in models:
            pictures = drawn.images(
                [prompt] * number, range(seed, seed + number), steps=steps, guidance=guidance, tick=tick
            )
            rows.append(np.concatenate(pictures, axis=1))
    sheet = np.concatenate(rows, axis=0)
    zoom = max(1, 128 // base.image_size)
    picture = Image.fromarray(sheet.repeat(zoom, 0).repeat(zoom, 1))
    replace_file(output, lambda part: picture.save(part, format="png"))
    above = ", unedited above edited" if len(models) == 2 else ""
    out.print(f"{output}: {number} pictures of {prompt!r} from seed {seed} on{above}.")


@app.command()
def evaluate(
    edit: Annotated[list[Path], typer.Argument(help="files of edits that erase the same concept")],
    output: Annotated[Path, typer.Option("-o", "--output", help="folder for pictures, scores and the report")] = Path(
        "evaluation"
    ),
    size: Size = "quick",
    key: Keys = None,
    model: Model = "moji",
    device: Device = "cpu",
    any_base: AnyBase = False,
) -> None:
    """Measure on Moji whether it is gone and who else was hurt, beside the unedited model; writes a report to open in a browser."""
    from efface.benchmarks.moji import benchmark, erasing, members
    from efface.benchmarks.run import evaluate as measure
    from efface.report.html import write_report

    stems = [path.stem for path in edit]
    if taken := next((s for i, s in enumerate(stems) if s in ("base", *stems[:i])), None):
        raise UsageError(
            f"evaluate: expected files of different names, none of them base, got {taken!r} again; rename one"
        )
    edits = _edits(dict(zip(stems, edit, strict=True)), key or [], both=True)
    base, asked = _load(model, device), benchmark(size=size)
    if base.image_size != 64:
        raise UsageError(
            f"evaluate: Moji's detectors judge Moji's pictures (64 pixels), {model} draws {base.image_size}; "
            "give Moji, or use `efface bench --benchmark NAME --model MODEL`: `efface benchmarks` lists protocols for real models"
        )
    for one in edits.values():
        one.require(base, any_base)
    erased = {label: {m for c in e.header.erase for m in members(c.name)} for label, e in edits.items()}
    if any(names != next(iter(erased.values())) for names in erased.values()):
        raise UsageError(
            "evaluate: expected edits that erase the same concepts, got different ones; evaluate them one by one"
        )
    task = erasing([c.name for c in next(iter(edits.values())).header.erase], size)
    with _progress() as log:
        rows = measure(
            base, edits, task, asked, output, model=model, any_base=any_base, log=log, files={p.stem: str(p) for p in edit},
            commands=["efface " + shlex.join(sys.argv[1:])],
        )  # fmt: skip
    page = write_report(output)
    _scores(rows, edits, str(output / "store"))
    out.print(f"{page}: open it in a browser. {output}/scores.jsonl holds every row.")


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="folder for the edits, the pictures and the report")
    ] = Path("efface-demo"),
    concept: Annotated[str, typer.Argument(help="one of Moji's concepts")] = "tiger",
) -> None:
    """Take a concept out of Moji with two methods, measure both, and write a report: about three minutes, offline."""
    from efface.benchmarks.moji import benchmark, tasks
    from efface.benchmarks.run import evaluate as measure
    from efface.erasers import make
    from efface.report.html import write_report

    sizes = {"pictures": 12, "said": 6, "others": 3, "near": 3, "far": 3}
    (task,) = tasks(concept, **sizes)
    base, edits, files, commands = _load(), {}, {}, []
    for method in ("uce", "esd-x"):
        path = output / f"{method}.safetensors"
        kept = task.preserve if method == "uce" else ()
        with _progress(path) as log:
            edits[method] = make(method).fit(base, task.erase, kept, log=log, model="moji")
        edits[method].save(path)
        files[method] = str(path)
        keep = f" --preserve {shlex.quote(','.join(kept))}" if kept else ""
        to = f" --to {shlex.quote(task.erase[0].target)}" if task.erase[0].target else ""
        commands.append(f"efface erase {shlex.quote(concept)} --method {method}{to}{keep} -o {path}")
    commands.append(f"efface evaluate {' '.join(files.values())} --size quick -o {output}")
    with _progress() as log:
        rows = measure(base, edits, task, benchmark(), output, model="moji", files=files, commands=commands, log=log)
    page = write_report(output)
    _scores(rows, edits, str(output / "store"))
    out.print(f"The report is at {page.resolve()}: open it in a browser. Next: efface methods")


@app.command()
def methods(name: Annotated[str | None, typer.Argument(help="one method: its hyper-parameters")] = None) -> None:
    """List the erasers, or the hyper-parameters of one."""
    from efface.core.params import choices, fields
    from efface.erasers import TABLE, find, split

    if name:
        cls, preset = split(name)
        sys.stdout.write(f"{(sys.modules[cls.__module__].__doc__ or '').strip()}\n\n")
        table = Table("flag", "default", "meaning", box=None)
        for f in fields(cls):
            allowed = f" ({', '.join(map(str, choices(f)))})" if choices(f) else ""
            table.add_row(
                f"--{f.name.replace('_', '-')}", str(preset.get(f.name, f.default)), f.metadata["help"] + allowed
            )
        out.print(table)
        return
    table = Table("method", "what it does", "edit", "needs", "cost", "presets", box=None)
    for method in TABLE:
        cls = find(method)
        makes = " or ".join(kind.__name__ for kind in cls.makes)
        table.add_row(
            method, (cls.__doc__ or "").strip(), makes, ", ".join(sorted(cls.needs)) or "nothing", cls.cost,
            ", ".join(f"{method}-{p}" for p in cls.presets),
        )  # fmt: skip
    table.columns[-1].overflow = "fold"  # a name cut off could not be typed
    out.print(table)


@app.command()
def models() -> None:
    """List the models that ship with efface, and say what else can be given."""
    import json

    from efface.models import HERE, SHIPPED

    table = Table("model", "what it is", "draws", "size", box=None)
    for name in SHIPPED:
        card = json.loads((HERE / name / "card.json").read_text())
        known = json.loads((HERE / name / "concepts.json").read_text())
        size = sum(f.stat().st_size for f in (HERE / name).rglob("*") if f.is_file()) / 2**20
        table.add_row(
            name,
            card["summary"],
            f"{len(known['concepts'])} concepts in {len(known['styles'])} styles",
            f"{size:.0f} MiB",
        )
    out.print(table)
    out.print(
        "Elsewhere: any folder or Hub id of a Stable Diffusion 1.x or 2.x pipeline, such as --model CompVis/stable-diffusion-v1-4"
    )


@app.command()
def show(
    edit: Annotated[Path, typer.Argument(help="an edit's file")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="draw the words that a search found on a page instead (AP, AGE)"),
    ] = None,
) -> None:
    """Print the recipe in an edit's header and what the file holds, or draw what the method found on its way."""
    import json

    from efface.core.edit import load_edit

    loaded = load_edit(edit)
    tensors = loaded.tensors()
    numbers = sum(t.numel() for t in tensors.values())
    if output is None:
        out.print_json(json.dumps({**loaded.record(), "tensors": len(tensors), "numbers": numbers}))
        return
    from efface.core.files import write_text
    from efface.report.targets import found, targets, told

    if not found(loaded.record()):
        raise UsageError(
            f"show: {loaded.header.method} searches for no words, so there is nothing to draw; leave --output out"
        )
    write_text(output, targets(loaded.record()))
    out.print(f"{told(loaded.record())}{output}: open it in a browser.")


@app.command()
def bake(
    edit: Annotated[list[Path], typer.Argument(help="an edit's file; several are applied in order")],
    output: Annotated[Path, typer.Option("-o", "--output", help="folder for the diffusers pipeline")],
    model: Model = "moji",
    strength: Annotated[float, typer.Option(help="of the edit")] = 1.0,
    any_base: AnyBase = False,
) -> None:
    """Write a stock diffusers pipeline with the edit in its weights: it needs no efface."""
    from efface.core.io import write_pipeline

    loaded = _whole(edit) * strength
    pipeline = _load(model).pipeline
    loaded.bake(pipeline, any_base=any_base)
    write_pipeline(output, pipeline)
    out.print(f"{output}: {model} without {_list(c.name for c in loaded.header.erase)}, an ordinary diffusers folder.")


@app.command()
def export(
    edit: Annotated[list[Path], typer.Argument(help="an edit's file; several are applied in order")],
    output: Annotated[Path, typer.Option("-o", "--output", help="a .safetensors file, or a new folder for peft")],
    to: Annotated[str, typer.Option(help="diffusers, peft, or kohya (ComfyUI, A1111)")] = "diffusers",
    rank: Annotated[
        int | None, typer.Option(min=1, help="keep so much of each matrix; needed where an edit has full rank")
    ] = None,
    model: Model = "moji",
    strength: Annotated[float, typer.Option(help="of the edit")] = 1.0,
    any_base: AnyBase = False,
) -> None:
    """Write an edit as a LoRA for other tools: exact where it is of low rank, else its best approximation, with the error told."""
    from efface.core.export import export as write

    done = write(_whole(edit) * strength, _load(model), output, to=to, rank=rank, any_base=any_base)
    if done.error:
        worst = max(done.errors, key=lambda name: done.errors[name])
        lost = f"leaves out {100 * done.error:.1f} % of the edit (at most {100 * done.errors[worst]:.1f} %, in {worst})"
    else:
        lost = "leaves nothing out"
    out.print(f"{output}: a {to} LoRA of rank {done.rank}, which {lost}. At strength 1 it is the edit.")


@app.command()
def bench(
    methods: Annotated[
        str,
        typer.Option(
            help="separated by commas, presets included, hyper-parameters behind colons: uce,uce:ridge=0.5:tokens=last"
        ),
    ] = "uce,esd-x",
    benchmark: Annotated[str, typer.Option(help="moji, or a published protocol: see `efface benchmarks`")] = "moji",
    concepts: Annotated[
        str,
        typer.Option(
            help="of Moji's: concepts, groups, styles, tiger+noto, many-25, sequence; default: what the size has"
        ),
    ] = "",
    size: Size = "quick",
    output: Annotated[Path, typer.Option("-o", "--output", help="folder for the leaderboard and the reports")] = Path(
        "bench"
    ),
    store: Annotated[
        str, typer.Option(help="shared by sweeps and processes: a folder or an fsspec location; default: OUTPUT/store")
    ] = "",
    retry: Annotated[bool, typer.Option("--retry", help="try cells again that failed before")] = False,
    seeds: Annotated[
        str, typer.Option(help="of the methods' training, separated by commas: each is fitted once for each")
    ] = "0",
    prompts: Annotated[int | None, typer.Option(min=1, help="at most so many of each role and concept")] = None,
    tasks: Annotated[int | None, typer.Option(min=1, help="at most so many of the benchmark's tasks")] = None,
    file: Annotated[list[str] | None, typer.Option(help="a protocol's prompts: NAME=PATH, once for each")] = None,
    judge: Annotated[list[str] | None, typer.Option(help="another detector for a judge: NAME=DETECTOR")] = None,
    measures: Annotated[
        str | None,
        typer.Option(
            help="instead of the benchmark's: perceptual,clip:MODEL,kernel:TRUNK and the like; empty for none"
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="default: the benchmark's own; a diffusers folder, or a Hub id")] = "",
    device: Device = "cpu",
) -> None:
    """Put methods side by side: fit each for each task, draw, judge, write a leaderboard. Killed, it goes on where it stopped."""
    from efface.benchmarks.cost import cost, sentence
    from efface.benchmarks.prompts import located
    from efface.benchmarks.run import bench as sweep
    from efface.benchmarks.store import Store
    from efface.erasers import make
    from efface.report.html import write_report

    asked = list(dict.fromkeys(_words(methods)))
    if not asked:
        raise UsageError("--methods: nothing given; name at least one")
    for method in asked:
        make(method)
    declared = _benchmark(benchmark, concepts, size, _pairs("--judge", judge), measures)
    files = {name: located(path) for name, path in _pairs("--file", file).items()}
    numbers = _words(seeds)
    if not numbers or not all(n.isdigit() for n in numbers):
        raise UsageError(f"--seeds: expected numbers separated by commas, got {seeds!r}; give 0,1,2, say")
    opened = Store(store or output / "store")
    if retry:
        opened.retry()
    counts = cost(declared, prompts, tasks=tasks, files=files)
    out.print(sentence(counts, len(asked) * len(numbers), benchmark))
    named = model or declared.model
    base = _load(named, device)
    with _progress() as log:
        rows = sweep(
            base, asked, declared, output, store=opened, seeds=[int(n) for n in numbers], model=named,
            size=size if benchmark == "moji" else "", files=files, prompts=prompts, tasks=tasks, log=log,
            commands=["efface " + shlex.join(sys.argv[1:])],
        )  # fmt: skip
    page = write_report(output)
    _scores(rows, list(dict.fromkeys(r["edit"] for r in rows if r["edit"] != "base")), opened.where)
    out.print(f"{page}: open it in a browser. {output}/scores.jsonl holds every row.")


@app.command()
def benchmarks(
    name: Annotated[str | None, typer.Argument(help="one benchmark: what it asks and what it costs")] = None,
) -> None:
    """List the benchmarks, Moji's own and published protocols, or what one of them asks, needs and costs."""
    from efface.benchmarks import TABLE, find
    from efface.benchmarks.cost import facts

    if name:
        for key, text in facts(find(name)).items():
            out.print(f"[b]{key}[/b]: ", end="", markup=True)
            out.print(text)
        return
    table = Table("", "what it asks", "you give", box=None)
    table.columns[0].no_wrap = True
    for key in TABLE:
        one = find(key)
        table.add_row(
            key, one.about, ", ".join([*one.files, *(f"judge {k}" for k, j in one.judges.items() if not j.detector)])
        )
    out.print(table)
    out.print(
        "Next: efface benchmarks NAME for cost and what is not as published; efface bench --benchmark NAME --prompts 3 for a first try"
    )


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="of `efface evaluate`, `efface demo` or `efface bench`")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="the page; default: in the folder")] = None,
) -> None:
    """Write the pages and tables of a run or a sweep again from its scores: nothing is drawn or judged."""
    from efface.report.html import write_report

    page = write_report(folder, output)
    out.print(f"{page}: open it in a browser. Beside it: the same numbers as CSV, JSON and LaTeX.")


@app.command()
def compare(
    folders: Annotated[
        list[Path], typer.Argument(help="two or more runs, or two or more sweeps, of the same protocol")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="the page")] = Path("comparison.html"),
) -> None:
    """Put runs or sweeps side by side that asked the same; refuses numbers that cannot be compared."""
    from efface.report.compare import write_comparison

    page = write_comparison(folders, output)
    out.print(f"{page}: open it in a browser.")


@app.command()
def runs(
    store: Annotated[str, typer.Argument(help="a run's store, such as efface-demo/store, or any fsspec location")],
    verify: Annotated[bool, typer.Option("--verify", help="check every picture, and take out what is damaged")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="forget the errors, so that the next run tries again")] = False,
    compact: Annotated[
        bool, typer.Option("--compact", help="join the many files of scores into one a detector")
    ] = False,
    remove: Annotated[str, typer.Option(help="take out the pictures of an edit, by its fingerprint")] = "",
) -> None:
    """List what a store holds: pictures by edit, errors, sizes; check, tidy or thin it."""
    from collections import Counter

    from efface.benchmarks.store import Store

    opened = Store(store, new=False)
    if verify:
        bad = opened.verify(remove=True)
        out.print(f"{len(bad)} damaged pictures taken out{''.join(f'{chr(10)}  {path}' for path in bad)}")
    if remove:
        out.print(f"{opened.remove(remove)} pictures of edit {remove} taken out")
    if compact:
        out.print(f"{opened.compact()} files saved")
    if retry:
        out.print(f"{opened.retry()} errors forgotten: the next run tries those cells again")
    failures = opened.failures()
    count = Counter((cell["model"], cell["edit"]) for _, cell in opened.cells())
    failed = Counter((f["cell"]["model"], f["cell"]["edit"]) for f in failures)
    table = Table("model", "edit", "pictures", "errors", box=None)
    for model, edit in sorted(count | failed):
        table.add_row(model, edit or "unedited", str(count[model, edit]), str(failed[model, edit]))
    out.print(table)
    for error, times in Counter(f["error"] for f in failures).most_common(5):
        out.print(f"  {times} x {error}")
    sizes = ", ".join(f"{kind} {size / 2**20:.1f} MiB" for kind, size in opened.size().items())
    out.print(f"{store}: {sizes}." + (" Next: --retry, then the same run again." if failures else ""))


@app.command()
def doctor() -> None:
    """Say what is installed, which device there is, and whether the shipped model runs."""
    import importlib.metadata as installed
    import time

    import torch

    out.print(
        f"efface {__version__}, Python {sys.version.split()[0]}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    )
    for package in ("torch", "diffusers", "transformers", "safetensors", "numpy", "pillow"):
        out.print(f"  {package} {installed.version(package)}")
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    out.print(
        f"devices: cpu{''.join(f', cuda:{i} ({d})' for i, d in enumerate(devices))}{', mps' if torch.backends.mps.is_available() else ''}"
    )

    base, started = _load(), time.perf_counter()
    base.images(["a tiger"] * 4, range(4))
    out.print(
        f"moji: fingerprint {base.fingerprint}, 4 pictures at 25 steps in {time.perf_counter() - started:.1f} s. All is well: efface demo"
    )


def main() -> None:
    """Run a command; every failure is one sentence, exit code 2 for usage and 1 for the rest, a traceback only with --debug."""
    debug = "--debug" in sys.argv
    if not sys.argv[1:]:
        sys.argv.append("--help")
    if debug:
        sys.argv.remove("--debug")
    if "--version" in sys.argv[1:2]:
        sys.stdout.write(f"efface {__version__}\n")
        return
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):  # their news about each other is not the user's
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        if (code := app(standalone_mode=False)) == INTERRUPTED:  # how typer tells of Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            raise
        sys.exit(_explain(error))


def _explain(error: BaseException) -> int:
    import errno

    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        err.print("Interrupted. What was finished is kept; the same command goes on from the last checkpoint.")
        return INTERRUPTED
    if isinstance(error, EffaceError):
        err.print(f"efface: {error}")
        return error.exit_code
    if sentence := getattr(error, "format_message", None):  # the parser's own complaints, whichever click typer carries
        err.print(f"efface: {sentence()} See: efface --help")
        return 2
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        err.print("efface: no space left on the disk; free some and run the same command again")
        return 1
    first = (str(error).splitlines() or [""])[0]
    err.print(
        f"efface: {type(error).__name__}: {first} (this is a bug: run again with --debug and report what it prints)"
    )
    return 1


def _load(model: str = "moji", device: str = "cpu") -> "Denoiser":
    """The model, without its libraries' own progress bars."""
    import diffusers
    import transformers

    from efface.core.denoiser import load

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    return load(model, device=device)


def _split(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """Names and the method's own flags, which the parser does not know: `--name value` or `--name=value`."""
    names, flags, rest = [], {}, list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("-") and not word.startswith("--"):
            raise UsageError(f"erase: expected a concept or a --flag, got {word!r}; see `efface erase --help`")
        if not word.startswith("--"):
            names.append(word)
            continue
        flag, equals, value = word.partition("=")
        if not equals and not rest:
            raise UsageError(f"erase: {flag} needs a value; `efface methods NAME` lists a method's flags")
        flags[flag.removeprefix("--").replace("-", "_")] = value if equals else rest.pop(0)
    return names, flags


def _edits(paths: Mapping[str, Path], keys: Sequence[Path], *, both: bool) -> "dict[str, Edit]":
    """Edits by label; each key unlocks its edit, as "NAME+key" beside the locked one if `both`."""
    from efface.core.edit import Keyed, Stack, flat, load_edit
    from efface.core.key import load_key

    edits = {label: load_edit(path) for label, path in paths.items()}
    locks = {one.lock: label for label, whole in edits.items() for one in flat(whole) if isinstance(one, Keyed)}
    for path in keys:
        key = load_key(path)
        if key.lock not in locks:
            got = ", ".join(locks) or "none that has a key"
            raise UsageError(
                f"--key {path}: made for edit {key.lock}, got {got}; give the key that was written beside the edit"
            )
        label = locks[key.lock]
        opened = f"{label}+key" if both else label
        edits[opened] = cast("Keyed | Stack", edits.get(opened, edits[label])).unlocked(key)
    return edits


def _whole(paths: Sequence[Path], keys: Sequence[Path] = ()) -> "Edit":
    """The edit in a file, or those in several as one."""
    from efface.core.edit import Stack

    edits = list(_edits({str(path): path for path in paths}, keys, both=False).values())
    return edits[0] if len(edits) == 1 else Stack(edits)


def _eraser(method: str, flags: dict[str, str], seed: int) -> "Eraser":
    """The method with its hyper-parameters."""
    from efface.core.params import parse
    from efface.erasers import split

    cls, settings = split(method)
    settings |= {name: parse(cls, name, text) for name, text in flags.items()}
    return cls(**{**settings, "seed": seed})


def _benchmark(name: str, concepts: str, size: str, judges: dict[str, str], measures: str | None) -> "Benchmark":
    """The declaration asked for, with the user's own detectors."""
    import dataclasses

    from efface.benchmarks import find

    if name == "moji":
        from efface.benchmarks.moji import benchmark

        declared = benchmark(list(dict.fromkeys(_words(concepts))), size)
    else:
        declared = find(name)
        if concepts:
            raise UsageError(
                f"--concepts: {name} has its own; leave the flag out, or thin it with --tasks and --prompts"
            )
    if unknown := set(judges) - set(declared.judges):
        raise UsageError(f"--judge: {name} has no judge {min(unknown)!r}; it has {', '.join(declared.judges)}")
    changed = {k: dataclasses.replace(j, detector=judges.get(k, j.detector)) for k, j in declared.judges.items()}
    wanted = declared.measures if measures is None else tuple(_words(measures))
    return dataclasses.replace(declared, judges=changed, measures=wanted)


def _pairs(flag: str, given: list[str] | None) -> dict[str, str]:
    """NAME=VALUE, once for each."""
    for one in given or []:
        if "=" not in one:
            raise UsageError(f"{flag}: expected NAME=VALUE, got {one!r}; give such a pair")
    return dict(one.split("=", 1) for one in given or [])


def _words(text: str) -> list[str]:
    if text.startswith("@"):
        from efface.core.files import read_text

        path = Path(text[1:])
        if not path.is_file():
            raise UsageError(f"--preserve: no such file {str(path)!r}; give @FILE with one concept a line")
        return [line.strip() for line in read_text(path).splitlines() if line.strip()]
    return [word.strip() for word in text.split(",") if word.strip()]


def _expand(word: str, model: str) -> Iterator[tuple[str, Any]]:
    """A concept with its kind; on Moji a group stands for its members."""
    if model != "moji":
        yield word, "object"
        return
    from efface.benchmarks.moji import kind, members

    try:
        names = members(word)
    except UsageError:  # a word that Moji does not draw can be erased all the same
        names = [word]
    for name in names:
        try:
            yield name, kind(name)
        except UsageError:
            yield name, "object"


def _list(names: Any) -> str:
    *most, last = list(names)
    return f"{', '.join(most)} and {last}" if most else last


def _scores(rows: Sequence[Mapping[str, Any]], edits: Iterable[str], store: str) -> None:
    from efface.metrics.rates import erased, found

    table = Table("", "erased (ESR-1)", "neighbours kept (PSR-1)", "distant kept (PSR-1)", box=None)
    for label in ("base", *edits):
        table.add_row(
            "unedited" if label == "base" else label,
            str(erased(rows, "top1", edit=label, role="erase")),
            *(str(found(rows, "top1", edit=label, role=role)) for role in ("neighbour", "distant")),
        )
    if any(r["score"] == "top1" for r in rows):  # other judges count other things, which the page has
        out.print(table)
    if failed := len({(r["edit"], r["cell"]) for r in rows if r["value"] is None}):
        out.print(f"{failed} pictures could not be made or judged and count nowhere: efface runs {store}")


@contextlib.contextmanager
def _progress(output: Path | None = None) -> "Iterator[Log]":
    """A progress bar with rate and time left; with `output`, training checkpoints beside it."""
    from efface.progress import bar

    checkpoint = output.with_name(f".{output.name}.training") if output else None
    with bar(err, checkpoint) as log:
        yield log


if __name__ == "__main__":
    main()
