"""The command line: each command parses its arguments, calls `efface.api`, and prints the result and the next command to run.

Nothing heavy is imported before a command needs it, so that `--help`, lists and wrong arguments are answered at once.
"""

import contextlib
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from efface import __version__, api
from efface.core.errors import EffaceError, UsageError
from efface.core.log import Log

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Erase concepts from text-to-image diffusion models, measure the result, ship the edit as a small file.",
)  # fmt: skip
out, err = (Console(stderr=e, highlight=False, soft_wrap=True, markup=False, emoji=False) for e in (False, True))

INTERRUPTED = 130
Edits = Annotated[list[Path], typer.Argument(help="file of an edit; several are applied in order")]
Model = Annotated[str, typer.Option(help="moji or moji3 (shipped), a diffusers folder, or a Hub id")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or mps")]
Dtype = Annotated[str, typer.Option(help="dtype of the weights: float32, bfloat16 or float16")]
Variant = Annotated[
    str, typer.Option(help="variant of the weight files, such as fp16; default: the plain ones, or the only one")
]
Size = Annotated[
    str, typer.Option(help="size of Moji's benchmark: smoke (a minute), demo, quick (five minutes) or full")
]
Keys = Annotated[list[Path] | None, typer.Option(help="file of a key, which brings back the concepts its edit hides")]
AttackSize = Annotated[
    str,
    typer.Option(
        help="budget of each attack: smoke (600 calls of the denoiser a prompt), quick (4,000) or paper (60,000)"
    ),
]
Concepts = Annotated[str, typer.Option(help="what models made elsewhere erased, separated by commas")]
PlanFile = Annotated[
    Path | None, typer.Option(help="TOML file that says what to ask; evaluate writes one as plan.toml into its folder")
]
Strength = Annotated[float, typer.Option(help="strength of the edit: 0 is the unedited model, 1 the fitted edit")]
AnyBase = Annotated[bool, typer.Option("--any-base", help="apply an edit even if it was made for another model")]


@app.command(context_settings={"ignore_unknown_options": True})  # a method's own flags arrive among the names
def erase(
    concept: Annotated[
        list[str], typer.Argument(help="concepts to erase, groups of Moji's such as alcohol, or @FILE with one a line")
    ],
    method: Annotated[
        str, typer.Option(help="see `efface methods`; `efface methods NAME` lists its hyper-parameters, each a flag")
    ] = "uce",
    to: Annotated[str, typer.Option(help="target concept; empty: the unconditional prompt")] = "",
    preserve: Annotated[
        str, typer.Option(help="concepts or groups to preserve, separated by commas, or @FILE with one a line")
    ] = "",
    output: Annotated[Path, typer.Option("-o", "--output", help="file to write the edit to")] = Path(
        "edit.safetensors"
    ),
    model: Model = "moji",
    device: Device = "cpu",
    kind: Annotated[
        str, typer.Option(help="object, style, character, person, unsafe or mark; default: the kind in Moji, or object")
    ] = "",
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="random seed of the method")] = 0,
    dtype: Dtype = "float32",
    variant: Variant = "",
) -> None:
    """Fit an edit that erases concepts; write it to a small file."""
    names, flags = _split(concept)
    plan = api.plan(
        names, method=method, flags=flags, to=to, preserve=preserve, output=output, model=model, device=device, kind=kind, seed=seed,
        dtype=dtype, variant=variant,
    )  # fmt: skip
    with _progress() as log:
        edit = api.erase(plan, log)
    header, size = edit.header, output.stat().st_size / 2**20
    erased = _and([c.name for c in header.erase])
    out.print(f"{output}: {header.method} erases {erased} from {model} ({size:.2f} MiB, {header.seconds:.1f} s).")
    from efface.core.effect import sentence

    out.print(sentence(header.effect))
    if (key := output.with_suffix(".key.safetensors")).is_file() and "Keyed" in api.method(method).makes:
        out.print(f"{key}: the key that brings the concept back (--key); keep it apart.")
    _next(
        "generate",
        api.prompt(header.erase[0]),
        "--edit",
        str(output),
        "--compare",
        *_where(model, device, dtype, variant),
    )


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="prompt of the pictures, or @FILE with one a line")],
    edit: Annotated[list[Path] | None, typer.Option(help="file of an edit; several are applied in order")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="add a row above with the unedited model's pictures")
    ] = False,
    output: Annotated[  # text: a path forgets the / at the end of a folder's name
        str, typer.Option("-o", "--output", help="PNG, JPEG or WebP file to write, or a new folder")
    ] = "pictures.png",
    number: Annotated[int, typer.Option("-n", "--number", min=1, max=1000, help="number of pictures, one a seed")] = 8,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1001, help="seed of the first picture")] = 0,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="steps of the sampler")] = 25,
    guidance: Annotated[float, typer.Option(help="guidance scale (classifier-free guidance)")] = 3.0,
    sampler: Annotated[str, typer.Option(help="ddim, pndm, lms, euler or dpm++")] = "ddim",
    negative: Annotated[str, typer.Option(help="negative prompt")] = "",
    size: Annotated[
        int | None, typer.Option(min=8, max=4096, help="height and width in pixels; default: the model's own")
    ] = None,
    strength: Strength = 1.0,
    key: Keys = None,
    model: Model = "moji",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    variant: Variant = "",
    any_base: AnyBase = False,
) -> None:
    """Draw pictures with or without an edit, at equal seeds."""
    with _progress() as log:
        rows = api.generate(
            prompt, edit or [], keys=key or [], compare=compare, output=output, number=number, seed=seed, steps=steps,
            guidance=guidance, sampler=sampler, negative=negative, size=size, strength=strength, model=model, device=device,
            dtype=dtype, variant=variant or None, any_base=any_base, log=log,
        )  # fmt: skip
    above = ", unedited above edited" if compare and edit else ""
    rows //= 2 if above else 1
    of = f"of {prompt!r}" if rows == 1 else f"of each of {rows} prompts"
    out.print(f"{output}: {number} pictures {of} from seed {seed} on{above}.")


