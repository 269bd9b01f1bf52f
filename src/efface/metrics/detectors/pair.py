"""Classifies combinations of object and style, by Moji's two classifiers."""

import numpy as np

from efface.metrics.detectors.base import Ranked, ranked
from efface.metrics.detectors.classifier import Classifier


class Pair:
    """Labels are "tiger in noto style"; the score is p(object) p(style), as if the two were independent."""

    def __init__(self) -> None:
        """Load both classifiers."""
        self.concept, self.style = Classifier("moji-concept"), Classifier("moji-style")
        self.id = "moji-pair-" + "-".join(one.id.rpartition("-")[2] for one in (self.concept, self.style))
        self.labels = [f"{c} in {s} style" for c in self.concept.labels for s in self.style.labels]

    def top(self, pictures: list[np.ndarray], k: int = 10) -> list[Ranked]:
        """For each picture its `k` best combinations with their probabilities, best first."""
        concept, style = (one.logits(pictures).softmax(1) for one in (self.concept, self.style))
        return ranked((concept[:, :, None] * style[:, None, :]).flatten(1), self.labels, k)
