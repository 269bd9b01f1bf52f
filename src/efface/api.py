"""The functions behind the command line, for notebooks and the studio as well: one for each command, with values in and values out.

Nothing here prints; errors of the user are UsageError or EffaceError. Long work takes a `Log` and has two steps: making a `Plan` or a
`Sweep` checks the arguments without torch, and `erase` or `bench` carries it out.
"""

import dataclasses
import json
import math
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from efface.core.concept import Concept, apart, article
from efface.core.errors import UsageError, nearest
from efface.core.files import (
    mentions,
    refuse_folder,
    replace_file,
    replace_folder,
    writable,
    writable_folder,
    write_text,
)
from efface.core.header import read_header, wrote
from efface.core.lists import Entry, entries, listed, quoted
from efface.core.log import Log
from efface.models import SHIPPED

if TYPE_CHECKING:  # these import torch, which takes seconds: lists and wrong arguments are answered without it
    from efface.benchmarks.attack import AttackPlan
    from efface.benchmarks.spec import Benchmark, Task
    from efface.core.attempt import Attempt
    from efface.core.denoiser import Denoiser
    from efface.core.edit import Edit, Header
    from efface.core.export import Exported
    from efface.metrics.rates import Rate

MOJI = "moji"
PAGE = mentions(b'name="generator" content="efface"')
COST = {"": "none", "words": "seconds", "drawing": "minutes"}  # of a fit, by what the method needs


# -- words, concepts, models ---------------------------------------------------------------------------------------


def concepts(given: Iterable[str | Entry], model: str = MOJI, *, to: str = "", kind: str = "") -> tuple[Concept, ...]:
    """Concepts with these names; on Moji a group such as "alcohol" becomes its members, each with its kind.

    An entry's own target, kind and other words go before `to` and `kind`.

    Raises:
        UsageError: an empty name, a name that is its own target, or no such kind.
    """
    from efface.benchmarks import moji

    found = []
    for one in given:
        entry = Entry(one) if isinstance(one, str) else one
        try:
            members = moji.members(entry.name) if model in SHIPPED else [entry.name]
            kinds = [moji.kind(member) if model in SHIPPED else "object" for member in members]
        except UsageError:  # a concept that Moji does not draw can be erased as well
            members, kinds = [entry.name], ["object"]
        target = to if entry.target is None else entry.target
        found += [
            Concept(m, target, entry.prompts if len(members) == 1 else (), cast(Any, entry.kind or kind or known))
            for m, known in zip(members, kinds, strict=True)
        ]
    return tuple(found)


def prompt(concept: Concept) -> str:
    """A prompt for a concept: "an owl", "a picture in noto style", "a picture of Ada Lovelace"."""
    if concept.kind == "style":
        return f"a picture in {concept.name} style"
    return f"a picture of {concept.name}" if concept.kind == "person" else article(concept.name)


def load(
    model: str = MOJI,
    device: str = "cpu",
    dtype: str = "float32",
    variant: str | None = None,
    log: Log | None = None,
) -> "Denoiser":
    """Load a model, without the progress bars of diffusers and transformers; `log` is told of a choice that loading made by itself.

    Raises:
        UsageError: no such model or device.
        EffaceError: the model is damaged.
    """
    import diffusers
    import transformers

    from efface.core import denoiser

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    loaded = denoiser.load(model, device=device, dtype=dtype, variant=variant)
    if log and loaded.note:
        log.say(f"{loaded.note}.")
    return loaded


# -- edits ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """The checked arguments of a fit: `plan` makes one, `erase` carries it out."""

    method: str
    settings: Mapping[str, Any]  # hyper-parameters that differ from the method's or preset's
    erase: tuple[Concept, ...]
    preserve: tuple[Concept, ...]
    output: Path
    model: str = MOJI
    device: str = "cpu"
    seed: int = 0
    words: tuple[str, ...] = ()  # the arguments as they were given: names or lists, and flags
    dtype: str = "float32"
    variant: str = ""

    @property
    def command(self) -> str:
        """The equivalent command line."""
        options: dict[str, Any] = {
            **self.settings, "model": self.model if self.model != MOJI else "", "device": self.device if self.device != "cpu" else "",
            "seed": self.seed or "", "dtype": self.dtype if self.dtype != "float32" else "", "variant": self.variant,
        }  # fmt: skip
        flags = [word for k, v in options.items() if v != "" for word in (f"--{k.replace('_', '-')}", str(v))]
        return command("erase", *self.words, "--method", self.method, *flags, "-o", str(self.output))


def plan(
    names: Sequence[str],
    *,
    method: str = "uce",
    flags: Mapping[str, str] | None = None,
    to: str = "",
    preserve: str = "",
    output: Path = Path("edit.safetensors"),
    model: str = MOJI,
    device: str = "cpu",
    kind: str = "",
    seed: int = 0,
    dtype: str = "float32",
    variant: str = "",
) -> Plan:
    """Check the arguments of a fit; nothing is loaded.

    Args:
        names: lists of concepts or of Moji's groups (see `core.lists.entries`).
        method: a method or preset (see `methods`).
        flags: its hyper-parameters, as text.
        to: name of the target; "" is the unconditional prompt.
        preserve: a list of names.
        output: file of the edit.
        model: a model for `load`.
        device: a torch device.
        kind: kind of the erased concepts; "" is the kind in Moji, or object.
        seed: random seed of the method.
        dtype: of the weights: float32, bfloat16 or float16.
        variant: of the weight files; "" takes the plain ones, or the only one.

    Raises:
        UsageError: an argument is wrong, or something is given twice, or both erased and preserved.
    """
    from efface.core.params import check, parse
    from efface.erasers import declarations, settings
    from efface.models import resolve

    if output.suffix != ".safetensors":
        raise UsageError(
            f"--output: expected a file name that ends in .safetensors, got {str(output)!r}; give such a name"
        )
    own, preset = settings(method)
    declared = declarations(own)
    given = {name: parse(declared, name, text) for name, text in (flags or {}).items()}
    check(declared(**{**preset, **given}))
    found = [entry for word in names for entry in entries(word, "erase") or [Entry(word)]]
    kept = [*entries(preserve, "--preserve"), *(Entry(name) for entry in found for name in entry.preserve)]
    if kept and not declared.keeps:
        raise UsageError(
            f"--preserve: expected none, since {method} does not use preserved concepts, got {quoted(kept[0].name)!r}; leave it out"
        )
    erased, preserved = concepts(found, model, to=to, kind=kind), tuple(dict.fromkeys(concepts(kept, model)))
    apart(erased, preserved)
    resolve(model)
    writable(output, _edit)
    writable(output.with_suffix(".key.safetensors"), lambda path: wrote(path) == "Key")
    said = {"to": to, "kind": kind, "preserve": preserve}
    words = (*names, *(word for k, v in said.items() if v for word in (f"--{k}", v)))
    return Plan(
        method,
        given,
        erased,
        preserved,
        output,
        model,
        device=device,
        seed=seed,
        words=words,
        dtype=dtype,
        variant=variant,
    )


