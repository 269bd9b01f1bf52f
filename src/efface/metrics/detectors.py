"""Detectors: pictures to ranked labels. They know neither the method nor the attack that made a picture."""

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from efface.core.errors import UsageError
from efface.models import HERE


@runtime_checkable
class Detector(Protocol):
    """What judges pictures. `id` names it with its weights: scores of different ids are never mixed."""

    id: str

    def top(self, pictures: list[np.ndarray], k: int = 10) -> list[list[tuple[str, float]]]:
        """For each picture (H W 3, uint8) its `k` best labels with their probabilities, best first."""
        ...


class Classifier:
    """A transformers image classifier from a folder; Moji's own are "moji-concept" and "moji-style"."""

    def __init__(self, name: str) -> None:
        """Load by shipped name or folder.

        Raises:
            UsageError: neither of them.
        """
        from transformers import AutoModelForImageClassification

        shipped = {f"moji-{task}": HERE / "moji" / "detectors" / task for task in ("concept", "style")}
        folder = shipped.get(name, Path(name))
        if not (folder / "config.json").is_file():
            raise UsageError(
                f"detector: {name!r} is neither shipped ({', '.join(shipped)}) nor a transformers folder; give one of them"
            )
        self.name = name
        weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        self.id = f"{name}-{weights[:8]}" if name in shipped else f"{folder.name}-{weights[:8]}"
        self.net = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
        self.labels: list[str] = [self.net.config.id2label[i] for i in range(self.net.config.num_labels)]

    @torch.no_grad()
    def logits(self, pictures: list[np.ndarray]) -> Float[Tensor, "b labels"]:
        """Scores of uint8 pictures (H W 3), over `labels`; always sixteen at a time, so that the rest never matters to a bit."""
        x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
        full = torch.cat([x, x[-1:].expand(-len(x) % 16, -1, -1, -1)])
        return torch.cat([self.net(part).logits for part in full.split(16)])[: len(x)]

    def top(self, pictures: list[np.ndarray], k: int = 10) -> list[list[tuple[str, float]]]:
        """For each picture its `k` best labels with their probabilities, best first."""
        best = self.logits(pictures).softmax(1).topk(min(k, len(self.labels)), dim=1)
        return [
            [(self.labels[i], round(p, 6)) for i, p in zip(index, values, strict=True)]
            for index, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

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
            if self.name.startswith("moji-")
            else {}
        )
        return {"name": self.name, "held_out_top1": measured.get(self.name.removeprefix("moji-"))}
