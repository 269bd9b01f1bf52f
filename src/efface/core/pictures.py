"""Reads the user's picture files as tensors in the model's size."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from efface.core.errors import UsageError

KINDS = (".png", ".jpg", ".jpeg", ".webp")


def read_pictures(folder: str | Path, size: int, who: str) -> Float[Tensor, "n 3 s s"]:
    """Every picture of a folder in [0, 1], in order of file name: on white, centre-cropped to a square, resized (Lanczos).

    Args:
        folder: a folder; sub-folders and files of other types are ignored.
        size: width and height in pixels.
        who: the argument that names the folder, for messages.

    Raises:
        UsageError: not a folder, no pictures in it, or one that cannot be read.
    """
    root = Path(folder)
    files = sorted(f for f in root.iterdir() if f.suffix.lower() in KINDS) if root.is_dir() else []
    if not files:
        what = "has no pictures" if root.is_dir() else "is not a folder"
        raise UsageError(
            f"{who}: expected a folder of pictures, {str(folder)!r} {what}; give one with a PNG or JPG file"
        )
    return torch.stack([_read(f, size, who) for f in files])


def _read(file: Path, size: int, who: str) -> Float[Tensor, "3 s s"]:
    try:
        with Image.open(file) as given:
            upright = ImageOps.exif_transpose(given).convert("RGBA")
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as error:  # Pillow's words for a damaged file
        raise UsageError(f"{who}: expected pictures, {file} cannot be read as one; repair or remove it") from error
    whole = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")
    fitted = ImageOps.fit(whole, (size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(fitted).astype(np.float32) / 255).permute(2, 0, 1)