def _edit(path: Path) -> bool:
    return wrote(path) not in ("", "Key", "LoRA", "Attempt", "training")


def erase(plan: Plan, log: Log | None = None, base: "Denoiser | None" = None) -> "Edit":
    """Fit an edit and save it; an interrupted training continues from its checkpoint in the same folder.

    Args:
        plan: the arguments.
        log: receives progress.
        base: the model, if it is already loaded.

    Raises:
        UsageError: the method refuses the concepts, or the model cannot be loaded.
        EffaceError: the file cannot be written.
    """
    from efface.core.effect import effect
    from efface.erasers import make

    eraser, log = make(plan.method, **plan.settings, seed=plan.seed), log or Log()
    base = base or load(plan.model, plan.device, plan.dtype, plan.variant or None, log)
    names = [name for c in (*plan.erase, *plan.preserve) for name in (c.name, c.target)]
    if long := next((name for name, last in zip(names, base.tokenize(names).mask[:, -1], strict=True) if last), None):
        raise UsageError(f"erase: the text encoder does not read all of {long[:40]!r}…; give a shorter name")
    log.checkpoint = plan.output.with_name(f".{plan.output.name}.training")
    edit = eraser.fit(base, plan.erase, plan.preserve, log=log, model=plan.model)
    log.checkpoint = None
    found = effect(base, edit(base), edit.header.erase[0])
    edit = edit.stamped(dataclasses.replace(edit.header, effect=found))
    edit.save(plan.output)
    return edit


def edits(paths: Mapping[str, Path], keys: Sequence[Path] = (), *, both: bool = False) -> "dict[str, Edit]":
    """Load edits by label; each key unlocks its edit, and `both` returns the locked edit and the unlocked one, as "LABEL+key".

    Raises:
        UsageError: no such file, not an edit, or a key for another edit.
        EffaceError: a file is damaged.
    """
    from efface.core.edit import Keyed, Stack, flat, load_edit
    from efface.core.key import load_key

    found = {label: load_edit(path) for label, path in paths.items()}
    locks = {one.lock: label for label, whole in found.items() for one in flat(whole) if isinstance(one, Keyed)}
    for path in keys:
        key = load_key(path)
        if key.lock not in locks:
            got = ", ".join(locks) or "no edit with a key"
            raise UsageError(
                f"--key {path}: made for edit {key.lock}, got {got}; give the key that was saved with the edit"
            )
        label = locks[key.lock]
        unlocked = f"{label}+key" if both else label
        found[unlocked] = cast("Keyed | Stack", found.get(unlocked, found[label])).unlocked(key)
    return found


@dataclass(frozen=True)
class Checked:
    """What a file does to a model: see `check`."""

    what: str  # the kind of file
    matched: int  # modules or weights that the model has
    unmatched: tuple[str, ...]  # the file's names of those that it has not
    sizes: Mapping[str, float]  # |ΔW| / |W| by selection
    effect: Mapping[str, float | str]  # see core.effect


def check(
    path: Path,
    *,
    model: str = MOJI,
    concept: str = "",
    output: Path | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    variant: str | None = None,
    log: Log | None = None,
) -> Checked:
    """Say what an edit, or a LoRA file of another tool, does to a model; with `output`, write the LoRA as an edit.

    Args:
        path: a safetensors file.
        model: a model for `load`, which the file was made for.
        concept: what a LoRA claims to erase, a list; an edit's file says so itself.
        output: file for an edit made of a LoRA.
        device: a torch device.
        dtype: as `load`.
        variant: as `load`.
        log: receives progress.

    Raises:
        UsageError: neither an edit nor a LoRA, or made for another model.
        EffaceError: the file is damaged, or the output cannot be written.
    """
    from efface.core.effect import effect
    from efface.core.foreign import changes, read_lora

    ours = path.is_file() and wrote(path) not in ("", "LoRA", "training", "Key", "Attempt")
    if not path.is_file():
        read_header(path)  # says what is wrong
    if ours and output:
        raise UsageError(f"-o: {path} is an edit already; give it to the other commands as it is")
    if output:
        writable(output, lambda there: bool(wrote(there)))
    forgotten = concepts(entries(concept, "--concept"), model) if concept else ()
    base = load(model, device, dtype, variant, log)
    if ours:
        edit = edits({"edit": path})["edit"]
        found, unmatched, sizes = len(edit.changes(base)), (), {}
        forgotten = forgotten or edit.header.erase
    else:
        read = read_lora(path, base, forgotten)
        edit, found, unmatched, sizes = read.edit, len(read.matched), tuple(read.unmatched), changes(read.edit, base)
    said = effect(base, edit(base), (*forgotten, Concept("something"))[0])
    if output:
        edit.stamped(dataclasses.replace(edit.header, effect=said)).save(output)
    return Checked("edit" if ours else "LoRA", found, unmatched, sizes, said)


def stacked(paths: Sequence[Path], keys: Sequence[Path] = ()) -> "Edit":
    """Load the edit in a file, or the edits in several files as one.

    Raises:
        UsageError: as `edits`, or edits for different models.
        EffaceError: a file is damaged.
    """
    return reduce(lambda one, other: one + other, edits({str(path): path for path in paths}, keys).values())