@app.command()
def evaluate(
    edit: Annotated[
        list[Path],
        typer.Argument(
            help="files of edits that erase the same concepts, or folders of models made elsewhere from --model"
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="folder for pictures, scores and the report")] = Path(
        "evaluation"
    ),
    size: Size = "quick",
    attacks: Annotated[
        str,
        typer.Option(help="attacks to try, separated by commas; default: none, at size full three without a search"),
    ] = "",
    attack_size: AttackSize = "quick",
    concept: Concepts = "",
    plan: PlanFile = None,
    neighbours: Annotated[str, typer.Option(help="concepts like the erased ones, which shall stay")] = "",
    distant: Annotated[str, typer.Option(help="concepts unlike the erased ones, which shall stay")] = "",
    judge: Annotated[
        str,
        typer.Option(help="who says what pictures show: model (the unedited one), clip:FOLDER, classifier:FOLDER, …"),
    ] = "",
    key: Keys = None,
    model: Model = "moji",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    variant: Variant = "",
    any_base: AnyBase = False,
) -> None:
    """Measure edits; write a report. It compares each edit with the unedited model: erased, preserved, robustness.

    On Moji it asks Moji's benchmark. On any other model it asks what --plan and the options say, and proposes what they leave open.
    """
    named = {
        name: api.listed(text, f"--{name}") for name, text in (("neighbours", neighbours), ("distant", distant)) if text
    }
    asked = {"plan": plan, "judge": judge, **named}
    with _progress() as log:
        measured = api.evaluate(
            edit, output=output, size=size, attacks=attacks, attack_size=attack_size, concept=concept, asked=asked,
            keys=key or [], model=model, device=device, dtype=dtype, variant=variant or None, any_base=any_base,
            commands=[api.command(*sys.argv[1:])], log=log,
        )  # fmt: skip
    _scores(measured)
    out.print(f"{measured.page}: open it in a browser. {output}/scores.jsonl holds every row.")
    if not attacks:
        _next(
            "attack",
            *map(str, edit),
            *(["--concept", concept] if concept else []),
            *_keys(key),
            *_where(model, device, dtype, variant),
        )


