"""The command line on models of real size with random weights: every method at its smallest setting, from erase to show; every attack.

    .venv/bin/python benchmarks/real_size.py                          # writes docs/real-size.md; if interrupted, run it again to continue
    .venv/bin/python benchmarks/real_size.py --models sd14 --methods uce,esd --pixels 512
    .venv/bin/python benchmarks/real_size.py --models sd14 --methods uce --attacks
    .venv/bin/python benchmarks/real_size.py --models sdxl,sd3 --methods uce,esd,spm

The folders have Stable Diffusion 1.4 and 2.1 (v-prediction) in stock classes: their exact shapes, in float32, with random weights; and
Stable Diffusion XL and 3 (medium, without T5) in bfloat16, since float32 takes more than 20 GB.
The script tests whether every command runs, and measures its time and peak memory; each command is a separate process.
Pictures are small (--pixels), since their size costs time on two cores and breaks nothing that weights do not.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

MODELS = {  # what differs: (text encoder, U-Net, prediction, pixels)
    "sd14": (
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
        {"cross_attention_dim": 768, "attention_head_dim": 8},
        "epsilon", 512,
    ),
    "sd21": (
        {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16, "hidden_act": "gelu"},
        {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
        "v_prediction", 768,
    ),
}  # fmt: skip
LARGE = ("sdxl", "sd3")  # in bfloat16; only if asked for
SMALLEST = {  # by hyper-parameter, for every method that has it
    "steps": 1, "batch": 1, "sampler_steps": 2, "drawn": 1, "rounds": 1, "reuse": 1, "everyday": 8, "anchors": 1, "near": 4,
    "closest": 3, "picks": 2, "vocabulary": "cat,dog,tree", "adversarial_steps": 1, "vectors": 2, "width": 8, "finish": 1.0,
    "opening": 1, "attacks": 1,
}  # fmt: skip
CALLS = 30  # budget of an attack
SMALLEST_ATTACK = {
    "draws": 1,
    "judged": 1,
    "every": 1,
    "population": 4,
    "pairs": 2,
    "rounds": 1,
    "batch": 1,
    "tries": 1,
}
COMMANDS = ("erase", "generate", "evaluate", "bake", "export", "show")
LIMIT = 20 * 2**30  # bytes


def make(name: str, folder: Path, pixels: int) -> None:
    """A diffusers folder with the shapes of a real model and random weights, pictures of `pixels` by default."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from efface.models import HERE

    if name in LARGE:
        make_large(name, folder, pixels)
        return
    text, unet, prediction, _ = MODELS[name]
    pad = {"pad_token": "!"} if name == "sd21" else {}
    tok = CLIPTokenizer.from_pretrained(HERE / "moji" / "tokenizer", model_max_length=77, **pad)
    ids = {"bos_token_id": tok.bos_token_id, "eos_token_id": tok.eos_token_id, "pad_token_id": tok.pad_token_id}
    parts = {
        "text_encoder": lambda: CLIPTextModel(CLIPTextConfig(vocab_size=49408, max_position_embeddings=77, **text, **ids)),
        "unet": lambda: UNet2DConditionModel(
            sample_size=pixels // 8, block_out_channels=(320, 640, 1280, 1280),
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, **unet,
        ),
        "vae": lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
        ),
    }  # fmt: skip
    torch.manual_seed(0)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1,
        prediction_type=prediction,
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        **{part: build() for part, build in parts.items()}, tokenizer=tok, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder)


