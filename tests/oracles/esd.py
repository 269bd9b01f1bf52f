"""ESD (arXiv:2303.07345, eq. 7)."""

import numpy as np


def goal(null: np.ndarray, concept: np.ndarray, eta: float) -> np.ndarray:
    """ε(x, ∅) - η (ε(x, c) - ε(x, ∅))."""
    return null - eta * (concept - null)


def goal_2025(null: np.ndarray, concept: np.ndarray, negative_guidance: float) -> np.ndarray:
    """The later code: starts from the concept, so its number is η + 1."""
    return concept - negative_guidance * (concept - null)


def loss(student: np.ndarray, target: np.ndarray) -> float:
    """Mean square over every entry of every latent."""
    total = 0.0
    for a, b in zip(student.ravel(), target.ravel(), strict=True):
        total += (float(a) - float(b)) ** 2
    return total / student.size


def adam(value: np.ndarray, grads: list[np.ndarray], lr: float) -> np.ndarray:
    """Adam's steps (Kingma & Ba 2015, algorithm 1)."""
    m, v = np.zeros_like(value), np.zeros_like(value)
    for t, g in enumerate(grads, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        value = value - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return value
