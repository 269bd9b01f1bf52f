"""A classifier in an ONNX file, from any training framework."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from efface.core.errors import UsageError
from efface.metrics.detectors.base import BATCH, Ranked, digest, ranked


class OnnxFile:
    """One picture input (b 3 h w) or (b h w 3), float32; one output of logits (b labels).

    Pictures are resized to h x w (bilinear) and scaled to [0, 1], then (x - mean) / std if the file's metadata have "mean" and
    "std", three numbers with commas. Labels are the lines of FILE.txt, or of "labels" in the metadata.
    """

    def __init__(self, file: str) -> None:
        """Open it for the CPU.

        Raises:
            UsageError: onnxruntime is not installed, the file cannot be opened, or it is no such classifier.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise UsageError("ONNX detector: onnxruntime is not installed; pip install 'efface[detectors]'") from error

        path = Path(file)
        if not path.is_file():
            raise UsageError(f"detector: expected an ONNX file, got {file!r}, which does not exist; give its path")
        weights = path.read_bytes()
        try:
            self.session = onnxruntime.InferenceSession(weights, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class for each cause and no common one
            raise UsageError(f"detector: {file!r} cannot be opened as ONNX: {error}; export it again") from error
        extra = self.session.get_modelmeta().custom_metadata_map
        labels_file = path.with_suffix(".txt")
        text = labels_file.read_text(encoding="utf-8") if labels_file.is_file() else extra.get("labels", "")
        self.labels = [line.strip() for line in text.strip().splitlines()]
        (given, *others), out = self.session.get_inputs(), self.session.get_outputs()[0]
        shape = given.shape
        self.last = len(shape) == 4 and shape[3] == 3
        height, width = (shape[1:3] if self.last else shape[2:]) if len(shape) == 4 else (None, None)
        if others or given.type != "tensor(float)" or not (isinstance(height, int) and isinstance(width, int)):
            raise UsageError(
                f"detector: expected one float32 input of fixed height and width, got {given.type} {shape} in {file!r}; export it so"
            )
        self.name, self.size = given.name, (width, height)
        self.batch = shape[0] if isinstance(shape[0], int) else BATCH
        if out.shape[-1] != len(self.labels):
            raise UsageError(
                f"detector: {file!r} gives {out.shape[-1]} scores for {len(self.labels)} labels; "
                f"write them to {labels_file.name}, one a line"
            )
        self.mean, self.std = (_three(extra.get(key), default) for key, default in (("mean", 0.0), ("std", 1.0)))
        self.id = f"onnx-{path.stem}-{digest([weights, text.encode()])}"

    def logits(self, pictures: list[np.ndarray]) -> Float[Tensor, "b labels"]:
        """Scores of uint8 pictures (H W 3), in batches of fixed size, so that a picture's scores do not depend on the others."""
        x = np.stack([self._prepared(p) for p in pictures])
        full = np.concatenate([x, x[-1:].repeat(-len(x) % self.batch, 0)])
        parts = [full[i : i + self.batch] for i in range(0, len(full), self.batch)]
        out = np.concatenate([np.asarray(self.session.run(None, {self.name: part})[0]) for part in parts])
        return torch.from_numpy(out[: len(x)])

    def top(self, pictures: list[np.ndarray], k: int = 10) -> list[Ranked]:
        """For each picture its `k` best labels with their probabilities, best first."""
        return ranked(self.logits(pictures).softmax(1), self.labels, k)

    def _prepared(self, picture: np.ndarray) -> np.ndarray:
        from PIL import Image

        resized = Image.fromarray(picture).resize(self.size, Image.Resampling.BILINEAR)
        x = (np.asarray(resized, dtype=np.float32) / 255 - self.mean) / self.std
        return x if self.last else x.transpose(2, 0, 1)


def _three(text: str | None, default: float) -> np.ndarray:
    return np.array([float(v) for v in text.split(",")] if text else [default] * 3, dtype=np.float32)