@app.command()
def attack(
    edit: Annotated[
        list[Path],
        typer.Argument(help="files of edits that erase the same concepts, or folders of models made elsewhere"),
    ],
    tried: Annotated[
        str,
        typer.Option(
            "--with", help="attacks to try, separated by commas; see `efface attacks`; soft*3 is three restarts"
        ),
    ] = "baselines,unlearndiffatk,soft,rece-rows,inverse",
    size: AttackSize = "quick",
    concept: Concepts = "",
    replay: Annotated[
        list[Path] | None,
        typer.Option(help="attempts found on another model, files or folders, to try as they are; may be repeated"),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="folder for pictures, scores and the report")] = Path(
        "attack"
    ),
    safety_filter: Annotated[
        str,
        typer.Option(
            help="CLIP of an output filter that attacks must pass as well: moji, a folder or a Hub id; default: no filter"
        ),
    ] = "",
    key: Keys = None,
    model: Model = "moji",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    variant: Variant = "",
    any_base: AnyBase = False,
    plan: PlanFile = None,
) -> None:
    """Attack edits: search for what brings the concept back, judge it at other seeds, write a report. If interrupted, run it again."""
    with _progress() as log:
        measured = api.evaluate(
            edit, output=output, size="smoke", attacks=tried, attack_size=size, concept=concept, asked={"plan": plan}, replay=replay or [],
            filtered=safety_filter, keys=key or [], model=model, device=device, dtype=dtype, variant=variant or None,
            any_base=any_base, commands=[api.command(*sys.argv[1:])], log=log,
        )  # fmt: skip
    table = Table("", *measured.labels, "unedited", box=None)
    for name, rates in measured.attacked.items():
        table.add_row(name, *(str(rate) if rate.n else "not tried" for rate in rates))
    out.print("Pictures that show the concept again, by the best attempt of each attack within its budget:")
    out.print(table)
    for label, name, reason in measured.inapplicable:
        out.print(f"{name} was not tried on {label}: it {reason}.")
    if (finds := output / "attempts").is_dir():
        out.print(f"{finds}: what brought it back, one file each; --replay tries them on another edit.")
    out.print(f"{measured.page}: open it in a browser. {output}/scores.jsonl holds every row.")


@app.command(name="attacks")
def list_attacks(name: Annotated[str | None, typer.Argument(help="attack or preset")] = None) -> None:
    """List the attacks, or the hyper-parameters and presets of one."""
    if name is None:
        listed = api.attacks()
        width, what = max(len(a.name) for a in listed), max(len(a.what) for a in listed)
        for a in listed:
            out.print(f"{a.name:{width}}  {a.what:{what}}  {a.access}")
        out.print("\nLast column: what the attacker has or does. Presets have names too, such as soft-linf.")
        _next("attacks", "unlearndiffatk")
        return
    m = api.attack(name)
    _declared(m, f"set as --with {name}:NAME=VALUE", {"Access": m.access, "Gives": m.gives})


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="folder for edits, pictures and the report")] = Path(
        "efface-demo"
    ),
    concept: Annotated[str, typer.Argument(help="a concept, group or style of Moji's")] = "tiger",
) -> None:
    """Erase a concept from Moji, measure it, write a report. With two methods; about three minutes, offline."""
    with _progress() as log:
        measured = api.demo(concept, output=output, log=log)
    _scores(measured)
    out.print(f"{measured.page.resolve()}: open it in a browser.")
    _next("methods")


@app.command()
def methods(name: Annotated[str | None, typer.Argument(help="method or preset")] = None) -> None:
    """List the methods, or the hyper-parameters and presets of one."""
    if name is None:
        listed = api.methods()
        width, cost = max(len(m.name) for m in listed), max(len(m.cost) for m in listed)
        what = max(len(m.what) for m in listed)
        for m in listed:
            out.print(f"{m.name:{width}}  {m.what:{what}}  {m.cost:{cost}}".rstrip())
        out.print("\nLast column: time of a fit on Moji. Presets have names too, such as esd-x.")
        _next("methods", "esd")
        return
    m = api.method(name)
    _declared(m, "a flag of `efface erase`", {"Edit": " or ".join(m.makes), "Needs": "; ".join(m.needs) or "nothing"})


