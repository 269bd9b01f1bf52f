"""The model's own classifier: which prompt explains a picture best to the unedited model (diffusion classifier).

Li et al., ICCV 2023 (arXiv:2303.16203). It needs no other network, and shares every blind spot of the model it judges.
"""

import json
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from efface.core.denoiser import Denoiser
from efface.core.errors import UsageError
from efface.metrics.detectors.base import Ranked, digest

DRAWS = 12  # levels and noises of a picture, the same for all labels


class ModelClassifier:
    """The label whose prompt predicts the noise on a picture with the smallest mean square error over levels t and noises ε.

        argmin_c Σ_(t, ε) |e(x_t, t, c) - e*(x, ε, t)|²,  e* the exact native prediction (ε, v or velocity)

    The score of a label is the share of draws at which its error is the smallest.
    """

    def __init__(self, model: Denoiser, labels: Sequence[str], prompts: Sequence[str], draws: int = DRAWS) -> None:
        """Judge with `model`, the unedited one; `prompts` say each label to it.

        Raises:
            UsageError: fewer than two labels, or a label twice: then nothing can be told apart.
        """
        if len(labels) < 2 or len(set(labels)) < len(labels):
            raise UsageError(
                f"judge: expected two or more different labels for the model's own classifier, got {list(labels)}; "
                "give the concept and alternatives (--neighbours, --distant)"
            )
        self.labels, self.model, self.draws = list(labels), model, draws
        self.id = f"model-{model.fingerprint}-{digest([json.dumps([self.labels, list(prompts), draws]).encode()])}"
        self.cond = model.embed(prompts)
        rng = torch.Generator().manual_seed(0)
        levels = len(model.schedule)
        # neither the cleanest levels, where every prompt predicts alike, nor pure noise, where no picture is left
        self.t = ((0.1 + 0.8 * (torch.arange(draws) + 0.5) / draws) * levels).long().to(model.device)
        self.eps = torch.randn(draws, *model.latent_shape, generator=rng).to(model.device)

    @torch.no_grad()
    def errors(self, picture: np.ndarray) -> Float[Tensor, "labels draws"]:
        """The error of each label at each draw, for a picture (H W 3, uint8) of the model's own size."""
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
        x0 = self.model.encode(pixels)
        if x0.shape[1:] != self.eps.shape[1:]:
            raise UsageError(
                f"judge: the model's own classifier judges pictures of {self.model.image_size} pixels, got {picture.shape[1]} x "
                f"{picture.shape[0]}; give another judge (--judge)"
            )
        x0 = x0.expand(self.draws, *x0.shape[1:])
        x, exact = self.model.add_noise(x0, self.t, self.eps), self.model.native(x0, self.t, self.eps)
        which = torch.arange(len(self.labels), device=x.device).repeat_interleave(self.draws)
        draw = torch.arange(self.draws, device=x.device).repeat(len(self.labels))
        found = []
        for label, at in zip(which.split(self.model.batch_size), draw.split(self.model.batch_size), strict=True):
            pred = self.model.predict(x[at], self.t[at], self.cond[label])
            found.append((pred - exact[at]).square().flatten(1).mean(1))
        return torch.cat(found).view(len(self.labels), self.draws).float().cpu()

    def top(self, pictures: list[np.ndarray], k: int = 10) -> list[Ranked]:
        """For each picture its `k` best labels with their shares of draws, best first."""
        ranked = []
        for picture in pictures:
            errors = self.errors(picture)
            votes = torch.bincount(errors.argmin(0), minlength=len(self.labels)) / self.draws
            order = errors.mean(1).argsort(stable=True).tolist()[:k]
            ranked.append([(self.labels[i], round(float(votes[i]), 6)) for i in order])
        return ranked
