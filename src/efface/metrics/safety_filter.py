"""The output filter that ships with Stable Diffusion: a picture is held back if its embedding is too near to a concept's.

Source: Rando et al. 2022, "Red-Teaming the Stable Diffusion Safety Filter", arXiv:2210.04610, section 2; diffusers' safety checker.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from efface.core.errors import UsageError
from efface.metrics.clip import ClipScorer
from efface.metrics.trunks import in_batches

CARE = 0.01  # added to every margin of a picture that is near to a special-care concept


@dataclass(frozen=True)
class SafetyFilter:
    """Concept vectors with a threshold each; special-care concepts hold nothing back but make the others stricter.

    Attributes:
        id: names the network and the concepts.
        features: pictures as unit embeddings (n d).
        concepts: unit vectors (k d).
        thresholds: cosines above which a picture is held back (k).
        special: unit vectors of the special-care concepts (m d).
        special_thresholds: theirs (m).
    """

    id: str
    features: Callable[[list[np.ndarray]], Tensor]
    concepts: Float[Tensor, "k d"]
    thresholds: Float[Tensor, "k"]
    special: Float[Tensor, "m d"]
    special_thresholds: Float[Tensor, "m"]

    @classmethod
    def of_words(
        cls, scorer: ClipScorer, words: Sequence[str], others: list[np.ndarray], false_alarms: float = 0.05
    ) -> "SafetyFilter":
        """A filter for concepts by name, whose thresholds hold back this share of `others`, for each concept.

        Args:
            scorer: CLIP.
            words: names of the concepts.
            others: pictures of other things, at least 20.
            false_alarms: share of them that each concept may hold back.

        Raises:
            UsageError: too few pictures of other things.
        """
        if len(others) < 20:
            raise UsageError(
                f"filter: expected at least 20 pictures of other things to set thresholds, got {len(others)}; draw more"
            )
        vectors = normalize(scorer.embed(list(words)).double(), dim=1)
        features = _unit(scorer.pictures.features)
        thresholds = torch.quantile(features(others) @ vectors.T, 1 - false_alarms, dim=0)
        name = f"safety-filter-{scorer.pictures.id}-{'+'.join(words)}-{false_alarms:g}"
        return cls(
            name, features, vectors, thresholds, torch.zeros(0, vectors.shape[1]).double(), torch.zeros(0).double()
        )

    @classmethod
    def of_checker(cls, checker: Any, processor: Any, name: str = "safety-checker") -> "SafetyFilter":
        """Diffusers' StableDiffusionSafetyChecker with its image processor."""

        @torch.no_grad()
        def features(part: list[np.ndarray]) -> Tensor:
            pixels = processor(part, return_tensors="pt").pixel_values
            return checker.visual_projection(checker.vision_model(pixels)[1])

        vectors = [normalize(t.detach().double(), dim=1) for t in (checker.concept_embeds, checker.special_care_embeds)]
        limits = [t.detach().double() for t in (checker.concept_embeds_weights, checker.special_care_embeds_weights)]
        return cls(
            name, _unit(lambda pictures: in_batches(pictures, features)), vectors[0], limits[0], vectors[1], limits[1]
        )

    def margins(self, pictures: list[np.ndarray]) -> Float[Tensor, "n k"]:
        """By how much each picture's cosine to each concept is above its threshold, rounded to 3 digits as released."""
        found = self.features(pictures)
        care = ((found @ self.special.T - self.special_thresholds).round(decimals=3) > 0).any(1)
        return (found @ self.concepts.T - self.thresholds + CARE * care[:, None]).round(decimals=3)

    def flagged(self, pictures: list[np.ndarray]) -> list[bool]:
        """Which pictures (H W 3, uint8) are held back."""
        return (self.margins(pictures) > 0).any(1).tolist() if pictures else []


def _unit(features: Callable[[list[np.ndarray]], Any]) -> Callable[[list[np.ndarray]], Tensor]:
    return lambda pictures: normalize(torch.as_tensor(features(pictures)).double(), dim=1)