def _declared(m: "api.Method | api.AttackInfo", how: str, more: dict[str, str]) -> None:
    """Print a method's or an attack's paper, hyper-parameters and presets."""
    _paper(m.paper)
    for name, text in more.items():
        _wrap(f"{f'{name}:':9}{text}", 9)
    out.print(f"\nHyper-parameters, each {how}, and their defaults:\n")
    for p in m.parameters:
        _wrap(f"  {p.flag if isinstance(m, api.Method) else p.name} {_value(p.default)}", 4)
        choices = f" ({', '.join(map(str, p.choices))})" if p.choices else ""
        _wrap(f"      {p.meaning}{choices}", 6)
    if not m.parameters:
        out.print("  none")
    if m.presets:
        out.print("\nPresets:\n")
        width = max(map(len, m.presets)) + 4
        for preset, values in m.presets.items():
            _wrap(f"{f'  {preset}':{width}}{', '.join(f'{k} {_value(v)}' for k, v in values.items())}", width)


@app.command()
def models() -> None:
    """List the models that ship with efface. Others can be given by folder or Hub id."""
    for m in api.models():
        counts = f"{m['concepts']} concepts in {m['styles']} styles, {m['bytes'] / 2**20:.0f} MiB"
        _wrap(f"{m['name']}  {m['summary']}: {counts}", 6)
    out.print("\nOthers: a folder or Hub id of a pipeline of Stable Diffusion 1, 2, XL, 3 or Flux, such as")
    out.print("  --model CompVis/stable-diffusion-v1-4")


@app.command()
def show(
    edit: Annotated[Path, typer.Argument(help="file of an edit")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="instead, write a page with the words that the search found (AP, AGE)"),
    ] = None,
) -> None:
    """Print the recipe in an edit's file. With --output, write a page with the words that a search found (AP, AGE)."""
    if output is None:
        out.print_json(data=api.show(edit))
        return
    out.print(f"{api.show_search(edit, output)}{output}: open it in a browser.")


@app.command()
def check(
    file: Annotated[
        Path, typer.Argument(help="an edit, or a LoRA file of another tool (kohya, PEFT, diffusers, LECO)")
    ],
    model: Model = "moji",
    concept: Annotated[str, typer.Option(help="what a LoRA claims to erase, separated by commas")] = "",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="write the LoRA as an edit to this file")
    ] = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    variant: Variant = "",
) -> None:
    """Say what an edit or a LoRA file does to a model: which names fit, how large it is, whether it changes pictures."""
    with _progress() as log:
        found = api.check(
            file,
            model=model,
            concept=concept,
            output=output,
            device=device,
            dtype=dtype,
            variant=variant or None,
            log=log,
        )
    of = f" of {found.matched + len(found.unmatched)}" if found.unmatched else ""
    out.print(
        f"{file}: {'an edit' if found.what == 'edit' else 'a LoRA'}; {found.matched}{of} changed weights are in {model}."
    )
    if found.unmatched:
        out.print(f"Not in {model}, and left out: {len(found.unmatched)}, such as {found.unmatched[0]}.")
    for where, size in found.sizes.items():
        out.print(f"{where}: changed by {100 * size:.2g} % of the weights' norm.")
    from efface.core.effect import sentence

    out.print(sentence(found.effect))
    if output:
        flags = _where(model, device, dtype, variant)
        if concept:
            _next("evaluate", str(output), *flags)
        else:
            out.print(f"{output}: an edit, which does not say what it erases; give --concept to measure it.")


@app.command()
def bake(
    edit: Edits,
    output: Annotated[Path, typer.Option("-o", "--output", help="new folder for the diffusers pipeline")],
    model: Model = "moji",
    strength: Strength = 1.0,
    dtype: Annotated[str, typer.Option(help="dtype of the weights; default: the model's own")] = "",
    variant: Variant = "",
    any_base: AnyBase = False,
) -> None:
    """Write a stock diffusers pipeline with an edit in its weights. It needs no efface."""
    with _progress() as log:
        header = api.bake(
            edit, output, model=model, strength=strength, dtype=dtype, variant=variant or None, any_base=any_base, log=log,
        )  # fmt: skip
    erased = _and([c.name for c in header.erase]) or "the edit's concepts"
    out.print(f"{output}: {model} without {erased}, an ordinary diffusers folder.")


