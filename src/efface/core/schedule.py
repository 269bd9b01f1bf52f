"""The noise schedule of a diffusion model: α and σ of each level, and exact conversions between predictions."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "flow"]


@dataclass(frozen=True)
class Schedule:
    """Noisy latents x_t = α_t x0 + σ_t ε at T levels, and what the model predicts there.

    "epsilon": the noise ε. "v_prediction": v = α ε - σ x0, where α² + σ² = 1. "flow": the velocity u = ε - x0, where α = 1 - σ.
    """

    alpha: Float[Tensor, "T"]
    sigma: Float[Tensor, "T"]
    prediction: Prediction

    @classmethod
    def variance_preserving(cls, alphas_cumprod: Float[Tensor, "T"], prediction: Prediction) -> "Schedule":
        """α² = ᾱ and σ² = 1 - ᾱ, in the precision of ᾱ."""
        return cls(alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt(), prediction)

    @classmethod
    def rectified_flow(cls, levels: int, device: torch.device) -> "Schedule":
        """σ = t/T and α = 1 - σ; unlike the others it also has the levels between whole t, which shifted samplers use."""
        sigma = torch.arange(levels, dtype=torch.float32, device=device) / levels
        return cls(1 - sigma, sigma, "flow")

    def __len__(self) -> int:
        """Number of levels T; level 0 is the cleanest."""
        return len(self.alpha)

    def at(self, x: Tensor, t: Shaped[Tensor, "b"]) -> tuple[Tensor, Tensor]:
        """α and σ at level `t` of each latent, in the shape and the dtype that multiply `x`."""
        shape = (-1, *[1] * (x.ndim - 1))
        if t.is_floating_point() and self.prediction == "flow":
            sigma = (t.to(x.device, torch.float32) / len(self)).to(x.dtype).view(shape)
            return 1 - sigma, sigma
        t = t.long()
        return self.alpha[t].to(x.dtype).view(shape), self.sigma[t].to(x.dtype).view(shape)

    def add_noise(self, x0: Tensor, t: Shaped[Tensor, "b"], eps: Tensor) -> Tensor:
        """The forward process: α x0 + σ ε."""
        a, s = self.at(x0, t)
        return a * x0 + s * eps

    def to_x0(self, x: Tensor, t: Shaped[Tensor, "b"], pred: Tensor) -> Tensor:
        """The clean latent x0 that a native prediction implies: (x - σ ε)/α, α x - σ v or x - σ u."""
        a, s = self.at(x, t)
        if self.prediction == "epsilon":
            return (x - s * pred) / a
        return a * x - s * pred if self.prediction == "v_prediction" else x - s * pred

    def to_eps(self, x: Tensor, t: Shaped[Tensor, "b"], pred: Tensor) -> Tensor:
        """The noise ε that a native prediction implies: ε itself, α v + σ x or x + α u."""
        if self.prediction == "epsilon":
            return pred
        a, s = self.at(x, t)
        return a * pred + s * x if self.prediction == "v_prediction" else x + a * pred

    def native(self, x0: Tensor, t: Shaped[Tensor, "b"], eps: Tensor) -> Tensor:
        """The exact native prediction, given clean latents and noise: ε, α ε - σ x0 or ε - x0."""
        if self.prediction == "epsilon":
            return eps
        a, s = self.at(x0, t)
        return a * eps - s * x0 if self.prediction == "v_prediction" else eps - x0

    def native_change(self, x: Tensor, t: Shaped[Tensor, "b"], change: Tensor) -> Tensor:
        """The change of the native prediction for a `change` of the predicted ε: the same, or divided by α.

        At pure noise (α = 0) every ε equals x, and no native change corresponds to it: α is at least 1e-6 here.
        """
        return change if self.prediction == "epsilon" else change / self.at(x, t)[0].clamp(min=1e-6)
