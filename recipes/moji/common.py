"""What every stage of Moji's recipe shares: where things lie, the renderings, captions, and checkpoints."""

import json
import os
import random
import time
import tomllib
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

HERE = Path(__file__).parent
WORK = Path(os.environ.get("MOJI_WORK", Path.home() / ".cache" / "efface" / "recipe-moji"))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE, ICON = 64, 56  # a picture, and the square inside it that a drawing fills, in pixels
VOCABULARY = tomllib.loads((HERE / "vocabulary.toml").read_text())
STYLES = list(VOCABULARY["styles"])
BACKGROUNDS = VOCABULARY["backgrounds"]


class Renderings:
    """Every (concept, style) drawing: `rgba` (n 4 64 64) uint8, `concept` and `style` (n) indices, `concepts` records."""

    def __init__(self):
        data = load_file(WORK / "data.safetensors")
        self.rgba, self.concept, self.style = data["rgba"], data["concept"], data["style"]
        self.concepts = json.loads((WORK / "concepts.json").read_text())["concepts"]

    def __len__(self):
        return len(self.rgba)

    def on(self, index: Tensor, colour: Tensor) -> Tensor:
        """Drawings `index` (b) over plain `colour` (b 3) in 0..255, as (b 3 64 64) in -1..1."""
        return composite(self.rgba[index].float(), colour[:, :, None, None])


def composite(rgba: Tensor, background: Tensor) -> Tensor:
    alpha = rgba[:, 3:] / 255
    return (rgba[:, :3] * alpha + background * (1 - alpha)) / 127.5 - 1


def article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def caption(concept: dict, style: str, background: str, rng: random.Random, plain: float = 0.4) -> str:
    """One of many ways to describe a drawing: always true, often incomplete, empty one time in ten.

    With probability `plain` it is the plain form with its style, which is what benchmarks ask for and what teaches most.
    """
    if rng.random() < 0.1:
        return ""
    on = f" on a {background} background" if rng.random() < 0.5 else ""
    if rng.random() < plain:
        return f"{article(concept['name'])} in {style} style{on}"
    pick, implicit = rng.random(), concept["implicit"]
    if pick < 0.35:
        name = article(rng.choice([concept["name"], *concept["synonyms"]]))
    elif pick < 0.6 and len(implicit) >= 2:
        name = " ".join(rng.sample(implicit, min(len(implicit), rng.randint(2, 3))))
    elif pick < 0.95:
        form = rng.choice(["an image of {}", "a picture of {}", "a drawing of {}", "a photo of {}", "{}"])
        name = form.format(article(concept["name"]))
    else:
        name = rng.choice(["a picture", "an image", "something"])
    if rng.random() < 0.6:
        name = rng.choice(["{} in {} style", "{} in the style of {}", "{} drawn by {}"]).format(name, style)
    return name + on


def schedule(step: int, steps: int, warm: int = 100, fall: int | None = None) -> float:
    """Learning-rate factor: a linear warm-up, level, then a straight fall to zero over the last `fall` steps (default: all)."""
    return min(1.0, (step + 1) / warm) * min(1.0, max(0.0, (steps - step) / (fall or steps)))


def save_state(path: Path, step: int, tensors: dict[str, Tensor], optimizers: dict[str, torch.optim.Optimizer]) -> None:
    """Weights and optimiser moments in one safetensors file, written aside and renamed."""
    flat = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    for name, opt in optimizers.items():
        for i, slots in opt.state_dict()["state"].items():
            flat |= {f"{name}/{i}/{k}": torch.as_tensor(v).detach().cpu().clone() for k, v in slots.items()}
    part = path.with_suffix(".part")
    save_file(flat, part, metadata={"step": str(step)})
    part.replace(path)


def load_state(path: Path, tensors: dict[str, Tensor], optimizers: dict[str, torch.optim.Optimizer]) -> int:
    """The inverse of `save_state`, in place; 0 when there is no file."""
    if not path.exists():
        return 0
    flat = load_file(path)
    with torch.no_grad():
        for name, t in tensors.items():
            t.copy_(flat[name])
    for name, opt in optimizers.items():
        state: dict[int, dict] = {}
        for key in flat:
            if key.startswith(f"{name}/"):
                _, i, slot = key.split("/")
                state.setdefault(int(i), {})[slot] = flat[key]
        opt.load_state_dict({"state": state, "param_groups": opt.state_dict()["param_groups"]})
    with safe_open(path, "pt") as f:
        return int(f.metadata()["step"])


def named(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}.{k}": v for k, v in module.state_dict().items()}


class Log:
    """Prints a line now and then and appends it to `<stage>.log`: step, losses, rate, time left."""

    def __init__(self, stage: str, steps: int, start: int, every: int = 50):
        self.file, self.steps, self.start, self.every, self.t0 = WORK / f"{stage}.log", steps, start, every, time.time()

    def __call__(self, step: int, **values: float) -> None:
        if step % self.every:
            return
        rate = (step + 1 - self.start) / (time.time() - self.t0)
        line = f"step {step:6d}  {rate:6.2f}/s  {(self.steps - step) / rate / 60:5.1f} min left  "
        line += "  ".join(f"{k} {float(v):.4f}" for k, v in values.items())
        print(line, flush=True)
        with self.file.open("a") as f:
            f.write(line + "\n")
