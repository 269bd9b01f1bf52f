"""Shared code of detectors: the protocol, batching that does not change results, ranked labels, ids from weights."""

import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from efface.core.errors import UsageError

BATCH = 16  # pictures a network is given at once, always
Ranked = list[tuple[str, float]]


@runtime_checkable
class Detector(Protocol):
    """A classifier or detector of pictures. `id` identifies it with its weights: scores of different ids are never mixed."""

    id: str

    def top(self, pictures: list[np.ndarray], k: int = 10) -> list[Ranked]:
        """For each picture (H W 3, uint8) its `k` best labels with their scores, best first."""
        ...


def sixteens(net: Callable[[Tensor], Tensor], x: Float[Tensor, "b ..."]) -> Float[Tensor, "b out"]:
    """Run `net` on batches of exactly sixteen rows, padded with the last row, so that a row's result does not depend on the others."""
    full = torch.cat([x, x[-1:].expand(-len(x) % BATCH, *[-1] * (x.ndim - 1))])
    return torch.cat([net(part) for part in full.split(BATCH)])[: len(x)]


def ranked(probabilities: Float[Tensor, "b n"], labels: list[str], k: int) -> list[Ranked]:
    """For each row its `k` best labels, best first, to six digits."""
    best = probabilities.topk(min(k, len(labels)), dim=1)
    return [
        [(labels[i], round(p, 6)) for i, p in zip(index, values, strict=True)]
        for index, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def digest(parts: Iterable[bytes]) -> str:
    """Eight hexadecimal digits (SHA-256) of all that a detector's scores depend on."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()[:8]


def folder_of(name: str) -> Path:
    """The folder of a transformers model: a local one as it is, `owner/name` from the Hub or its cache.

    Raises:
        UsageError: neither of them, or it holds no safetensors: nothing is unpickled.
    """
    folder = Path(name)
    if not folder.is_dir() and re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.txt", "model*.safetensors"]))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise UsageError(
                f"detector: {name!r} is not a folder and cannot be loaded from the Hub; give a folder or check the name"
            ) from error
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"detector: expected a transformers folder, got {name!r} without config.json; give one, or owner/name"
        )
    if not weights_of(folder):
        raise UsageError(
            f"detector: expected model.safetensors in {name!r}, got none; save the model with save_pretrained and give that folder"
        )
    return folder


def title(name: str, folder: Path) -> str:
    """The name of a model in an id: its Hub name, or the last part of a local folder's path."""
    return folder.name if Path(name).is_dir() else name


def weights_of(folder: Path) -> list[Path]:
    """The files of the weights, one or several shards."""
    return sorted(folder.glob("model*.safetensors"))


def version(folder: Path) -> str:
    """Digest of the weights and, where there is one, of the recipe that prepares pictures."""
    return digest(f.read_bytes() for f in [*weights_of(folder), *_recipes(folder)])


def processor(folder: Path) -> Any:
    """The model's own image processor, None if the folder has none; the PIL version, so results do not depend on torchvision."""
    if not _recipes(folder):
        return None
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)


def _recipes(folder: Path) -> list[Path]:
    """How pictures are prepared: one file or the other, by the age of the transformers that wrote it."""
    return [f for f in (folder / "preprocessor_config.json", folder / "processor_config.json") if f.is_file()]


def prepared(pictures: list[np.ndarray], process: Any) -> Float[Tensor, "b 3 h w"]:
    """Pictures of any size resized, cropped and normalised by the processor."""
    return torch.cat([process(images=[p], return_tensors="pt")["pixel_values"] for p in pictures])
