"""Any transformers image classifier with fixed labels."""

import json
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from efface.metrics.detectors.base import Ranked, folder_of, prepared, processor, ranked, sixteens, title, version
from efface.models import HERE

SHIPPED = {f"moji-{task}": HERE / "moji" / "detectors" / task for task in ("concept", "style")}


class Classifier:
    """An image classifier from a folder or the Hub; Moji's own are "moji-concept" and "moji-style".

    A folder's preprocessor_config.json prepares pictures of any size. Without one they go in as they are, scaled to [-1, 1].
    """

    def __init__(self, name: str) -> None:
        """Load by shipped name, folder, or `owner/name`.

        Raises:
            UsageError: none of them.
        """
        from transformers import AutoModelForImageClassification

        folder = SHIPPED[name] if name in SHIPPED else folder_of(name)
        self.name = name
        self.id = f"{name if name in SHIPPED else title(name, folder)}-{version(folder)}"
        self.net = AutoModelForImageClassification.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True
        ).eval()
        self.process = processor(folder)
        self.labels: list[str] = [self.net.config.id2label[i] for i in range(self.net.config.num_labels)]

    @torch.no_grad()
    def logits(self, pictures: list[np.ndarray]) -> Float[Tensor, "b labels"]:
        """Scores of uint8 pictures (H W 3), over `labels`."""
        if self.process is None:
            x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
        else:
            x = prepared(pictures, self.process)
        return sixteens(lambda part: self.net(part).logits, x)

    def top(self, pictures: list[np.ndarray], k: int = 10) -> list[Ranked]:
        """For each picture its `k` best labels with their probabilities, best first."""
        return ranked(self.logits(pictures).softmax(1), self.labels, k)

    def rank(self, pictures: list[np.ndarray], labels: list[str]) -> list[dict[str, Any]]:
        """For each picture the place of its own label (1 = best guess) and what was seen first."""
        logits = self.logits(pictures)
        index = torch.tensor([self.labels.index(label) for label in labels])
        place = (logits > logits.gather(1, index[:, None])).sum(1) + 1
        return [{"rank": int(p), "seen": self.labels[int(i)]} for p, i in zip(place, logits.argmax(1), strict=True)]

    @property
    def card(self) -> dict[str, Any]:
        """Name and measured error on held-out drawings."""
        measured = (
            json.loads((HERE / "moji" / "card.json").read_text())["quality"]["detectors"]
            if self.name in SHIPPED
            else {}
        )
        return {"name": self.name, "held_out_top1": measured.get(self.name.removeprefix("moji-"))}
