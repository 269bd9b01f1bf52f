"""The models that ship with efface, and how a name becomes something diffusers can load."""

import json
import re
from pathlib import Path

from efface.core.errors import UsageError

HERE = Path(__file__).parent
SHIPPED = ("moji",)
FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")  # one file is no diffusers pipeline


def resolve(name: str) -> str:
    """A shipped model's folder, a local folder, or a Hub id (`owner/name`), as diffusers takes it.

    Raises:
        UsageError: neither of them, or a folder that holds no diffusers pipeline.
    """
    if name in SHIPPED:
        return str(HERE / name)
    folder = Path(name)
    if folder.is_dir():
        index = folder / "model_index.json"
        if not index.is_file():
            raise UsageError(
                f"model: {name!r} holds no model_index.json, so it is no diffusers pipeline; give the pipeline's folder"
            )
        kind = json.loads(index.read_text()).get("_class_name", "")
        if kind != "StableDiffusionPipeline":
            raise UsageError(
                f"model: expected a text-to-image StableDiffusionPipeline, got {kind!r} in {name!r}; give another model"
            )
        return name
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith((".", "/")) and folder.suffix not in FILES:
        return name
    raise UsageError(
        f"model: {name!r} is no folder and no Hub id; give {', '.join(SHIPPED)}, a diffusers folder, or owner/name"
    )
