"""Masks of a concept in pictures, from files or from CLIPSeg, a text-guided segmentation model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from efface.core.errors import EffaceError, UsageError

MEAN, DEVIATION = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # of ImageNet, which CLIPSeg's pictures are normalised by


def read_masks(source: str, pictures: Float[Tensor, "b 3 H W"], name: str) -> Float[Tensor, "b H W"]:
    """Where each picture shows `name`: 1, elsewhere 0.

    Args:
        source: a folder of PNG or JPG masks, white on black, in the order of their names, one for each picture or one for all, in a
            subfolder called `name`, in small letters, if there is one; or a CLIPSeg model's folder or Hub id.
        pictures: in [0, 1].
        name: the concept.

    Raises:
        UsageError: no such folder or model, another number of masks, another size, or nothing found.
        EffaceError: a mask cannot be read.
    """
    folder = Path(source)
    found = _read(folder, pictures, name) if _holds_files(folder) else _segment(source, pictures, name)
    if not found.any():
        raise UsageError(
            f"masks: expected masks that show {name!r}, got {len(pictures)} empty ones from {source}; give others, or 'attention'"
        )
    return found.expand(pictures[:, 0].shape).to(pictures)


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and not (folder / "config.json").exists()


def _read(folder: Path, pictures: Tensor, name: str) -> Tensor:
    mine, size = folder / " ".join(name.lower().split()), pictures.shape[2:]
    place = mine if mine.is_dir() else folder
    files = sorted(f for f in place.iterdir() if f.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if len(files) not in (1, len(pictures)):
        raise UsageError(
            f"masks: expected 1 or {len(pictures)} PNG or JPG files in {place}, got {len(files)}; "
            "put one there for each picture, or one for all"
        )
    return torch.stack([torch.from_numpy(_open(file, size)) for file in files])


def _open(file: Path, size: Sequence[int]) -> np.ndarray:
    try:
        grey = np.asarray(Image.open(file).convert("L"))
    except (UnidentifiedImageError, OSError) as error:
        raise EffaceError(f"masks: {file} cannot be read as a picture ({error}); make it again") from error
    if grey.shape != tuple(size):
        raise UsageError(
            f"masks: expected {size[1]} x {size[0]} pixels, got {grey.shape[1]} x {grey.shape[0]} in {file}; "
            "scale it to the pictures' size"
        )
    return grey > 127


@torch.no_grad()
def _segment(source: str, pictures: Tensor, name: str) -> Tensor:
    from transformers import AutoTokenizer, CLIPSegForImageSegmentation  # noqa: PLC0415  # seconds to import

    try:
        model = CLIPSegForImageSegmentation.from_pretrained(source).eval()
        words = AutoTokenizer.from_pretrained(source)([name] * len(pictures), return_tensors="pt", truncation=True)
    except Exception as error:  # transformers raises a dozen kinds; each becomes one sentence
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"masks: expected 'attention', a folder of masks or a CLIPSeg model, got {source!r} ({first}); give one of them"
        ) from error
    vision: Any = model.config.vision_config
    side, mean, deviation = (
        int(vision.image_size),
        *(torch.tensor(v).view(3, 1, 1) for v in (MEAN, DEVIATION)),
    )
    seen = torch.nn.functional.interpolate(pictures.float().cpu(), (side, side), mode="bilinear", antialias=True)
    logits = model(
        input_ids=words.input_ids, attention_mask=words.attention_mask, pixel_values=(seen - mean) / deviation
    ).logits
    heat = torch.nn.functional.interpolate(logits.view(-1, 1, side, side), pictures.shape[2:], mode="bilinear")
    return heat[:, 0] > 0  # a probability above one half