@app.command()
def export(
    edit: Edits,
    output: Annotated[Path, typer.Option("-o", "--output", help="a .safetensors file, or a new folder for peft")],
    to: Annotated[
        str,
        typer.Option(
            help="format: diffusers, peft, kohya (ComfyUI, A1111), or comfyui, which is kohya with biases and norms"
        ),
    ] = "diffusers",
    rank: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="rank of the low-rank approximation; default: exact, or for weights of full rank the smallest that keeps 99 % "
            "of the change's squared norm, at most 128",
        ),
    ] = None,
    model: Model = "moji",
    strength: Strength = 1.0,
    dtype: Dtype = "float32",
    variant: Variant = "",
    any_base: AnyBase = False,
) -> None:
    """Write an edit as a LoRA for other tools. Exact if it has low rank, else the best approximation, with the error."""
    with _progress() as log:
        done = api.export(
            edit, output, to=to, rank=rank, model=model, strength=strength, dtype=dtype, variant=variant or None,
            any_base=any_base, log=log,
        )  # fmt: skip
    if done.error:
        worst = max(done.errors, key=lambda name: done.errors[name])
        lost = f"leaves out {100 * done.error:.1f} % of the edit (at most {100 * done.errors[worst]:.1f} %, in {worst})"
    else:
        lost = "leaves nothing out"
    out.print(
        f"{output}: a {to} LoRA of rank {done.rank}, which {lost}."
        + " At strength 1 it is the edit." * (not done.error)
    )
    if done.left_out:
        without = "" if to == "comfyui" else "; --to comfyui holds those that ComfyUI reads"
        out.print(f"Left out: {len(done.left_out)} biases, norms or embeddings, such as {done.left_out[0]}{without}.")


@app.command()
def bench(
    methods: Annotated[
        str,
        typer.Option(help="methods and presets, separated by commas, hyper-parameters after colons: uce,uce:ridge=0.5"),
    ] = "uce,esd-x",
    benchmark: Annotated[str, typer.Option(help="moji, or a published protocol: see `efface benchmarks`")] = "moji",
    concepts: Annotated[
        str,
        typer.Option(
            help="tasks of Moji's benchmark: concepts, groups, styles, tiger+noto, many-25, sequence; default: the size's own"
        ),
    ] = "",
    size: Size = "quick",
    output: Annotated[Path, typer.Option("-o", "--output", help="folder for the leaderboard and the reports")] = Path(
        "bench"
    ),
    store: Annotated[
        str,
        typer.Option(help="folder or fsspec location that sweeps and processes share; default: OUTPUT/store"),
    ] = "",
    retry: Annotated[bool, typer.Option("--retry", help="try again what failed before")] = False,
    seeds: Annotated[
        str, typer.Option(help="training seeds, separated by commas: each method is fitted once for each")
    ] = "0",
    prompts: Annotated[
        int | None, typer.Option(min=1, help="at most this many prompts of each role and concept")
    ] = None,
    tasks: Annotated[int | None, typer.Option(min=1, help="at most this many tasks of the benchmark")] = None,
    file: Annotated[
        list[str] | None, typer.Option(help="file of a protocol's prompts: NAME=PATH; may be repeated")
    ] = None,
    judge: Annotated[
        list[str] | None, typer.Option(help="another detector for a judge: NAME=DETECTOR; may be repeated")
    ] = None,
    measures: Annotated[
        str | None,
        typer.Option(help="measures instead of the benchmark's, such as perceptual,clip:MODEL; empty: none"),
    ] = None,
    attacks: Annotated[str, typer.Option(help="attacks to try on every edit, separated by commas; default: none")] = "",
    attack_size: AttackSize = "quick",
    model: Annotated[
        str, typer.Option(help="moji, a diffusers folder, or a Hub id; default: the benchmark's own")
    ] = "",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    variant: Variant = "",
) -> None:
    """Compare methods: fit, draw, judge, write a leaderboard. If interrupted, run it again to continue."""
    sweep = api.sweep(
        methods, benchmark=benchmark, concepts=concepts, size=size, output=output, store=store, retry=retry, seeds=seeds,
        prompts=prompts, tasks=tasks, files=file or [], judges=judge or [], measures=measures, model=model, device=device,
        attacks=attacks, attack_size=attack_size,
        dtype=dtype, variant=variant or None,
    )  # fmt: skip
    out.print(sweep.cost)
    with _progress() as log:
        measured = api.bench(sweep, commands=[api.command(*sys.argv[1:])], log=log)
    _scores(measured)
    out.print(f"{measured.page}: open it in a browser. {output}/scores.jsonl holds every row.")


