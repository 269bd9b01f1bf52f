"""Export of edits as LoRA files for other tools: what an edit adds to each matrix, as two low-rank factors.

W' = W + up down, so a LowRank edit has this form already, and a TextMap takes it exactly: W (I + s L Rᵀ) = W + (s W L) Rᵀ.
A map that follows other edits also maps what they added: (W + U D)(I + s L Rᵀ) = W + U D + s (W L + U (D L)) Rᵀ.
A Delta has full rank; its best approximation of a given rank is its truncated singular value decomposition (Eckart and Young 1936).
Biases, norms and embeddings have no such factors: "comfyui" stores the differences of those that ComfyUI reads, other formats leave
them out.
"""

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor, nn

from efface.core.denoiser import Denoiser
from efface.core.edit import Delta, Edit, Keyed, LowRank, Stack, TextMap
from efface.core.errors import UsageError, nearest
from efface.core.families import Family
from efface.core.files import replace_file, replace_folder, writable
from efface.core.header import RECIPE, wrote

FORMATS = ("diffusers", "peft", "kohya", "comfyui")
ENERGY = 0.99  # the default rank of a Delta is the smallest that keeps this share of the squared norm,
MOST = 128  # and at most this
Layers = Mapping[str, tuple[Tensor, Tensor]]  # "unet.conv_in" -> (up, down), shaped as a layer's own weights


@dataclass(frozen=True)
class Exported:
    """Result of an export: the rank, and the error of the approximation."""

    path: Path
    rank: int  # of every pair of factors in the file
    error: float  # |ΔW - file's| / |ΔW| over all weights that the edit changes, Frobenius; 0 if exact
    errors: Mapping[str, float]  # the same for each weight in the file
    left_out: tuple[str, ...] = ()  # changed weights that the file does not hold: biases, norms, embeddings


def export(
    edit: Edit,
    base: Denoiser,
    path: str | Path,
    *,
    to: str = "diffusers",
    rank: int | None = None,
    any_base: bool = False,
) -> Exported:
    """Write `edit` as a LoRA, atomically; at strength 1 the LoRA does to `base` what the edit does.

    Args:
        edit: a TextMap, LowRank, Delta or Stack of them; its strength is included.
        base: the model it was made for.
        path: a new .safetensors file, or a new folder for "peft".
        to: "diffusers" (`load_lora_weights`), "peft" (`PeftModel.from_pretrained`), "kohya" (ComfyUI, A1111, diffusers), or
            "comfyui", which is "kohya" with the differences of biases and norms.
        rank: maximum rank of each matrix's factors; None is exact, and with a Delta the smallest that keeps `ENERGY` of the squared
            norm of all matrices, at most `MOST`.
        any_base: accept weights the edit was not made for.

    Raises:
        UsageError: unknown format, wrong kind of path, another base, an edit or a weight that a LoRA cannot represent,
            or a rank out of range.
        EffaceError: it cannot be written.
    """
    path = Path(path)
    if to not in FORMATS:
        raise UsageError(f"to: unknown format {to!r}; {nearest(to, FORMATS)}")
    if to != "peft" and path.suffix != ".safetensors":
        raise UsageError(f"path: expected a name that ends in .safetensors, got {path.name!r}; {to} reads only those")
    if to != "peft":
        writable(path, lambda there: wrote(there) == "LoRA")
    edit.require(base, any_base)
    steps = _steps(edit)
    weights, others = _weights(steps, base, to)
    _check_rank(weights, rank)
    changes = {
        name: change(steps, name, w, base.reader_weights(), base.pooled_weights()) for name, w in weights.items()
    }
    edit.weights(base)  # refuses what is not finite
    if rank is None and any(isinstance(step, Delta) for step in steps):
        rank = _default_rank(changes.values())
    cuts = {name: cut(*pair, rank) for name, pair in changes.items()}
    width = max(1, *(c.up.shape[1] for c in cuts.values())) if cuts else 1
    layers = {k.removesuffix(".weight"): _shaped(c.up, c.down, weights[k].shape, width) for k, c in cuts.items()}
    plain = {name: _difference(steps, name, w) for name, w in others.items()}
    kept = {name: d for name, d in plain.items() if to == "comfyui" and _comfyui_reads(name, base.modules())}
    left = {name: float(d.norm()) for name, d in plain.items() if name not in kept}
    lost = math.hypot(*(c.lost for c in cuts.values()), *left.values())
    size = math.hypot(*(c.size for c in cuts.values()), *(float(d.norm()) for d in plain.values()))
    errors = {name: _share(c.lost, c.size) for name, c in cuts.items()} | dict.fromkeys(kept, 0.0)
    done = Exported(path, width, _share(lost, size), errors, tuple(left))
    metadata = _metadata(edit, base, done, to)
    if to == "peft":
        replace_folder(path, lambda part: _write_folder(part, layers, width, edit.header.model, metadata))
    else:
        family = base.family
        tensors = _diffusers(layers, family.parts) if to == "diffusers" else _kohya(layers, width, family)
        blob = _file(tensors | _differences(kept, family), metadata)
        replace_file(path, lambda part: part.write_bytes(blob))
    return done


