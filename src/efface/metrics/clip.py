"""CLIP score: similarity of a picture and a text."""

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from efface.core.errors import UsageError
from efface.metrics.trunks import SCORERS, ClipTrunk, in_batches


class ClipScorer:
    """`scale` times the cosine of CLIP's picture and text embeddings (Hessel et al. 2021, arXiv:2104.08718, without its weight 2.5).

    Papers differ in model, scale and clamp, so `id` names all three: ViT-B/32 x 100 in MACE, RECE and CPE, clamped at 0 in Bui et al.
    Values of different ids are never compared. "moji" is the CLIP model that ships with Moji and knows its drawings only; Moji's card
    says how well.
    """

    def __init__(self, model: str = "openai/clip-vit-base-patch32", scale: float = 100.0, clamp: bool = False) -> None:
        """Load a shipped name, a folder or a Hub id.

        Args:
            model: of a transformers CLIPModel with its tokenizer.
            scale: of the cosine.
            clamp: raise negative scores to 0.

        Raises:
            UsageError: it cannot be had.
        """
        from transformers import AutoTokenizer

        self.pictures = ClipTrunk(model)
        self.net = self.pictures.net
        self.tokenizer = AutoTokenizer.from_pretrained(
            SCORERS.get(model, Path(model) if Path(model).is_dir() else model)
        )
        self.limit: int = self.net.config.text_config.max_position_embeddings  # 77 tokens; Moji's 32
        self.scale, self.clamp = scale, clamp
        self.id = f"{self.pictures.id}-x{scale:g}{'-clamped' if clamp else ''}"

    def score(self, pictures: list[np.ndarray], texts: list[str]) -> list[float]:
        """One score for each picture (H W 3, uint8) and its text; a text that is too long for the model is truncated, with a warning.

        Raises:
            UsageError: not as many texts as pictures.
        """
        if len(pictures) != len(texts):
            raise UsageError(
                f"texts: expected one for each of {len(pictures)} pictures, got {len(texts)}; repeat a text that fits several"
            )
        image = torch.from_numpy(self.pictures.features(pictures)).double()
        cosine = (image * normalize(self.embed(texts).double(), dim=1)).sum(1)
        return (self.scale * (cosine.clamp(min=0) if self.clamp else cosine)).tolist()

    @torch.no_grad()
    def embed(self, texts: list[str]) -> Tensor:
        """Text embeddings (n d), not normalised."""
        long = sum(len(ids) > self.limit for ids in self.tokenizer(texts)["input_ids"])
        if long:
            warnings.warn(
                f"texts: {long} of {len(texts)} are longer than {self.limit} tokens and were cut; shorten them",
                stacklevel=3,
            )

        def embed(part: list[str]) -> Tensor:
            tokens = self.tokenizer(
                part, padding="max_length", truncation=True, max_length=self.limit, return_tensors="pt"
            )
            return self.net.text_projection(self.net.text_model(**tokens).pooler_output)

        return in_batches(texts, embed)