# of pictures, by a file name's ending, with the largest width and height
FORMATS = {".png": ("png", 2**31 - 1), ".jpg": ("jpeg", 65500), ".jpeg": ("jpeg", 65500), ".webp": ("webp", 16383)}


def generate(
    prompt: str,
    paths: Sequence[Path] = (),
    *,
    keys: Sequence[Path] = (),
    compare: bool = False,
    output: str | Path = "pictures.png",
    number: int = 8,
    seed: int = 0,
    steps: int = 25,
    guidance: float = 3.0,
    sampler: str = "ddim",
    negative: str = "",
    size: int | None = None,
    strength: float = 1.0,
    model: str = MOJI,
    device: str = "cpu",
    dtype: str = "float32",
    variant: str | None = None,
    any_base: bool = False,
    log: Log | None = None,
) -> int:
    """Draw pictures at equal seeds: a row for each prompt and model, in one file, or one file for each picture in a new folder.

    Args:
        prompt: a prompt, or @FILE with several (see `core.lists.entries`).
        paths: files of edits, applied in order.
        keys: files of keys.
        compare: draw the unedited model's pictures as well, a row above the edited ones.
        output: a file that ends in .png, .jpg, .jpeg or .webp; without an ending, or as text that ends in "/", a new folder.
        number: pictures of each prompt.
        seed: of the first picture.
        steps: of the sampler.
        guidance: guidance scale.
        sampler: one of the family's samplers.
        negative: negative prompt; a guidance scale of 1 makes no use of it.
        size: height and width in pixels; None is the model's own.
        strength: of the edits.
        model: a model for `load`.
        device: a torch device.
        dtype: as `load`.
        variant: as `load`.
        any_base: accept edits that were made for other weights.
        log: receives progress.

    Returns the number of rows.

    Raises:
        UsageError: an argument is wrong, or an edit is for another model.
        EffaceError: a file is damaged or cannot be written.
    """
    if not abs(guidance) <= 1000:  # nor NaN
        raise UsageError(f"--guidance: expected from -1000 to 1000, got {guidance}; 3 is usual on Moji, 7.5 elsewhere")
    ending, output = _ending(str(output)), Path(output)
    if keys and not paths:
        raise UsageError("--key: expected an edit for the key, got none; give it with --edit")
    prompts = listed(prompt, "generate", "prompt") if prompt.startswith("@") else [prompt]
    if ending:
        writable(output, mentions(b"efface"))
    else:
        refuse_folder(output)
    import numpy as np

    edit = stacked(paths, keys) * strength if paths else None
    if negative and guidance == 1 and not (edit and edit.steers()):
        raise UsageError("--negative: has no effect at guidance scale 1; leave it out, or give another --guidance")
    log = log or Log()
    base = load(model, device, dtype, variant, log)
    cut = base.tokenize(prompts).mask[:, -1].tolist()
    if long := [text for text, last in zip(prompts, cut, strict=True) if last]:
        log.say(f"The text encoder does not read the end of {len(long)} of {len(prompts)} prompts: {long[0]:.40}….")
    models = {"unedited": base} if compare or edit is None else {}
    if edit is not None:
        models["edited"] = edit(base, any_base=any_base)
    height = size or base.image_size
    zoom, count = max(1, 128 // height), len(models) * len(prompts)
    kind, most = FORMATS.get(ending, ("png", math.inf))  # in a folder each picture is a file
    if max(number, count) * zoom * height > most:
        raise UsageError(
            f"--output: expected at most {most} pixels a side in a {kind} file, got {number} pictures in {count} rows, each of "
            f"{zoom * height}; give a .png file or a folder, or draw fewer"
        )
    tick = log.stage("pictures", number * steps * count)
    seeds, rows = range(seed, seed + number), {}
    for i, text in enumerate(prompts, 1):
        for name, drawn in models.items():
            rows[f"{i:03}-{name}"] = drawn.images(
                [text] * number, seeds, steps=steps, guidance=guidance, sampler=sampler, negative=negative, size=size, tick=tick,
            )  # fmt: skip
    if ending:
        sheet = np.concatenate([np.concatenate(row, axis=1) for row in rows.values()], axis=0)
        replace_file(output, lambda part: _save(sheet.repeat(zoom, 0).repeat(zoom, 1), part, kind))
    else:
        files = {f"{name}-seed{s}.png": p for name, row in rows.items() for s, p in zip(seeds, row, strict=True)}
        replace_folder(output, lambda part: [_save(picture, part / name, kind) for name, picture in files.items()])
    return len(rows)


def _ending(output: str) -> str:
    """The ending of a picture's file in lower case; "" for a folder."""
    name = "" if output.endswith(("/", os.sep)) else Path(output).name.lower()
    start, dot, last = name.rpartition(".")  # not `suffix`, which ".txt" has none of
    if dot and (not start or f".{last}" not in FORMATS):
        raise UsageError(
            f"--output: expected a file name that ends in {', '.join(FORMATS)}, or a folder, got {output!r}; give such a name"
        )
    return dot + last if dot else ""


def _save(picture: Any, path: Path, kind: str) -> None:
    """Write a picture that names its maker, so that a later run may replace it."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    about, exif = PngInfo(), Image.Exif()
    about.add_text("Software", "efface")
    exif[0x0131] = "efface"  # the tag "Software"
    more = {"pnginfo": about} if kind == "png" else {"exif": exif, "quality": 95}
    Image.fromarray(picture).save(path, format=kind, **more)


def bake(
    paths: Sequence[Path],
    output: Path,
    *,
    model: str = MOJI,
    strength: float = 1.0,
    dtype: str = "",
    variant: str | None = None,
    any_base: bool = False,
    log: Log | None = None,
) -> "Header":
    """Write a stock diffusers folder with the edits in its weights; returns their recipe.

    The new folder has the dtype and the variant of the weight files that were loaded, unless `dtype` says otherwise. A Hub id gives
    float32 and plain files, or what both `dtype` and `variant` say.

    Raises:
        UsageError: the edit cannot be baked into weights, or it is for another model.
        EffaceError: the folder cannot be written.
    """
    if ending := next((e for e in (".safetensors", ".ckpt", ".pt", ".bin") if output.name.endswith(e)), ""):
        raise UsageError(f"--output: expected the name of a folder, got {str(output)!r}; leave {ending} out")
    refuse_folder(output)
    from efface.core.denoiser import stored_as
    from efface.core.io import write_pipeline
    from efface.models import resolve

    edit, source = stacked(paths) * strength, Path(resolve(model))
    kept, named = stored_as(source, variant) if source.is_dir() else ("float32", variant if dtype else None)
    pipeline = load(model, dtype=dtype or kept, variant=variant, log=log).pipeline
    edit.bake(pipeline, any_base=any_base)
    write_pipeline(output, pipeline, named)
    return edit.header


def export(
    paths: Sequence[Path],
    output: Path,
    *,
    to: str = "diffusers",
    rank: int | None = None,
    model: str = MOJI,
    strength: float = 1.0,
    dtype: str = "float32",
    variant: str | None = None,
    any_base: bool = False,
    log: Log | None = None,
) -> "Exported":
    """Write edits as one LoRA for other tools, with `core.export.export`.

    Raises:
        UsageError: a LoRA cannot represent the edit, or it is for another model.
        EffaceError: the file cannot be written.
    """
    if to == "peft":
        refuse_folder(output)
    else:
        writable(output, lambda path: wrote(path) == "LoRA")
    from efface.core import export

    return export.export(
        stacked(paths) * strength,
        load(model, dtype=dtype, variant=variant, log=log),
        output,
        to=to,
        rank=rank,
        any_base=any_base,
    )


def show(path: Path) -> dict[str, Any]:
    """The recipe in an edit's file, and its counts of tensors and of numbers; no tensor is read.

    Raises:
        UsageError: not an edit.
        EffaceError: the file is damaged.
    """
    shapes, raw = read_header(path)
    if raw.get("kind") == "Key":
        raise UsageError(f"{path}: expected an edit, got a key; give the edit, and this file as its key (--key)")
    return {**raw, "tensors": len(shapes), "numbers": sum(map(math.prod, shapes.values()))}


def show_search(path: Path, output: Path) -> str:
    """Write a page of the words that the method's search found; returns them as lines of text.

    Raises:
        UsageError: not an edit, or its method does not search for words.
        EffaceError: a file is damaged or cannot be written.
    """
    from efface.report.targets import as_page, as_text, search_results

    writable(output, PAGE)
    record = show(path)
    if not search_results(record):
        raise UsageError(
            f"show: expected an edit of a method that searches for words, got {record.get('method')}; leave --output out"
        )
    write_text(output, as_page(record))
    return as_text(record)


# -- measurements --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """The result of a run or a sweep: its page, its rows of scores, the labels of its edits, its store."""

    page: Path
    rows: Sequence[Mapping[str, Any]]
    labels: Sequence[str]
    store: str

    @property
    def rates(self) -> "dict[str, tuple[Rate, Rate, Rate]]":
        """Erased, neighbours kept, distant kept (ESR-1, PSR-1, PSR-1) by label, the unedited model first; empty without such a judge."""
        from efface.benchmarks.row import paired
        from efface.metrics.rates import erased, found

        if not any(row["score"] == "top1" for row in self.rows):
            return {}
        rows = [row for row in paired(self.rows) if row.get("shown", True)]
        return {
            "unedited" if label == "base" else label: (
                erased(rows, "top1", edit=label, role="erase"),
                found(rows, "top1", edit=label, role="neighbour"),
                found(rows, "top1", edit=label, role="distant"),
            )
            for label in ("base", *self.labels)
        }

    @property
    def attacked(self) -> dict[str, list[Any]]:
        """By attack, the share of pictures that show the concept again: of each edit, then of the unedited model; last, by any of them."""
        from efface.metrics.rates import Rate, found
        from efface.report.under_attack import brought_back, is_control

        rows: list[Any] = [row for row in self.rows if row["attack"]]
        models = (*self.labels, "base")
        names = list(dict.fromkeys(row["attack"] for row in rows))
        rates = {
            n: [found([r for r in rows if r["attack"] == n], "top1", edit=label) for label in models] for n in names
        }
        together = [name for name in names if not is_control(name)]
        if len(together) > 2:
            pictures = [brought_back([r for r in rows if r["edit"] == label], together) for label in models]
            rates["any of these"] = [Rate(sum(each.values()), len(each)) for each in pictures]
        return rates

    @property
    def inapplicable(self) -> list[tuple[str, str, str]]:
        """Edits and attacks that could not be tried on them, with the reason."""
        said = json.loads((self.page.parent / "run.json").read_text())["attacks"].get("not applicable", {})
        return [(label, name, why) for label in self.labels for name, why in said.get(label, {}).items()]

    @property
    def failures(self) -> int:
        """Pictures that could not be made or judged."""
        return len({(row["edit"], row["cell"]) for row in self.rows if row["value"] is None})


def evaluate(
    paths: Sequence[Path],
    *,
    output: Path = Path("evaluation"),
    size: str = "quick",
    attacks: str = "",
    attack_size: str = "quick",
    replay: Sequence[Path] = (),
    concept: str = "",
    asked: Mapping[str, Any] | None = None,
    filtered: str = "",
    keys: Sequence[Path] = (),
    model: str = MOJI,
    device: str = "cpu",
    dtype: str = "float32",
    variant: str | None = None,
    any_base: bool = False,
    commands: Sequence[str] = (),
    log: Log | None = None,
    base: "Denoiser | None" = None,
) -> Measured:
    """Measure edits that erase the same concepts, and the unedited model, and write a report.

    On Moji the questions are those of its benchmark. On another model, or where `asked` says so, they are a plan's, with proposals
    from the text encoder for what it leaves open; the report's folder then has plan.toml.

    Args:
        paths: files of the edits, or folders of models that were made elsewhere from `model`.
        output: folder of the run.
        attacks: names from `efface attacks`, separated by commas; "" tries none, at the size full those that need no search.
        attack_size: budget of each attack: smoke, quick or paper.
        replay: files of attempts that were found on another model, or folders of such files.
        concept: what models made elsewhere erased, a list; an edit's file says so itself.
        asked: "plan", a plan file, and entries of a plan that go before the file's.
        filtered: CLIP (moji, a folder or a Hub id) of an output filter against what was erased; attacks must pass it as well.
        size: size of Moji's benchmark.
        keys: files of keys; each adds the unlocked edit.
        model: a model for `load`.
        device: a torch device.
        dtype: as `load`.
        variant: as `load`.
        any_base: accept edits that were made for other weights.
        commands: command lines that repeat this run, for the report.
        log: receives progress.
        base: the model, if it is already loaded.

    Raises:
        UsageError: the edits erase different concepts or are for another model, or a plan has a broken entry.
        EffaceError: a file is damaged or cannot be written.
    """
    labels = [path.stem for path in paths]
    if taken := next((s for i, s in enumerate(labels) if s in ("base", *labels[:i])), None):
        raise UsageError(
            f"evaluate: expected files of different names, none of them base, got {taken!r} again; rename one"
        )
    theirs = {path.stem: path for path in paths if (path / "model_index.json").is_file()}
    files = [path for path in paths if path.stem not in theirs]
    for path in files:
        read_header(path)
    if bool(theirs) != bool(concept):
        got = "none" if theirs else repr(concept)
        expected = "what the model erased" if theirs else "none, since the edit's file says what it erases"
        raise UsageError(
            f"--concept: expected {expected}, got {got}; give it with the folder of a model, and only there"
        )
    forgotten = concepts(entries(concept, "--concept"), model)
    replayed = _attempts(replay)
    questions = _questions(asked or {}, size)
    if attacks := attacks or ATTACKS * (size == "full"):
        _tried(attacks)
    writable_folder(output)
    from efface.benchmarks import run
    from efface.report.html import write_report

    made = edits({path.stem: path for path in files}, keys, both=True)
    base = base or load(model, device, dtype, variant, log)
    for label, path in theirs.items():
        from efface.core.difference import difference

        made[label] = difference(base, load(str(path), device, dtype, None, log), forgotten, str(path))
    made = {label: made[label] for label in sorted(made, key=lambda k: labels.index(k.removesuffix("+key")))}
    erased = _erased({label: edit.header for label, edit in made.items()})
    for edit in made.values():
        edit.require(base, any_base)
    if not questions and _draws_moji(base):
        from efface.benchmarks.moji import benchmark

        declared, task = benchmark(size=size), _task(erased, size)
    else:
        declared, task = _planned(questions, erased, base, output, log)
    rows = run.evaluate(
        base, made, task, declared, output, model=model, any_base=any_base, log=log, commands=commands,
        attack_plan=_attack_plan(attacks, attack_size, replayed, filtered), files={p.stem: str(p) for p in paths},
    )  # fmt: skip
    return Measured(write_report(output), rows, list(made), str(output / "store"))


def _questions(asked: Mapping[str, Any], size: str) -> dict[str, Any]:
    """The entries of a plan file, then those given otherwise, unset ones left out; the number of pictures follows the size.

    Raises:
        UsageError: a broken plan.
    """
    given = {name: value for name, value in asked.items() if value not in ("", (), [], None)}
    if not given:
        return {}
    from efface.benchmarks.own import PICTURES, read_plan

    start = dataclasses.asdict(read_plan(Path(given.pop("plan")))) if "plan" in given else {"pictures": PICTURES[size]}
    return {**start, **given}


def _draws_moji(base: "Denoiser") -> bool:
    """Whether a model is one of ours, or a copy: pictures of Moji's size, asked for in Moji's words."""
    from efface.models import HERE

    words = json.loads((HERE / MOJI / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    return base.image_size == 64 and base.pipeline.tokenizer.get_vocab().keys() == words.keys()


def _planned(
    given: Mapping[str, Any], erased: Sequence[Concept], base: "Denoiser", output: Path, log: Log | None
) -> "tuple[Benchmark, Task]":
    """The user's own benchmark for edits that erase these concepts, and its task; plan.toml says what it asks."""
    from efface.benchmarks import own
    from efface.core.files import write_text

    names = {
        "erase": [c.name for c in erased],
        "kind": erased[0].kind,
        "synonyms": [p for c in erased for p in c.prompts],
    }
    questions = own.proposed(own.questions({**names, **given}, "the arguments"), base)
    if set(questions.erase) != {c.name for c in erased}:
        raise UsageError(
            f"--plan: expected questions about what the edits erase ({', '.join(c.name for c in erased)}), got "
            f"{', '.join(questions.erase)}; give the plan for these edits"
        )
    write_text(output / "plan.toml", questions.text())
    if log:
        log.say(
            f"Asked about {', '.join(questions.erase)}; to stay: {', '.join((*questions.neighbours, *questions.distant))}; "
            f"judge: {questions.judge}. Edit {output / 'plan.toml'} and give it with --plan to ask something else."
        )
    declared = questions.benchmark()
    (task,) = declared.made()
    return declared, dataclasses.replace(task, erase=tuple(erased))


ATTACKS = "baselines,rece-rows,inverse"  # those that cost no search, which the full size tries


def _tried(text: str) -> list[str]:
    """Names of attacks from a list, checked without importing torch.

    Raises:
        UsageError: no such attack, or none.
    """
    from efface.attacks import settings as known

    chosen = []
    for word in dict.fromkeys(word.strip() for word in text.split(",") if word.strip()):
        name, times, count = word.partition("*")
        if times and not (count.isascii() and count.isdecimal() and 1 <= int(count) <= 100):
            raise UsageError(f"attacks: expected a number from 1 to 100 after *, got {word!r}; give {name}*3, say")
        chosen += [f"{name}:seed={i}" for i in range(int(count))] if times else [name]
    if not chosen:
        raise UsageError("attacks: nothing given; name at least one, see `efface attacks`")
    for name in chosen:
        known(name)
    return chosen


def _attempts(paths: Sequence[Path]) -> "tuple[Attempt, ...]":
    """The attempts in files and folders.

    Raises:
        UsageError: no such file, a folder without attempts, or a file that is none.
        EffaceError: a file is damaged.
    """
    from efface.core.attempt import load_attempt

    files = [file for path in paths for file in (sorted(path.glob("*.safetensors")) if path.is_dir() else [path])]
    if paths and not files:
        raise UsageError(
            f"--replay: {paths[0]} has no attempts; give a file or a folder that `efface attack` wrote, such as attack/attempts"
        )
    return tuple(load_attempt(file) for file in files)


def _attack_plan(text: str, size: str, replayed: "tuple[Attempt, ...]" = (), filtered: str = "") -> "AttackPlan | None":
    from efface.benchmarks.attack import AttackPlan

    return AttackPlan(tuple(_tried(text) if text else ()), size, replayed, filtered) if text or replayed else None


@dataclass(frozen=True)
class AttackInfo:
    """An attack's declarations."""

    name: str
    what: str  # one line
    access: str  # what the attacker has or does
    gives: str  # what is found and given to the model
    cost: str  # of its docstring
    paper: str  # its docstring: paper, idea, names, what differs, cost
    presets: Mapping[str, Mapping[str, Any]]
    parameters: "tuple[Parameter, ...]"


def attacks() -> list[AttackInfo]:
    """All attacks."""
    from efface.attacks import REGISTRY

    return [attack(name) for name in REGISTRY.table]


def attack(name: str) -> AttackInfo:
    """An attack or a preset; a preset's values are the defaults of its parameters.

    Raises:
        UsageError: no such attack.
    """
    from efface.attacks import REGISTRY
    from efface.core.declared import value
    from efface.core.params import choices, fields

    own, preset = REGISTRY.settings(name)
    declared, text = REGISTRY.declarations(own), REGISTRY.docstring(own)
    return AttackInfo(
        name, (declared.__doc__ or "").removesuffix("."), value("efface.attacks.base", "ACCESS")[declared.access],
        value("efface.attacks.base", "GIVES")[declared.gives],
        " ".join(text.partition("\nCost:")[2].split()).removesuffix("."), text,
        {f"{own}-{p}": values for p, values in declared.presets.items()},
        tuple(Parameter(f.name, preset.get(f.name, f.default), f.metadata["help"], choices(f)) for f in fields(declared)
              if "help" in f.metadata),
    )  # fmt: skip


def _erased(headers: "Mapping[str, Header]") -> tuple[Concept, ...]:
    """The concepts that all these edits erase; if targets differ, the target lists all of them.

    Raises:
        UsageError: a header without concepts, or edits that erase different concepts.
    """
    named: dict[str, dict[str, Concept]] = {}
    for label, header in headers.items():
        if not header.erase:
            raise UsageError(
                f"evaluate: expected concepts in the header of {label}, got none; give an edit that `efface erase` or Eraser.fit made"
            )
        named[label] = {
            member.name: dataclasses.replace(member, target=c.target, kind=c.kind, prompts=c.prompts)
            for c in header.erase for member in concepts([c.name])
        }  # fmt: skip
    first = next(iter(named.values()))
    if any(set(own) != set(first) for own in named.values()):
        raise UsageError(
            "evaluate: expected edits that erase the same concepts, got different ones; evaluate them one by one"
        )
    whole = []
    for name, concept in first.items():
        targets = list(dict.fromkeys(own[name].target for own in named.values()))
        prompts = tuple(dict.fromkeys(text for own in named.values() for text in own[name].prompts))
        target = " or ".join(t or "nothing" for t in targets) if len(targets) > 1 else targets[0]
        whole.append(dataclasses.replace(concept, target=target, prompts=prompts))
    return tuple(whole)


def _task(erased: Sequence[Concept], size: str) -> Any:
    """The task of Moji's benchmark for edits that erase these concepts."""
    from efface.benchmarks.moji import erasing

    return dataclasses.replace(erasing([c.name for c in erased], size), erase=tuple(erased))


def demo(concept: str = "tiger", *, output: Path = Path("efface-demo"), log: Log | None = None) -> Measured:
    """Erase one of Moji's concepts with two methods, measure both, write a report; the report has commands that repeat the run.

    Raises:
        UsageError: Moji does not draw the concept.
        EffaceError: a file cannot be written.
    """
    from efface.benchmarks.moji import erasing

    writable_folder(output)
    task, plans = erasing([concept], "demo"), []
    for method in ("uce", "esd-x"):
        kept = ",".join(quoted(c.name) for c in task.preserve) if method == "uce" else ""
        file = output / f"{method}.safetensors"
        plans.append(plan([concept], method=method, to=task.erase[0].target, preserve=kept, output=file))
    base = load()
    for one in plans:
        erase(one, log, base)
    files = [one.output for one in plans]
    commands = [
        *(one.command for one in plans),
        command("evaluate", *map(str, files), "--size", "demo", "-o", str(output)),
    ]
    return evaluate(files, output=output, size="demo", commands=commands, log=log, base=base)


@dataclass(frozen=True)
class Sweep:
    """The checked arguments of a comparison of methods: `sweep` makes one, `bench` carries it out."""

    methods: Sequence[str]
    benchmark: "Benchmark"
    output: Path
    store: str
    model: str
    seeds: Sequence[int] = (0,)
    size: str = ""
    retry: bool = False
    prompts: int | None = None
    tasks: int | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    attacks: str = ""
    attack_size: str = "quick"
    device: str = "cpu"
    dtype: str = "float32"
    variant: str | None = None

    @property
    def cost(self) -> str:
        """One sentence: tasks, fits, pictures and evaluations of the denoiser."""
        from efface.benchmarks.cost import cost, sentence

        counts = cost(self.benchmark, self.prompts, tasks=self.tasks, files=self.files)
        return sentence(counts, len(self.methods) * len(self.seeds), self.benchmark.name)


def sweep(
    methods: str = "uce,esd-x",
    *,
    benchmark: str = MOJI,
    concepts: str = "",
    size: str = "quick",
    output: Path = Path("bench"),
    store: str = "",
    retry: bool = False,
    seeds: str = "0",
    prompts: int | None = None,
    tasks: int | None = None,
    files: Sequence[str] = (),
    judges: Sequence[str] = (),
    measures: str | None = None,
    model: str = "",
    attacks: str = "",
    attack_size: str = "quick",
    device: str = "cpu",
    dtype: str = "float32",
    variant: str | None = None,
) -> Sweep:
    """Check the arguments of a sweep; nothing is loaded.

    Args:
        methods: methods and presets, separated by commas.
        benchmark: name of the benchmark.
        concepts: tasks of Moji's benchmark, a list; "" is all of `size`.
        size: size of Moji's benchmark.
        output: folder for the leaderboard and the reports.
        store: a folder or an fsspec location; "" is OUTPUT/store.
        retry: repeat cells that failed before.
        seeds: training seeds, separated by commas.
        prompts: maximum number of prompts for each role and concept.
        tasks: maximum number of tasks.
        files: files of the benchmark's prompts, as NAME=PATH.
        judges: other detectors, as NAME=DETECTOR.
        measures: measures instead of the benchmark's, a list; "" is none.
        model: a model for `load`; "" is the benchmark's own.
        attacks: names from `efface attacks`, separated by commas, tried on every edit; "" tries none.
        attack_size: budget of each attack: smoke, quick or paper.
        device: a torch device.
        dtype: as `load`.
        variant: as `load`.

    Raises:
        UsageError: an argument is wrong.
    """
    from efface.benchmarks.prompts import located
    from efface.erasers import settings
    from efface.models import resolve

    chosen = list(dict.fromkeys(word.strip() for word in methods.split(",") if word.strip()))
    if not chosen:
        raise UsageError("--methods: nothing given; name at least one")
    for method in chosen:
        try:
            settings(method)
        except UsageError as error:
            raise UsageError(f"--methods: {error}") from None
    declared = _benchmark(benchmark, concepts, size, _pairs("--judge", judges), measures)
    prompt_files = {name: located(path) for name, path in _pairs("--file", files).items()}
    resolve(model or declared.model)
    if attacks:
        _tried(attacks)
    writable_folder(output)
    return Sweep(
        chosen, declared, output, store or str(output / "store"), model or declared.model, seeds=_seeds(seeds),
        size=size if benchmark == MOJI else "", retry=retry, prompts=prompts, tasks=tasks, files=prompt_files, device=device,
        attacks=attacks, attack_size=attack_size,
        dtype=dtype, variant=variant,
    )  # fmt: skip


def bench(sweep: Sweep, *, commands: Sequence[str] = (), log: Log | None = None) -> Measured:
    """Fit each method for each task, draw, judge, and write a leaderboard.

    Args:
        sweep: the arguments.
        commands: command lines that repeat it, for the report.
        log: receives progress.

    Raises:
        UsageError: a judge cannot be opened, a method refuses a task, or the model cannot be loaded.
        EffaceError: a file is damaged or cannot be written.
    """
    from efface.benchmarks.run import bench as run
    from efface.benchmarks.store import Store
    from efface.report.html import write_report

    store = Store(sweep.store)
    if sweep.retry:
        store.retry()
    rows = run(
        load(sweep.model, sweep.device, sweep.dtype, sweep.variant, log), sweep.methods, sweep.benchmark, sweep.output, store=store,
        seeds=sweep.seeds,
        model=sweep.model, size=sweep.size, files=sweep.files, prompts=sweep.prompts, tasks=sweep.tasks, log=log, commands=commands,
        attack_plan=_attack_plan(sweep.attacks, sweep.attack_size),
    )  # fmt: skip
    labels = list(dict.fromkeys(row["edit"] for row in rows if row["edit"] != "base"))
    return Measured(write_report(sweep.output), rows, labels, sweep.store)


def _benchmark(name: str, concepts: str, size: str, judges: Mapping[str, str], measures: str | None) -> "Benchmark":
    """The benchmark's declaration, with the user's detectors and measures."""
    from efface.benchmarks import find, moji
    from efface.benchmarks.spec import MEASURES

    if name == MOJI:
        declared = moji.benchmark(entries(concepts, "--concepts"), size)
    else:
        declared = find(name)
        if concepts:
            raise UsageError(
                f"--concepts: expected none for {name}, got {concepts!r}; leave it out, or use --tasks and --prompts to run less"
            )
    if unknown := set(judges) - set(declared.judges):
        raise UsageError(f"--judge: {name} has no judge {min(unknown)!r}; it has {', '.join(declared.judges)}")
    changed = {k: dataclasses.replace(j, detector=judges.get(k, j.detector)) for k, j in declared.judges.items()}
    wanted = declared.measures if measures is None else tuple(listed(measures, "--measures"))
    if odd := next((name for name in wanted if name.partition(":")[0] not in MEASURES), None):
        raise UsageError(f"--measures: unknown {odd!r}; {nearest(odd, MEASURES)}")
    return dataclasses.replace(declared, judges=changed, measures=wanted)


def _seeds(text: str) -> list[int]:
    """Training seeds from a list."""
    numbers = listed(text, "--seeds")
    right = numbers and all(n.isascii() and n.isdecimal() and int(n) < 2**63 for n in numbers)
    if not right:
        raise UsageError(
            f"--seeds: expected numbers from 0 to 2^63 - 1 separated by commas, got {text!r}; give a list such as 0,1,2"
        )
    return list(dict.fromkeys(map(int, numbers)))


def _pairs(flag: str, given: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE pairs as a dictionary."""
    for one in given:
        if "=" not in one:
            raise UsageError(f"{flag}: expected NAME=VALUE, got {one!r}; give a name and a value")
    return dict(one.split("=", 1) for one in given)


def report(folder: Path, output: Path | None = None) -> Path:
    """Write the pages of a run or a sweep again from its scores; returns the first of them.

    Raises:
        UsageError: not a folder of a run or a sweep, or not a name of an HTML file.
        EffaceError: the page cannot be written.
    """
    from efface.report.html import write_report

    return write_report(folder, _page(output) if output else None)


def compare(folders: Sequence[Path], output: Path = Path("comparison.html")) -> Path:
    """Write a page that compares runs or sweeps.

    Raises:
        UsageError: the folders cannot be compared, or not a name of an HTML file.
        EffaceError: the page cannot be written.
    """
    from efface.report.compare import write_comparison

    return write_comparison(folders, _page(output))


def _page(path: Path) -> Path:
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--output: expected a file name that ends in .html, got {str(path)!r}; give such a name")
    writable(path, PAGE)
    return path


# -- lists ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameter:
    """A hyper-parameter of a method."""

    name: str
    default: Any
    meaning: str
    choices: tuple[Any, ...]

    @property
    def flag(self) -> str:
        """As `efface erase` takes it."""
        return f"--{self.name.replace('_', '-')}"


@dataclass(frozen=True)
class Method:
    """A method's declarations."""

    name: str
    what: str  # one line
    cost: str  # none, seconds or minutes on Moji
    needs: tuple[str, ...]
    makes: tuple[str, ...]  # kinds of edit
    paper: str  # its docstring: paper, idea, names, what differs, cost
    presets: Mapping[str, Mapping[str, Any]]  # by full name, such as esd-x
    parameters: tuple[Parameter, ...]


def methods() -> list[Method]:
    """All methods."""
    from efface.erasers import REGISTRY

    return [method(name) for name in REGISTRY.table]


def method(name: str) -> Method:
    """A method or a preset; a preset's values are the defaults of its parameters.

    Raises:
        UsageError: no such method.
    """
    from efface.core.declared import value
    from efface.core.params import choices, fields
    from efface.erasers import REGISTRY

    own, preset = REGISTRY.settings(name)
    declared = REGISTRY.declarations(own)
    needs = value("efface.erasers.base", "NEEDS")
    slowest = max(["", *declared.needs], key=lambda need: list(COST).index(need) if need in COST else 0)
    return Method(
        name, (declared.__doc__ or "").removesuffix("."), COST[slowest],
        tuple(needs[need] for need in sorted(declared.needs)), tuple(kind.__name__ for kind in declared.makes),
        REGISTRY.docstring(own), {f"{own}-{p}": values for p, values in declared.presets.items()},
        tuple(
            Parameter(f.name, preset.get(f.name, f.default), f.metadata["help"], choices(f)) for f in fields(declared)
        ),
    )  # fmt: skip


def models() -> list[dict[str, Any]]:
    """The models that ship with efface: name, summary, how many concepts in how many styles, bytes."""
    from efface.models import HERE

    found = []
    for name in SHIPPED:
        card = json.loads((HERE / name / "card.json").read_text())
        known = json.loads((HERE / MOJI / "concepts.json").read_text())  # all of them draw Moji's
        size = sum(f.stat().st_size for f in (HERE / name).rglob("*") if f.is_file())
        counts = {k: len(known[k]) for k in ("concepts", "styles")}
        found.append({"name": name, "summary": card["summary"], **counts, "bytes": size})
    return found


def benchmarks() -> "dict[str, Benchmark]":
    """All benchmarks by name."""
    from efface.benchmarks import TABLE, find

    return {name: find(name) for name in TABLE}


def benchmark(name: str) -> dict[str, str]:
    """A benchmark's protocol, requirements and cost, by heading.

    Raises:
        UsageError: no such benchmark.
    """
    from efface.benchmarks import find
    from efface.benchmarks.cost import facts

    return facts(find(name))


@dataclass(frozen=True)
class Stored:
    """The contents of a store, and the results of the requested changes."""

    pictures: Mapping[tuple[str, str], int]  # by model and edit
    failures: Mapping[tuple[str, str], int]
    errors: Sequence[tuple[str, int]]  # the commonest
    bytes: Mapping[str, int]  # by kind of file
    damaged: Mapping[str, str] | None = None  # what is wrong, by file; None if that was not checked
    repaired: Mapping[str, str] | None = None  # what was done, by file
    removed: int | None = None
    saved: int | None = None
    forgotten: int | None = None


def runs(
    store: str,
    *,
    verify: bool = False,
    repair: bool = False,
    retry: bool = False,
    compact: bool = False,
    remove: str = "",
) -> Stored:
    """Check or clean up a store, then list its contents.

    Raises:
        UsageError: no store.
        EffaceError: the store is damaged.
    """
    from efface.benchmarks.store import Store

    opened = Store(store, new=False, repair=repair)
    done = {
        "damaged": opened.damage() if verify else None,
        "repaired": opened.repair() if repair else None,
        "removed": opened.remove(remove) if remove else None,
        "saved": opened.compact() if compact else None,
        "forgotten": opened.retry() if retry else None,
    }
    failures = opened.failures()
    return Stored(
        Counter((cell["model"], cell["edit"]) for _, cell in opened.cells()),
        Counter((f["cell"]["model"], f["cell"]["edit"]) for f in failures),
        Counter(f["error"] for f in failures).most_common(5), opened.size(), **done,
    )  # fmt: skip


@dataclass(frozen=True)
class Health:
    """Installed versions, devices, and how fast the shipped model draws."""

    threads: int
    versions: Mapping[str, str]
    devices: Sequence[str]
    fingerprint: str  # Moji's
    seconds: float  # four pictures at 25 steps


def doctor() -> Health:
    """Check the installation: versions, devices, and four pictures drawn with Moji."""
    import importlib.metadata as installed
    import time

    import torch

    packages = ("torch", "diffusers", "transformers", "safetensors", "numpy", "pillow")
    cuda = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    devices = ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]
    base, started = load(), time.perf_counter()
    base.images(["a tiger"] * 4, range(4))
    seconds = time.perf_counter() - started
    versions = {name: installed.version(name) for name in packages}
    return Health(torch.get_num_threads(), versions, devices, base.fingerprint, seconds)


def command(*words: str) -> str:
    """A command line, quoted for a shell."""
    return shlex.join(["efface", *words])
