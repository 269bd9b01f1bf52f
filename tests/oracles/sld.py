"""Safe latent diffusion (arXiv:2211.05105, eq. 3-8) and the negative prompt, one latent and one entry at a time."""

import numpy as np


class Safe:
    """The guided noise of step after step; `scale`, `threshold`, `warmup`, `momentum`, `beta` as s_S, λ, δ, s_m, β_m."""

    def __init__(self, scale, threshold, warmup, momentum, beta) -> None:  # noqa: ANN001
        self.numbers, self.step, self.nu = (scale, threshold, warmup, momentum, beta), 0, None

    def __call__(self, null, prompt, concept, guidance, neutral=None) -> np.ndarray:  # noqa: ANN001
        scale, threshold, warmup, momentum, beta = self.numbers
        neutral = null if neutral is None else neutral
        nu = np.zeros_like(null) if self.nu is None else self.nu
        out, after = np.zeros_like(null), np.zeros_like(null)
        for i in np.ndindex(null.shape):
            mu = 0.0
            if prompt[i] - concept[i] < threshold:
                mu = min(scale * abs(prompt[i] - concept[i]), 1.0)
            gamma = mu * (concept[i] - neutral[i]) + momentum * nu[i]
            after[i] = beta * nu[i] + (1 - beta) * gamma
            pushed = prompt[i] - null[i] - (gamma if self.step >= warmup else 0.0)
            out[i] = null[i] + guidance * pushed
        self.nu, self.step = after, self.step + 1
        return out


def negative(prompt: np.ndarray, concept: np.ndarray, guidance: float) -> np.ndarray:
    """ε(n) + s (ε(c) - ε(n))."""
    return concept + guidance * (prompt - concept)