def make_large(name: str, folder: Path, pixels: int) -> None:
    """As `make`, for Stable Diffusion XL and 3."""
    import torch
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    from efface.models import HERE

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    toks = [
        CLIPTokenizer.from_pretrained(HERE / "moji" / "tokenizer", model_max_length=77, **pad)
        for pad in ({}, {"pad_token": "!"})
    ]
    ids = {
        "bos_token_id": toks[0].bos_token_id,
        "eos_token_id": toks[0].eos_token_id,
        "pad_token_id": toks[0].pad_token_id,
    }
    sizes = (
        {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "projection_dim": 768,
        },
        {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 20,
            "projection_dim": 1280,
        },
    )
    kinds = (CLIPTextModel if name == "sdxl" else CLIPTextModelWithProjection, CLIPTextModelWithProjection)
    texts = [
        kind(CLIPTextConfig(vocab_size=49408, max_position_embeddings=77, **size, **ids))
        for kind, size in zip(kinds, sizes, strict=True)
    ]
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(128, 256, 512, 512),
        layers_per_block=2, latent_channels=4 if name == "sdxl" else 16, sample_size=1024, shift_factor=0.0, scaling_factor=1.0,
    )  # fmt: skip
    if name == "sdxl":
        unet = UNet2DConditionModel(
            sample_size=pixels // 8, block_out_channels=(320, 640, 1280), layers_per_block=2, attention_head_dim=(5, 10, 20),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=2048,
            addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
            use_linear_projection=True, transformer_layers_per_block=(1, 2, 10),
        )  # fmt: skip
        scheduler = EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        )
        StableDiffusionXLPipeline(vae, *texts, *toks, unet, scheduler, add_watermarker=False).save_pretrained(folder)
        return
    net = SD3Transformer2DModel(
        sample_size=pixels // 8, num_layers=24, attention_head_dim=64, num_attention_heads=24, joint_attention_dim=4096,
        caption_projection_dim=1536, pooled_projection_dim=2048, pos_embed_max_size=192,
    )  # fmt: skip
    StableDiffusion3Pipeline(
        net, FlowMatchEulerDiscreteScheduler(shift=3.0), vae, texts[0], toks[0], texts[1], toks[1], None, None
    ).save_pretrained(folder)


def judge(folder: Path) -> Path:
    """A classifier with random weights: someone must look at the pictures."""
    from transformers import ResNetConfig, ResNetForImageClassification

    if not folder.exists():
        labels = {0: "tiger", 1: "cat", 2: "car"}
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], id2label=labels, num_labels=3)
        ResNetForImageClassification(config).save_pretrained(folder)
    return folder


def evaluate(model: Path, edit: Path, folder: Path, name: str) -> None:
    """Three cells, drawn in one step by the unedited and the edited model, and judged."""
    from efface.benchmarks.run import evaluate as measure
    from efface.benchmarks.spec import Benchmark, Cell, Judge, Sampler, Task
    from efface.core.concept import Concept
    from efface.core.denoiser import Denoiser, load
    from efface.core.edit import load_edit

    Denoiser.batch_size = len(WANTED)  # pyright: ignore; a batch is filled up with copies, which here would be most of the time
    cells = tuple(Cell(role, name, f"a {name}", i) for i, (role, name) in enumerate(WANTED))
    task = Task("tiger", (Concept("tiger", "cat"),), cells=cells)
    judges = {"concept": Judge(f"classifier:{judge(folder.parent / 'judge')}", ("top1",))}
    wanted = Benchmark("real-size", "three cells", "", lambda _: [task], judges, Sampler(steps=1))
    base = load(str(model), dtype=(dtype_of(name) or ["", "float32"])[1])
    rows = measure(base, {"edit": load_edit(edit)}, task, wanted, folder)
    failed = [row["error"] for row in rows if row["value"] is None]
    if len(rows) != 6 or failed:
        raise SystemExit(f"evaluate: {len(rows)} rows, failed: {failed}")


def attack(model: Path, edit: Path, name: str, folder: Path) -> None:
    """One attack at its smallest setting on an edited model, one prompt and one picture; what it found is written, read and drawn."""
    from efface.attacks import REGISTRY
    from efface.attacks.base import Goal
    from efface.core.attempt import Drawing, draw, load_attempt
    from efface.core.concept import Concept
    from efface.core.denoiser import load
    from efface.core.edit import load_edit

    base, one = load(str(model)), load_edit(edit)
    own, given = REGISTRY.settings(name)
    known = {f.name for f in REGISTRY.declarations(own).__dataclass_fields__.values()}
    wanted = REGISTRY.make(name, **{k: v for k, v in SMALLEST_ATTACK.items() if k in known and k not in given})
    goal = Goal(
        Concept("tiger", "cat"), ("a tiger",), base, (1,), Drawing(steps=2), ("panthera tigris",), ("an orange striped cat",), ("lion",),
        ("car",), one,
    )  # fmt: skip
    target = one(base)
    if reason := wanted.applies(target, goal):
        raise SystemExit(f"{name}: {reason}")
    found = wanted.find(target, goal, CALLS)
    last = [marks[max(marks)][0] for marks in found.attempts.values()][-1]
    last.save(folder)
    again = load_attempt(folder)
    draw(again.on(target, base), [again], [3], Drawing(steps=1))
    print(f"{found.calls} calls, {found.texts} prompts, {folder.stat().st_size / 1e6:.1f} MB")


WANTED = (("erase", "tiger"), ("neighbour", "cat"), ("distant", "car"))


