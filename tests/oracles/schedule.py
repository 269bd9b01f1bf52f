"""The forward process, the prediction types and DDIM."""

import numpy as np


def alphas_cumprod(start: float = 0.00085, end: float = 0.012, n: int = 1000) -> np.ndarray:
    """ᾱ of Stable Diffusion: √β runs linearly."""
    betas = np.linspace(start**0.5, end**0.5, n) ** 2
    bars, product = [], 1.0
    for beta in betas:
        product *= 1 - beta
        bars.append(product)
    return np.array(bars)


def velocity(x0: np.ndarray, eps: np.ndarray, bar: float) -> np.ndarray:
    """v = √ᾱ ε - √(1-ᾱ) x0 (Salimans & Ho 2022, appendix D)."""
    return bar**0.5 * eps - (1 - bar) ** 0.5 * x0


def ddim_levels(steps: int, offset: int = 1, n: int = 1000) -> list[int]:
    """Noise levels with leading spacing, from noisy to clean."""
    return [i * (n // steps) + offset for i in range(steps)][::-1]


def ddim(x: np.ndarray, eps_of, steps: int, until: int | None = None) -> list[np.ndarray]:  # noqa: ANN001
    """DDIM with η = 0 (Song et al. 2021, eq. 12); the last step goes to ᾱ_0. Every latent, the start first."""
    bars, path = alphas_cumprod(), [x]
    for i, t in enumerate(ddim_levels(steps)):
        if i == until:
            break
        eps, previous = eps_of(x, t), t - 1000 // steps
        bar, bar_next = bars[t], bars[previous] if previous >= 0 else bars[0]
        x0 = (x - (1 - bar) ** 0.5 * eps) / bar**0.5
        x = bar_next**0.5 * x0 + (1 - bar_next) ** 0.5 * eps
        path.append(x)
    return path
