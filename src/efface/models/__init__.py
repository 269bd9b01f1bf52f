"""The models that ship with efface; `resolve` turns a model's name into a folder or Hub id for diffusers."""

import re
from pathlib import Path

from efface.core.errors import UsageError, nearest
from efface.core.files import from_json

HERE = Path(__file__).parent
SHIPPED = ("moji", "moji3")
FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")  # a single file is not a diffusers pipeline


def resolve(name: str) -> str:
    """A shipped model's folder, a local folder, or a Hub id (`owner/name`), as diffusers takes it.

    Raises:
        UsageError: neither of them, or a folder that is not a text-to-image pipeline.
    """
    if name in SHIPPED:
        return str(HERE / name)
    folder = Path(name)
    if folder.is_dir():
        from efface.core.families import PIPELINES  # heavy: only where there is a folder to load

        if (kind := _pipeline(folder)) not in PIPELINES:
            raise UsageError(
                f"model: expected a text-to-image pipeline ({', '.join(PIPELINES)}), got {kind!r} in {name!r}; give another model"
            )
        return name
    if folder.is_file():
        pickled = "" if folder.suffix == ".safetensors" else ", and a pickle, which can run code"
        raise UsageError(
            f"model: expected a diffusers folder, got one file in {name!r}{pickled}; if it is a whole checkpoint, convert it with "
            "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER), and give the folder"
        )
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith(".") and folder.suffix not in FILES:
        beside = sorted(str(index.parent) for index in folder.parent.glob("*/model_index.json"))
        if beside:  # other pipelines are in the parent folder: the name is mistyped, not a Hub id
            raise UsageError(f"model: no folder {name!r}; {nearest(name, beside)}")
        return name
    if "/" in name or "\\" in name or name.startswith((".", "~")):
        what = "file" if folder.suffix in FILES else "folder"
        raise UsageError(f"model: the {what} {name!r} does not exist; give the folder of a diffusers pipeline")
    raise UsageError(
        f"model: {name!r} is neither a folder nor a Hub id; give {', '.join(SHIPPED)}, a diffusers folder, or owner/name"
    )


def _pipeline(folder: Path) -> object:
    """The pipeline class in a folder's model_index.json."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise UsageError(
            f"model: expected model_index.json in {str(folder)!r}, got none; give the folder of a diffusers pipeline"
        )
    try:
        config = from_json(index.read_bytes())
    except ValueError as error:
        raise UsageError(f"model: {str(index)!r} is damaged ({error}); copy the pipeline's folder again") from error
    if not isinstance(config, dict):
        raise UsageError(
            f"model: expected a JSON object in {str(index)!r}, got another value; copy the pipeline's folder again"
        )
    return config.get("_class_name", "")


def absent(source: str) -> dict[str, None]:
    """The components that a folder's model_index.json says it has not, as arguments for diffusers, which wants to be told for some."""
    index = Path(source) / "model_index.json"
    return {k: None for k, v in from_json(index.read_bytes()).items() if v == [None, None]} if index.is_file() else {}
