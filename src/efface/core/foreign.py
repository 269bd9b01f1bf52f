"""LoRA files of other tools as edits: kohya/sd-scripts, LECO, A1111, PEFT, diffusers old and new. Nothing is unpickled."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor, nn

from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.difference import ELSEWHERE
from efface.core.edit import Header, LowRank
from efface.core.errors import EffaceError, UsageError

# what a factor's name ends in: "down" is A (r in), "up" is B (out r), W' = W + alpha/r B A
SUFFIXES = (
    (".lora_down.weight", "down"), (".lora_up.weight", "up"), (".lora_A.weight", "down"), (".lora_B.weight", "up"),
    (".lora_A.default.weight", "down"), (".lora_B.default.weight", "up"), (".lora_linear_layer.down.weight", "down"),
    (".lora_linear_layer.up.weight", "up"), (".lora.down.weight", "down"), (".lora.up.weight", "up"), (".alpha", "alpha"),
)  # fmt: skip
OLD = re.compile(r"\.processor\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight$")  # of diffusers before 0.20
OTHERS = {  # what the names of other adapters' tensors match
    r"\.dora_scale$|lora_magnitude_vector": "DoRA", r"\.lokr_": "LoKr", r"\.hada_": "LoHa", r"\.oft_": "OFT", r"\.glora": "GLoRA",
    r"\.lora_mid": "LoCon with a core", r"\.diff(_b)?$": "weight differences beside a LoRA",
}  # fmt: skip


@dataclass(frozen=True)
class Foreign:
    """A LoRA file read for a model: the edit, the modules of the file that the model has, and those that it has not."""

    edit: LowRank
    matched: Mapping[str, str]  # the file's name of a module -> our weight's name
    unmatched: Sequence[str] = field(default_factory=tuple)


def module_names(base: Denoiser) -> dict[str, str]:
    """Every name that LoRA files have for a linear layer or convolution of the model, with our name of its weight."""
    family, found = base.family, {}
    for part, network in base.modules().items():
        component, text = family.parts[part], part.startswith("text")
        for module, layer in network.named_modules():
            if not isinstance(layer, nn.Linear | nn.Conv2d) or ".lora_" in module:
                continue
            ours, plain = f"{part}.{module}.weight", module.replace("base_layer", "").rstrip(".")
            for theirs in (plain, f"text_model.{plain}") if text else (plain,):
                names = [f"{component}.{theirs}"]
                if part == family.denoiser:
                    names += [theirs, f"base_model.model.{theirs}", f"diffusion_model.{theirs}"]
                for alias in (
                    theirs,
                    family.kohya_module(plain),
                    *(() if text or part == "t5" else family.other_names(plain)),
                ):
                    prefixes = {family.kohya.get(part, ""), f"lora_{component}"} - {""}
                    names += [f"{prefix}_{alias}".replace(".", "_") for prefix in prefixes]
                found |= dict.fromkeys(names, ours)
    return found


def read_lora(path: Path, base: Denoiser, erased: Sequence[Concept] = ()) -> Foreign:
    """A LoRA file of another tool as an edit of `base`.

    Args:
        path: a safetensors file.
        base: the model it is for.
        erased: what it claims to erase, for the edit's header.

    Raises:
        UsageError: no LoRA, an adapter of another kind (DoRA, LoKr, LoHa), or one for another model: no name fits, or a shape does not.
        EffaceError: the file is damaged.
    """
    tensors = _tensors(path)
    if other := next(
        (kind for pattern, kind in OTHERS.items() if any(re.search(pattern, name) for name in tensors)), ""
    ):
        raise UsageError(
            f"{path}: expected a LoRA, got {other}, which efface does not read; merge it into a folder, and give that"
        )
    factors: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, kind = _split(name)
        if kind:
            factors.setdefault(module, {})[kind] = tensor
    if not any({"up", "down"} <= found.keys() for found in factors.values()):
        raise UsageError(
            f"{path}: expected a LoRA, got tensors such as {next(iter(tensors), 'none')!r}; give a LoRA file"
        )
    known, matched, found = module_names(base), {}, {}
    for module, parts in factors.items():
        if module in known and {"up", "down"} <= parts.keys():
            matched[module] = known[module]
            found[known[module]] = _factors(path, known[module], parts, base)
    if not matched:
        raise UsageError(
            f"{path}: none of its {len(factors)} modules is one of this model ({base.family.name}), such as {next(iter(factors))!r}; "
            "it was made for another family: give its model with --model"
        )
    unmatched = tuple(module for module in factors if module not in matched)
    header = Header(
        ELSEWHERE, erase=tuple(erased), base=base.fingerprint, model=path.name, signature=base.signature.written(),
        notes={"matched": len(matched), "unmatched": len(unmatched)},
    )  # fmt: skip
    return Foreign(LowRank(found, header), matched, unmatched)


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as f:
            return {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors raises several kinds
        raise EffaceError(f"{path}: damaged, or not a safetensors file ({error}); copy or make it again") from error


def _split(name: str) -> tuple[str, str]:
    """The module that a tensor belongs to, and which factor it is; "" if none."""
    if old := OLD.search(name):
        layer = "to_out.0" if old[1] == "to_out" else old[1]
        return f"{name[: old.start()]}.{layer}", old[2]
    return next(((name.removesuffix(end), kind) for end, kind in SUFFIXES if name.endswith(end)), (name, ""))


def _factors(
    path: Path, name: str, parts: Mapping[str, Tensor], base: Denoiser
) -> tuple[Float[Tensor, "o r"], Float[Tensor, "r i"]]:
    """Up and down of one weight, alpha / rank included, as matrices."""
    up, down = parts["up"].float().flatten(1), parts["down"].float().flatten(1)
    (weight,) = base.params([name]).values()
    shape = (len(weight), weight[0].numel())
    if up.shape[1] != len(down) or (len(up), down.shape[1]) != shape:
        raise UsageError(
            f"{path}: expected factors of {name} for {shape[0]} x {shape[1]}, got {tuple(up.shape)} and {tuple(down.shape)}; "
            "it was made for a model of another shape: give that with --model"
        )
    alpha: Any = parts.get("alpha")
    return (1.0 if alpha is None else float(alpha) / len(down)) * up, down


def changes(edit: LowRank, base: Denoiser) -> dict[str, float]:
    """|ΔW| / |W| of each selection of weights that the edit changes (Frobenius), by its name."""
    found = {}
    weights = base.params(edit.factors)
    sizes = {k: float((up @ down).norm()) for k, (up, down) in edit.factors.items()}
    for where in ("xattn", "selfattn", "noxattn", "text"):
        names = [k for k in base.params(where) if k in weights]
        if names:
            moved, whole = (
                torch.tensor(v).norm() for v in ([sizes[k] for k in names], [float(weights[k].norm()) for k in names])
            )
            found[where] = float(edit.strength * moved / whole.clamp(min=1e-12))
    return found