@app.command()
def benchmarks(
    name: Annotated[str | None, typer.Argument(help="a benchmark")] = None,
) -> None:
    """List the benchmarks, or print the protocol, requirements and cost of one."""
    if name:
        for heading, text in api.benchmark(name).items():
            _wrap(f"{heading}: {text}", 2)
        return
    for key, one in api.benchmarks().items():
        out.print(key)
        _wrap(f"    {one.about}", 4)
        given = [*one.files, *(f"judge {k}" for k, j in one.judges.items() if not j.detector)]
        if given:
            _wrap(f"    you give: {', '.join(given)}", 4)
    _next("benchmarks", "imagenette")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="folder of `efface evaluate`, `efface demo` or `efface bench`")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="HTML file to write; default: in the folder")
    ] = None,
) -> None:
    """Write the pages of a run or a sweep again from its scores. Nothing is drawn or judged."""
    page = api.report(folder, output)
    out.print(f"{page}: open it in a browser. The same folder has the numbers as CSV, JSON and LaTeX.")


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="folders of runs, or of sweeps, of the same protocol")],
    output: Annotated[Path, typer.Option("-o", "--output", help="HTML file to write")] = Path("comparison.html"),
) -> None:
    """Compare runs or sweeps of the same protocol on one page. Numbers that cannot be compared are refused."""
    out.print(f"{api.compare(folders, output)}: open it in a browser.")


@app.command()
def runs(
    store: Annotated[str, typer.Argument(help="store of a run, such as efface-demo/store, or an fsspec location")],
    verify: Annotated[bool, typer.Option("--verify", help="check every file; nothing is removed")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="remove what is damaged, so that the next run makes it again")
    ] = False,
    retry: Annotated[bool, typer.Option("--retry", help="remove the errors, so that the next run tries again")] = False,
    compact: Annotated[
        bool, typer.Option("--compact", help="merge the score files into one for each detector")
    ] = False,
    remove: Annotated[str, typer.Option(help="fingerprint of an edit whose pictures to remove")] = "",
) -> None:
    """List the contents of a store; check it, clean it up. It lists pictures by edit, errors and sizes."""
    stored = api.runs(store, verify=verify, repair=repair, retry=retry, compact=compact, remove=remove)
    for given, said in ((stored.damaged, "damaged"), (stored.repaired, "repaired")):
        if given is not None:
            out.print(f"{len(given)} file{'s' * (len(given) != 1)} {said}{':' * bool(given)}")
            for path, what in given.items():
                out.print(f"  {path}: {what}")
    if stored.removed is not None:
        out.print(f"{stored.removed} pictures of edit {remove} removed")
    if stored.saved is not None:
        out.print(f"{stored.saved} fewer files")
    if stored.forgotten is not None:
        out.print(f"{stored.forgotten} errors removed: the next run tries those cells again")
    table = Table("model", "edit", "pictures", "errors", box=None)
    for key in sorted({*stored.pictures, *stored.failures}):
        model, edit = key
        table.add_row(model, edit or "unedited", *(str(n.get(key, 0)) for n in (stored.pictures, stored.failures)))
    out.print(table)
    for error, times in stored.errors:
        out.print(f"  {times} x {error}")
    out.print(f"{store}: {', '.join(f'{kind} {size / 2**20:.1f} MiB' for kind, size in stored.bytes.items())}.")
    if stored.damaged:
        _next("runs", store, "--repair")
        raise typer.Exit(1)
    if stored.failures:
        _next("runs", store, "--retry")


@app.command()
def doctor() -> None:
    """Check the installation: versions, devices, and whether the shipped model runs."""
    health = api.doctor()
    python = sys.version.split()[0]
    out.print(f"efface {__version__}, Python {python}, {os.cpu_count()} cores, {health.threads} threads")
    for package, version in health.versions.items():
        out.print(f"  {package} {version}")
    out.print(f"devices: {', '.join(health.devices)}")
    out.print(f"moji: fingerprint {health.fingerprint}, 4 pictures at 25 steps in {health.seconds:.1f} s. It works.")
    _next("demo")


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
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):  # hides their warnings about each other
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        if (code := app(standalone_mode=False)) == INTERRUPTED:  # how typer reports Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            raise
        sys.exit(_explain(error))