def flags(method: str, work: Path) -> list[str]:
    """A method's smallest setting as flags of `efface erase`."""
    from efface.core.params import fields
    from efface.erasers import find

    known = {f.name for f in fields(find(method))}
    given = {name: value for name, value in SMALLEST.items() if name in known}
    if method == "debias":
        given |= {"attributes": "cat,car", "classifier": f"classifier:{judge(work / 'judge')}"}
    return [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]


def dtype_of(model: str) -> list[str]:
    """The flag of a model that is loaded in bfloat16."""
    return ["--dtype", "bfloat16"] if model in LARGE else []


def measured(command: list[str]) -> dict[str, float | str]:
    """Run a command as a process: seconds, bytes resident at its height, and what it says where it fails."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    row: dict[str, float | str] = {
        "said": said.strip().splitlines()[-1] if said.strip() else "",
        "seconds": time.perf_counter() - started,
        "bytes": usage.ru_maxrss * 1024.0,
        "code": process.returncode,
    }
    if process.returncode:
        lines = [line for line in said.splitlines() if line.startswith("efface:")] or said.strip().splitlines()[-3:]
        row["said"] = " ".join(lines)
    return row


def asked(*words: object) -> str:
    """What a step of this script prints in a process of its own.

    A command's peak memory starts at that of the process which starts it, so that this one imports nothing heavy.
    """
    done = subprocess.run([sys.executable, __file__, *map(str, words)], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def run(model: str, method: str, settings: list[str], work: Path, pixels: int) -> dict[str, dict[str, float | str]]:
    """All commands for one method, until one fails that the next ones need."""
    folder, edit = work / f"{model}-{pixels}", work / f"{model}-{method}.safetensors"
    efface, on = [sys.executable, "-m", "efface"], ["--model", str(folder), *dtype_of(model)]
    baked, exported, picture = (work / f"{model}-{method}{end}" for end in ("-baked", "-lora.safetensors", ".png"))
    commands = {
        "erase": [*efface, "erase", "tiger", "--method", method, "--to", "cat", *on, "-o", str(edit), *settings],
        "generate": [*efface, "generate", "a tiger", "--edit", str(edit), *on, "-n", "1", "--steps", "1", "-o", str(picture)],
        "evaluate": [sys.executable, __file__, "--evaluate", str(folder), str(edit), str(work / f"{model}-{method}-run"), model],
        "bake": [*efface, "bake", str(edit), *on, "-o", str(baked)],
        "export": [*efface, "export", str(edit), *on, "-o", str(exported), "--rank", "4"],
        "show": [*efface, "show", str(edit)],
    }  # fmt: skip
    rows = {}
    for name, command in commands.items():
        rows[name] = measured(command)
        print(f"{model} {method} {name}: {rows[name]}", flush=True)
        if name == "erase" and rows[name]["code"]:
            break
    for path in work.glob(f"{model}-{method}*"):
        subprocess.run(["rm", "-rf", str(path)], check=True)
    return rows


def run_attacks(model: str, work: Path, pixels: int) -> dict[str, dict[str, float | str]]:
    """Every attack on an edit of UCE, and presets that do something else."""
    folder, edit = work / f"{model}-{pixels}", work / f"{model}-attacked.safetensors"
    efface = [sys.executable, "-m", "efface"]
    measured([*efface, "erase", "tiger", "--method", "uce", "--to", "cat", "--model", str(folder), "-o", str(edit)])
    rows = {}
    for name in json.loads(asked("--attack-names", "all")):
        file = work / f"{model}-{name}.attempt.safetensors"
        rows[name] = measured([sys.executable, __file__, "--attack", str(folder), str(edit), name, str(file)])
        print(f"{model} {name}: {rows[name]}", flush=True)
        file.unlink(missing_ok=True)
    edit.unlink(missing_ok=True)
    return rows


def shown(row: dict[str, float | str] | None) -> str:
    """Seconds and memory, or that the command refused, or failed."""
    if row is None:
        return "–"
    if row["code"] == 2:
        return "refused"
    return f"{row['seconds']:.0f} s, {float(row['bytes']) / 2**30:.1f} GiB" if not row["code"] else "**failed**"


def page(found: dict[str, dict[str, dict[str, float | str]]]) -> str:
    """docs/real-size.md."""
    text = [
        "# At the size of a real model", "",
        "Every method at its smallest setting on folders of Stable Diffusion 1.4's and 2.1's exact shapes in float32, and some on XL's and "
        "3's (medium, without T5) in bfloat16, random weights, on "
        f"{os.cpu_count()} CPU cores without a GPU: wall-clock seconds and peak memory of each command, loading the model "
        "included; seconds are upper bounds where other work ran at the same time. "
        "\"refused\": the command says in one sentence why this kind of edit cannot be baked or exported.", "",
    ]  # fmt: skip
    for key in sorted({k.rsplit("/", 1)[0] for k in found}):
        model, pixels = key.split("@")
        text += [
            f"## {model}, pictures of {pixels} pixels",
            "",
            f"| method | {' | '.join(COMMANDS)} |",
            f"|---{'|---' * len(COMMANDS)}|",
        ]
        refusals: dict[str, list[str]] = {}
        here = {k.rsplit("/", 1)[1]: r for k, r in found.items() if k.startswith(f"{key}/")}
        attacks = here.pop("attacks", {})
        for name, rows in here.items():
            text.append(f"| {name} | {' | '.join(shown(rows.get(command)) for command in COMMANDS)} |")
            for command, row in rows.items():
                if row["code"]:
                    refusals.setdefault(str(row["said"]).replace(str(name), "METHOD"), []).append(f"{name} {command}")
        text += ["", *(f"- {', '.join(who)}: {said}" for said, who in refusals.items()), ""]
        if attacks:
            text += [
                f"Attacks on UCE's edit at their smallest setting, one prompt, at most {CALLS} calls of the denoiser, loading included:",
                "",
                "| attack | time and peak memory | search and file |", "|---|---|---|",
                *(f"| {name} | {shown(row)} | {row['said']} |" for name, row in attacks.items()), "",
            ]  # fmt: skip
    text += ["Made by `benchmarks/real_size.py`."]
    return "\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--methods", default="", help="all, if not given")
    parser.add_argument("--pixels", type=int, default=128, help="0: the model's own")
    parser.add_argument(
        "--work", type=Path, default=Path("real-size"), help="folder for models and results, some 10 GB"
    )
    parser.add_argument("--output", type=Path, default=Path("docs/real-size.md"))
    parser.add_argument("--attacks", action="store_true", help="try every attack as well")
    steps = {"--evaluate": 4, "--make": 3, "--plan": 1, "--attack": 4, "--attack-names": 1}  # in processes of their own
    for step, words in steps.items():
        parser.add_argument(step, nargs=words, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.evaluate:
        evaluate(*map(Path, given.evaluate[:3]), given.evaluate[3])
    elif given.attack:
        attack(Path(given.attack[0]), Path(given.attack[1]), given.attack[2], Path(given.attack[3]))
    elif given.attack_names:
        from efface.attacks import REGISTRY

        print(
            json.dumps(
                [n for n in REGISTRY.names() if not n.endswith(("-control", "-released", "-linf", "-universal"))]
            )
        )
    elif given.make:
        make(given.make[0], Path(given.make[1]), int(given.make[2]))
    elif given.plan:
        from efface.erasers import TABLE

        print(json.dumps({method: flags(method, Path(given.plan[0])) for method in TABLE}))
    else:
        sweep(given)


def keep(found: dict[str, dict[str, dict[str, float | str]]], kept: Path, output: Path) -> None:
    """Write what was found so far, and the page."""
    kept.with_suffix(".part").write_text(json.dumps(found, indent=1))
    kept.with_suffix(".part").replace(kept)
    output.write_text(page(found))


def sweep(given: argparse.Namespace) -> None:
    """Every method on every model; what is in results.json is not run again."""
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    kept = given.work / "results.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    given.work.mkdir(parents=True, exist_ok=True)
    settings = json.loads(asked("--plan", given.work))
    for model in given.models.split(","):
        pixels = given.pixels or (1024 if model in LARGE else MODELS[model][3])
        if not (folder := given.work / f"{model}-{pixels}").exists():
            asked("--make", model, folder, pixels)
        for method in given.methods.split(",") if given.methods else settings:
            if (key := f"{model}@{pixels}/{method}") not in found:
                found[key] = run(model, method, settings[method], given.work, pixels)
                keep(found, kept, given.output)
        if given.attacks and (key := f"{model}@{pixels}/attacks") not in found:
            found[key] = run_attacks(model, given.work, pixels)
            keep(found, kept, given.output)
    broken = [f"{key} {name}" for key, rows in found.items() for name, row in rows.items() if row["code"] not in (0, 2)]
    print(f"{given.output}: {len(found)} rows; broken: {', '.join(broken) or 'none'}")


if __name__ == "__main__":
    main()