# -- what an edit adds ---------------------------------------------------------------------------------------------


def _steps(edit: Edit) -> list[TextMap | Delta | LowRank]:
    """The edits of a stack in order, nested stacks included."""
    if isinstance(edit, Stack):
        return [step for part in edit.edits for step in _steps(part)]
    if isinstance(edit, TextMap | Delta | LowRank):
        return [edit]
    if isinstance(edit, Keyed) and not edit.open:
        return _steps(edit.hidden * edit.strength)
    what = "an unlocked edit" if isinstance(edit, Keyed) else type(edit).__name__
    raise UsageError(
        f"edit: expected a TextMap, LowRank, Delta or a Stack of them, got {what}, which a LoRA cannot represent; "
        "save it as efface's own file"
    )


def _weights(
    steps: Iterable[TextMap | Delta | LowRank], base: Denoiser, to: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights that change: matrices of Linear and Conv2d layers, and all others.

    Raises:
        UsageError: none that the format can hold.
    """
    weights: dict[str, Tensor] = {}
    for step in steps:
        if isinstance(step, TextMap):
            weights |= base.reader_weights() if step.left.any() else {}
            weights |= base.pooled_weights() if step.pooled is not None else {}
        elif isinstance(step, LowRank):
            weights |= base.params(step.factors)
        else:
            weights |= base.params([name for name, d in step.deltas.items() if d.any()])
    modules = base.modules()
    if to in ("kohya", "comfyui") and not base.family.kohya:
        raise UsageError(
            f"to: expected diffusers or peft for {base.family.name}, got {to!r}; ComfyUI reads the file for diffusers"
        )
    matrices = {name: w for name, w in weights.items() if _carried(name, modules)}
    others = {name: w for name, w in weights.items() if name not in matrices}
    if not matrices and not (to == "comfyui" and any(_comfyui_reads(name, modules) for name in others)):
        got = f"only {_listing(others)}" if others else "none that changes"
        raise UsageError(
            f"edit: expected weights of linear layers and convolutions, since a LoRA has no others, got {got}; "
            "bake it into the pipeline, or export biases and norms of the U-Net to 'comfyui'"
        )
    parts = dict.fromkeys(name.partition(".")[0] for name in matrices)
    if to == "peft" and len(parts) > 1:
        raise UsageError(
            f"to: expected an edit of one network, since a peft folder holds one model, got one of {' and '.join(parts)}; "
            "export to 'diffusers' or 'kohya'"
        )
    if to == "kohya":  # diffusers knows kohya's text encoder by an output projection: one that changes nothing
        for part in (p for p in parts if p.startswith("text")):
            known = (
                k for k in base.params("text") if k.startswith(f"{part}.") and k.endswith(".self_attn.out_proj.weight")
            )
            matrices |= base.params([next(known)])
    return matrices, others


def _listing(names: Collection[str]) -> str:
    return f"{next(iter(names))} ({len(names)} such)"


def _owner(name: str, modules: Mapping[str, nn.Module]) -> nn.Module:
    part, _, rest = name.partition(".")
    return modules[part].get_submodule(rest.rpartition(".")[0])


def _carried(name: str, modules: Mapping[str, nn.Module]) -> bool:
    return name.endswith(".weight") and isinstance(_owner(name, modules), nn.Linear | nn.Conv2d)


def _comfyui_reads(name: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether ComfyUI adds a difference to it: to biases and norms of the U-Net, and to biases of the text encoder's linear layers."""
    if not name.endswith((".weight", ".bias")):
        return False
    return not name.startswith("text") or (name.endswith(".bias") and isinstance(_owner(name, modules), nn.Linear))


def _check_rank(weights: Mapping[str, Tensor], rank: int | None) -> None:
    full = max((min(len(w), w[0].numel()) for w in weights.values()), default=1)
    if rank is not None and not 1 <= rank <= full:
        raise UsageError(
            f"rank: expected 1 to {full}, the most a matrix of this edit has, got {rank}; give one of them"
        )


def _default_rank(changes: Iterable[tuple[Tensor, Tensor]]) -> int:
    """The smallest rank that keeps `ENERGY` of the squared Frobenius norm of all matrices together, at most `MOST`."""
    kept, whole = torch.zeros(MOST, dtype=torch.float64), 0.0
    for up, down in changes:
        energy = torch.linalg.svdvals(up @ down).square()
        kept += nn.functional.pad(energy[:MOST], (0, max(0, MOST - len(energy)))).cumsum(0)
        whole += float(energy.sum())
    enough = (kept >= ENERGY * whole).nonzero()
    return int(enough[0]) + 1 if len(enough) else MOST


def _difference(steps: Iterable[TextMap | Delta | LowRank], name: str, weight: Tensor) -> Tensor:
    """What the edits add to a weight that is no layer's matrix, in float64; a TextMap changes none."""
    total = torch.zeros_like(weight, device="cpu", dtype=torch.float64)
    for step in steps:
        if isinstance(step, Delta) and name in step.deltas:
            _fits(name, total, tuple(step.deltas[name].shape))
            total += step.strength * step.deltas[name].cpu().double()
        if isinstance(step, LowRank) and name in step.factors:
            up, down = (f.cpu().double() for f in step.factors[name])
            total += step.strength * (up @ down).view_as(total)
    return total


def change(
    steps: Iterable[TextMap | Delta | LowRank],
    name: str,
    weight: Tensor,
    readers: Collection[str],
    pooled: Collection[str] = (),
) -> tuple[Float[Tensor, "o r"], Float[Tensor, "r i"]]:
    """Factors (up, down) of the sum of what the edits add, in order, to a weight as a matrix; exact, in float64.

    A TextMap changes the `readers` of token embeddings and those of the `pooled` vector.

    Raises:
        UsageError: the weight's shape differs from the edit's.
    """
    w = weight.detach().cpu().double().flatten(1)
    up, down = w.new_zeros(len(w), 0), w.new_zeros(0, w.shape[1])
    for step in steps:
        more = _added(step, name, w, up, down, readers, pooled)
        up, down = torch.cat([up, more[0]], 1), torch.cat([down, more[1]])
    return up, down


def _added(
    step: TextMap | Delta | LowRank,
    name: str,
    w: Tensor,
    up: Tensor,
    down: Tensor,
    readers: Collection[str],
    pooled: Collection[str],
) -> tuple[Tensor, Tensor]:
    """Factors of what one edit adds to w + up down."""
    if isinstance(step, TextMap) and name in readers:
        left, right = step.left.cpu().double(), step.right.cpu().double()
        _fits(name, w, (len(w), len(left)))
        return step.strength * (w @ left + up @ (down @ left)), right.T
    if isinstance(step, TextMap) and step.pooled is not None and name in pooled:
        left, right = (nn.functional.pad(f.cpu().double(), (0, 0, 0, w.shape[1] - len(f))) for f in step.pooled)
        return step.strength * (w @ left + up @ (down @ left)), right.T
    if isinstance(step, LowRank) and name in step.factors:
        more_up, more_down = (f.cpu().double() for f in step.factors[name])
        _fits(name, w, (len(more_up), more_down.shape[1]))
        return step.strength * more_up, more_down
    if isinstance(step, Delta) and name in step.deltas:
        delta = step.strength * step.deltas[name].cpu().double().flatten(1)
        _fits(name, w, tuple(delta.shape))
        one = torch.eye(min(w.shape), dtype=w.dtype)  # on the shorter side
        return (delta, one) if w.shape[1] <= len(w) else (one, delta)
    return w.new_zeros(len(w), 0), w.new_zeros(0, w.shape[1])


def _fits(name: str, w: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(w.shape) != shape:
        raise UsageError(
            f"edit: expected {name} of shape {shape}, this model's has {tuple(w.shape)}; give the model it was made for"
        )


@dataclass(frozen=True)
class Cut:
    """A low-rank approximation: its factors, and the Frobenius norms of its error and of the exact matrix."""

    up: Float[Tensor, "o r"]
    down: Float[Tensor, "r i"]
    lost: float
    size: float


def cut(up: Float[Tensor, "o r"], down: Float[Tensor, "r i"], rank: int | None = None) -> Cut:
    """The best approximation of up down with the given rank, by SVD; exact if the rank allows it."""
    whole = up @ down
    most = min(*whole.shape, rank or len(whole))
    if up.shape[1] <= most:
        return Cut(up, down, 0.0, float(whole.norm()))
    left, values, right = torch.linalg.svd(whole, full_matrices=False)
    root = values[:most].sqrt()  # shared between both, so that neither leaves the range of half precision
    return Cut(left[:, :most] * root, root[:, None] * right[:most], float(values[most:].norm()), float(whole.norm()))


def _share(lost: float, size: float) -> float:
    return lost / size if lost else 0.0


# -- files ---------------------------------------------------------------------------------------------------------


def _shaped(up: Tensor, down: Tensor, shape: torch.Size, width: int) -> tuple[Tensor, Tensor]:
    """Factors as layers: (out r) and (r in), or kernels (out r 1 1) and (r in h w).

    Padded with zeros to the largest rank: readers differ in how they treat ranks and alphas that vary by layer
    (diffusers 0.42 overlooks such alphas in attention), and with one rank equal to one alpha all of them scale by 1.
    """
    more = width - up.shape[1]
    up, down = nn.functional.pad(up, (0, more)), nn.functional.pad(down, (0, 0, 0, more))
    return (
        up.float().reshape(shape[0], width, *[1] * (len(shape) - 2)).contiguous(),
        down.float().reshape(width, *shape[1:]).contiguous(),
    )


def _clip(module: str) -> str:
    """A module's name in files, which have "text_model." where transformers 5 has nothing."""
    return f"text_model.{module.removeprefix('text_model.')}"


def _diffusers(layers: Layers, components: Mapping[str, str]) -> dict[str, Tensor]:
    tensors = {}
    for name, (up, down) in layers.items():
        part, _, module = name.partition(".")
        if not part.startswith("text"):
            key = f"{components[part]}.{module}"
            tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
        else:  # diffusers recognises a text encoder without attention layers by this name only
            key = f"{components[part]}.{_clip(module)}.lora_linear_layer"
            tensors |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
    return tensors


def _kohya(layers: Layers, width: int, family: Family) -> dict[str, Tensor]:
    tensors = {}
    for name, (up, down) in layers.items():
        key = _kohya_name(name, family)
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        tensors[f"{key}.alpha"] = torch.tensor(float(width))  # readers scale by alpha / rank
    return tensors


def _kohya_name(name: str, family: Family) -> str:
    part, _, module = name.partition(".")
    module = _clip(module) if part.startswith("text") else family.kohya_module(module)
    return f"{family.kohya[part]}_{module}".replace(".", "_")


def _differences(differences: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Differences as ComfyUI reads them beside LoRA factors: "diff" of a weight, "diff_b" of a bias."""
    tensors = {}
    for name, difference in differences.items():
        module, _, kind = name.rpartition(".")
        key = _kohya_name(module, family)
        tensors[f"{key}.{'diff_b' if kind == 'bias' else 'diff'}"] = difference.float()
    return tensors


def _write_folder(folder: Path, layers: Layers, width: int, model: str, metadata: Mapping[str, str]) -> None:
    modules = {name.partition(".")[2]: pair for name, pair in layers.items()}
    config = {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": model or None, "inference_mode": True,
        "r": width, "lora_alpha": width, "lora_dropout": 0.0, "bias": "none", "target_modules": list(modules),
    }  # fmt: skip
    tensors = {}
    for module, (up, down) in modules.items():
        key = f"base_model.model.{module}"
        tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "adapter_model.safetensors").write_bytes(_file(tensors, metadata))


def _file(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file whose header has the hash of the data after it, as ModelSpec requires.

    The header is written here, since safetensors varies the order of metadata: the same edit must give the same file.
    """
    bare = save(tensors)
    start = 8 + int.from_bytes(bare[:8], "little")
    digest = hashlib.sha256(bare[start:]).hexdigest()
    about = {"format": "pt", **metadata, "modelspec.hash_sha256": f"0x{digest}"}
    header = json.dumps({"__metadata__": about, **json.loads(bare[8:start])}).encode()
    header += b" " * (-len(header) % 8)  # tensors start at a multiple of eight
    return len(header).to_bytes(8, "little") + header + bare[start:]


def _metadata(edit: Edit, base: Denoiser, done: Exported, to: str) -> dict[str, str]:
    """Metadata: the entries of https://github.com/Stability-AI/ModelSpec, then efface's own."""
    header, kind = edit.header, base.family.architecture(base.pipeline)
    names = ", ".join(concept.name for concept in header.erase)
    about = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{kind}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": f"{header.method}: {names}" if names else done.path.stem,
        "modelspec.description": f"Erases {names or 'what its recipe says'} from {header.model or 'its base'}; "
        f"made with {header.method or 'efface'}; strength 1 is the edit.",
        "modelspec.resolution": f"{base.image_size}x{base.image_size}",
        "modelspec.prediction_type": {"v_prediction": "v"}.get(base.schedule.prediction, base.schedule.prediction),
        RECIPE: json.dumps(edit.record()),  # not under KEY: this file is no edit for `load_edit`
        "efface.base": base.fingerprint,
        "efface.rank": str(done.rank),
        "efface.error": str(done.error),
        "efface.left_out": str(len(done.left_out)),
    }
    if header.created:
        about["modelspec.date"] = header.created
    return about | (
        {"ss_v2": str("-v2" in kind)} if to in ("kohya", "comfyui") else {}
    )  # A1111 tells 1.x from 2.x by it