def _explain(error: BaseException) -> int:
    """Print one sentence about a failure; returns the exit code."""
    import errno

    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        err.print("Interrupted. Finished work is saved; run the same command to continue from the last checkpoint.")
        return INTERRUPTED
    if isinstance(error, EffaceError):
        err.print(f"efface: {error}")
        return error.exit_code
    if sentence := getattr(error, "format_message", None):  # the parser's own errors
        err.print(f"efface: {sentence().rstrip('.')}. See: efface --help")
        return 2
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        err.print("efface: no space left on the disk; free some and run the same command again")
        return 1
    if isinstance(error, OSError) and error.errno and error.filename:  # of the user's files or disk
        err.print(f"efface: {error.filename}: {error.strerror}; give another path or change its permissions")
        return 1
    first = (str(error).splitlines() or [""])[0]
    err.print(
        f"efface: {type(error).__name__}: {first} (this is a bug: run again with --debug and report what it prints)"
    )
    return 1


def _split(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """Split into concept names and the method's hyper-parameter flags: `--name value` or `--name=value`."""
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
            raise UsageError(
                f"erase: expected a value after {flag}, got none; `efface methods NAME` lists a method's flags"
            )
        flags[flag.removeprefix("--").replace("-", "_")] = value if equals else rest.pop(0)
    return names, flags


def _next(*words: str) -> None:
    """Print the command to run next, quoted for a shell."""
    out.print(f"Next: {api.command(*words)}")


def _keys(key: Sequence[Path] | None) -> list[str]:
    """The flags for keys."""
    return [word for path in key or [] for word in ("--key", str(path))]


def _where(model: str, device: str, dtype: str, variant: str) -> list[str]:
    """The flags for a model and a device that are not the defaults."""
    given = {
        "--model": (model, "moji"), "--device": (device, "cpu"), "--dtype": (dtype, "float32"), "--variant": (variant, ""),
    }  # fmt: skip
    return [word for flag, (value, usual) in given.items() if value != usual for word in (flag, value)]


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _value(value: Any) -> str:
    """A hyper-parameter as typed on the command line."""
    return "''" if value == "" else str(value)


def _wrap(text: str, indent: int) -> None:
    """Print one entry over as many lines as the terminal needs, later ones indented; words stay whole."""
    width = max(40, min(out.width, 100))
    lines = textwrap.wrap(
        text, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    out.print("\n".join(lines) if lines else "")


def _paper(text: str) -> None:
    """Print a method's docstring: a title, then fields such as "Paper:" with hanging paragraphs and indented formulas."""
    title, _, rest = text.partition("\n")
    _wrap(title, 0)
    entry: list[str] = []
    for line in [*rest.splitlines(), "end:"]:
        starts, formula = re.match(r"\w+:", line), len(line) - len(line.lstrip()) > 9
        if entry and (starts or formula or not line.strip()):
            head = re.match(r"\w+:\s*", entry[0])
            joined = " ".join(part.strip() for part in entry)
            _wrap(re.sub(r"^(\w+:)\s*", lambda m: f"{m[1]:9}", joined) if head else f"{'':9}{joined}", 9)
            entry = []
        if formula:
            _wrap(line, 17)
        elif line.strip():
            entry.append(line)


def _scores(measured: api.Measured) -> None:
    """Print the rates of a run, and the number of pictures without a score."""
    table = Table("", "erased (ESR-1)", "neighbours kept (PSR-1)", "distant kept (PSR-1)", box=None)
    for label, rates in measured.rates.items():
        table.add_row(label, *map(str, rates))
    if measured.rates:  # judges that do not rank labels have other scores, which are on the page
        out.print(table)
    if measured.failures:
        seen = api.command("runs", measured.store)
        out.print(f"{measured.failures} pictures could not be made or judged and are not counted. See: {seen}")


@contextlib.contextmanager
def _progress() -> Iterator[Log]:
    """A log that draws a progress bar with rate and remaining time."""
    from efface.progress import bar

    with bar(err) as log:
        yield log


if __name__ == "__main__":
    main()
