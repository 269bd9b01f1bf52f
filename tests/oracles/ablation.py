"""Concept Ablation (arXiv:2303.13516)."""

import numpy as np

from oracles.naive import mean_square


def noised(x0: np.ndarray, eps: np.ndarray, bar: float) -> np.ndarray:
    """√ᾱ x + √(1-ᾱ) ε."""
    return bar**0.5 * x0 + (1 - bar) ** 0.5 * eps


def native(x0: np.ndarray, eps: np.ndarray, bar: float, prediction: str) -> np.ndarray:
    """What a model that knew the noise would predict: ε, or √ᾱ ε - √(1-ᾱ) x."""
    return eps if prediction == "epsilon" else bar**0.5 * eps - (1 - bar) ** 0.5 * x0


def loss(student: np.ndarray, goal: np.ndarray, kept: tuple[np.ndarray, np.ndarray] | None, prior: float) -> float:
    """|ε_θ(x_t, c*) - goal|² + λ |ε_θ(x_t, c) - its goal|²."""
    return mean_square(student, goal) + (prior * mean_square(*kept) if kept else 0.0)


def released(
    student: np.ndarray, goal: np.ndarray, kept: np.ndarray, kept_goal: np.ndarray, mask: np.ndarray, prior: float
) -> float:
    """The released loss of (b c h w): (|ε_θ - goal|² ∘ mask) summed over a latent, over the mask's own sum, which has one channel; the
    prior is a mean over everything."""
    ablated = [((s - g) ** 2 * m).sum() / m.sum() for s, g, m in zip(student, goal, mask, strict=True)]
    return sum(ablated) / len(ablated) + prior * mean_square(kept, kept_goal)
