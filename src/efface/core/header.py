"""Reads the JSON header of a file that efface wrote, without its tensors and without torch; says what another file is."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from efface.core.errors import EffaceError, UsageError
from efface.core.files import from_json

KEY = "efface"  # the metadata entry that holds an edit's header
RECIPE = "efface.recipe"  # the one that holds an exported LoRA's recipe
MERGE = "make an edit of it (efface check FILE --model MODEL -o EDIT) and give that"
FOREIGN = {  # what files of other tools are and what to do with them, by a pattern that one of their tensors' names has; first hit
    r"^lora_(unet|te\d?|transformer)_": f"a LoRA with kohya's names; {MERGE}",
    r"^base_model\.model\.": f"a LoRA of PEFT; {MERGE}",
    r"(\.lora_[AB]\.|\.lora[._](up|down)\.|\.processor\..*_lora\.)": f"a LoRA with diffusers' names; {MERGE}",
    r"^(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\.":
        "a whole checkpoint in one file; make a folder of it (diffusers: from_single_file, save_pretrained) and give that with --model",
    r"^(unet\.)?(down_blocks|up_blocks|mid_block|conv_in|single_transformer_blocks|transformer_blocks)\.":
        "weights of a denoising network; put them in a pipeline's folder and give that with --model",
    r"^(text_model|encoder|decoder|quant_conv)\.": "weights of a text encoder or an autoencoder; give the pipeline's folder with --model",
    r"^(emb_params|clip_[lg]|<.*>)$": "an embedding of textual inversion, which adds a word and erases none; give an edit",
}  # fmt: skip


def read_header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """Shapes of the tensors and JSON header of a file that efface wrote; no tensor is read.

    Raises:
        UsageError: no such file, a pickle, or a safetensors file that is not efface's.
        EffaceError: the file is damaged.
    """
    if path.is_dir():
        pipeline = (path / "model_index.json").is_file()
        what = (
            "the folder of a pipeline; give it with --model" if pipeline else "a folder; give a .safetensors file in it"
        )
        raise UsageError(f"{path}: expected an edit, which is a file, got {what}")
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give the path of a .safetensors file that efface wrote")
    try:
        with safe_open(path, "np") as f:
            metadata = f.metadata() or {}
            shapes = {k: tuple(f.get_slice(k).get_shape()) for k in f.keys()}  # noqa: SIM118
        header = from_json(metadata.get(KEY, "{}"))
    except (SafetensorError, ValueError) as error:
        with path.open("rb") as f:  # only now: a header of 128 bytes starts like a pickle
            start = f.read(2)
        if start == b"PK" or start[:1] == b"\x80":
            raise UsageError(
                f"{path}: this is a pickle (.pt, .ckpt, .bin), which can run code; efface reads safetensors only"
            ) from None
        raise EffaceError(f"{path}: damaged, or not a safetensors file ({error}); copy or make it again") from error
    if not isinstance(header, dict):
        raise EffaceError(f"{path}: damaged (its header is not a JSON object); copy or make it again")
    if KEY not in metadata:
        ours = "a LoRA that efface exported; give the edit that it was made of" if RECIPE in metadata else ""
        what = (
            ours
            or foreign(shapes)
            or f"a safetensors file without the header {KEY!r}; give one that `efface erase` wrote"
        )
        raise UsageError(f"{path}: expected an edit of efface, got {what}")
    return shapes, header


def foreign(names: Iterable[str]) -> str:
    """What a file of another tool with tensors of these names is, and what to do with it; "" if nobody knows."""
    names = list(names)
    return next((what for pattern, what in FOREIGN.items() if any(re.search(pattern, name) for name in names)), "")


def wrote(path: Path) -> str:
    """What efface wrote there: the kind of an edit, "Key", "Attempt", "LoRA" for an export, "training"; "" for anything else."""
    try:
        with safe_open(path, "np") as f:
            metadata = f.metadata() or {}
        if RECIPE in metadata:
            return "LoRA"
        header = from_json(metadata.get(KEY, "null"))
    except (SafetensorError, OSError, ValueError):
        return ""
    return str(header.get("kind", "training")) if isinstance(header, dict) else ""
