"""The picture sheet that ships with Moji, cut up and labelled by hand."""

import numpy as np
from PIL import Image

from efface.models import HERE

THINGS = (
    "tiger", "lion", "cat", "dog", "rose", "apple", "car", "guitar", "castle", "santa", "robot", "ghost", "beer", "dagger",
)  # fmt: skip
STYLES = ("noto", "twemoji", "fluent", "contrast", "emojione", "blob")


def sheet() -> list[tuple[str, str, np.ndarray]]:
    """Thing, style and picture (64 64 3, uint8), row by row."""
    pixels = np.asarray(Image.open(HERE / "moji" / "samples.png").convert("RGB"))
    return [
        (thing, style, pixels[64 * i : 64 * i + 64, 64 * j : 64 * j + 64])
        for i, style in enumerate(STYLES)
        for j, thing in enumerate(THINGS)
    ]
