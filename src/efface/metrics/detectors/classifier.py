"""Any transformers image classifier with fixed labels."""

import json
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from efface.core.errors import UsageError
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
from efface.models import HERE

SHIPPED = {f"moji-{task}": HERE / "moji" / "detectors" / task for task in ("concept", "style")}
SIZE = 64  # pixels of the pictures that the shipped ones were trained on


class Classifier:
    """An image classifier from a folder or the Hub; Moji's own are "moji-concept" and "moji-style".

    A folder's preprocessor_config.json prepares pictures of any size. Without one they go in as they are, scaled to [-1, 1]. Moji's
    were trained on 64 pixels and refuse others. `id` covers weights, preparation and labels (the shipped ones' labels are fixed).
    """

    def __init__(self, name: str) -> None:
        """Load by shipped name, folder, or `owner/name`.

        Raises:
            UsageError: none of them.
        """
        from transformers import AutoModelForImageClassification

        folder = SHIPPED[name] if name in SHIPPED else folder_of(name)
        self.name = name
        self.net = AutoModelForImageClassification.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True
        ).eval()
        self.process = processor(folder)
        self.labels: list[str] = [self.net.config.id2label[i] for i in range(self.net.config.num_labels)]
        self.id = f"{name}-{version(folder)}"
        if name not in SHIPPED:
            said = digest([version(folder).encode(), json.dumps(self.labels).encode()])
            self.id = f"{title(name, folder)}-{said}"

    @torch.no_grad()
    def logits(self, pictures: list[np.ndarray]) -> Float[Tensor, "b labels"]:
        """Scores of uint8 pictures (H W 3), over `labels`.

        Raises:
            UsageError: pictures of another size than Moji's detectors were trained on.
        """
        if self.name in SHIPPED and (other := next((p.shape for p in pictures if p.shape[:2] != (SIZE, SIZE)), None)):
            raise UsageError(
                f"detector {self.name}: expected pictures of {SIZE} x {SIZE} pixels, got {other[1]} x {other[0]}; "
                "it knows Moji's drawings only: give another detector (classifier:, clip:) for another model's pictures"
            )
        return sixteens(lambda part: self.net(part).logits, self.prepare(pictures))

    def prepare(self, pictures: list[np.ndarray]) -> Float[Tensor, "b 3 h w"]:
        """Pictures preprocessed for the network."""
        if self.process is None:
            return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
        return prepared(pictures, self.process)

    def top(self, pictures: list[np.ndarray], k: int = 10) -> list[Ranked]:
        """For each picture its `k` best labels with their probabilities, best first."""
        return ranked(self.logits(pictures).softmax(1), self.labels, k)

    def rank(self, pictures: list[np.ndarray], labels: list[str]) -> list[dict[str, Any]]:
        """For each picture the rank of its own label (1 = best guess) and the detector's best guess."""
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
