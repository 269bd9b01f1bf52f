"""CLIP as a classifier of any labels (Radford et al. 2021, arXiv:2103.00020)."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from efface.core.errors import UsageError
from efface.core.files import from_json
from efface.metrics.detectors.base import (
    Ranked,
    digest,
    folder_of,
    prepared,
    processor,
    ranked,
    sixteens,
    title,
    version,
)


class ZeroShot:
    """softmax over the labels of scale · cos(picture, template with label); scale is the model's own."""

    def __init__(self, name: str, labels: Sequence[str], template: str = "a photo of {}") -> None:
        """Load a CLIP model from a folder or `owner/name`.

        Raises:
            UsageError: no CLIP model, fewer than two labels, or a label twice: then a softmax says nothing.
        """
        from transformers import AutoTokenizer, CLIPModel

        if len(labels) < 2 or len(set(labels)) < len(labels):
            raise UsageError(
                f"detector: expected two or more different labels for CLIP, got {list(labels)}; give the concept and alternatives"
            )
        folder = folder_of(name)
        kind = from_json((folder / "config.json").read_bytes()).get("model_type")
        self.process = processor(folder)
        if kind != "clip" or self.process is None:
            raise UsageError(
                f"detector: expected a CLIP model with preprocessor_config.json, got {kind!r} in {name!r}; give a CLIP folder"
            )
        self.labels = list(labels)
        prompts = digest([json.dumps([self.labels, template]).encode()])
        self.id = f"clip-{title(name, folder)}-{version(folder)}-{prompts}"
        self.net: Any = CLIPModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
        tokens = AutoTokenizer.from_pretrained(folder)(
            [template.format(label) for label in self.labels],
            padding="max_length", truncation=True, max_length=self.net.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )  # fmt: skip
        self.text = self._text(**tokens)

    @torch.no_grad()
    def _text(self, **tokens: Tensor) -> Float[Tensor, "labels d"]:
        return _unit(self.net.get_text_features(**tokens).pooler_output)

    @torch.no_grad()
    def logits(self, pictures: list[np.ndarray]) -> Float[Tensor, "b labels"]:
        """Scale · cos of uint8 pictures (H W 3), over `labels`."""

        def net(x: Tensor) -> Tensor:
            seen = _unit(self.net.get_image_features(pixel_values=x).pooler_output)
            return self.net.logit_scale.exp() * seen @ self.text.T

        return sixteens(net, prepared(pictures, self.process))

    def top(self, pictures: list[np.ndarray], k: int = 10) -> list[Ranked]:
        """For each picture its `k` best labels with their probabilities, best first."""
        return ranked(self.logits(pictures).softmax(1), self.labels, k)


def _unit(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return x / x.norm(dim=1, keepdim=True)
