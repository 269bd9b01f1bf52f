"""AP (arXiv:2410.15618, eq. 8 to 12) and AGE (arXiv:2501.18950): one number at a time."""

import math

import numpy as np


def soft(logits: np.ndarray, noise: np.ndarray, temperature: float) -> np.ndarray:
    """y_i = exp((l_i + g_i)/τ) / Σ_j exp((l_j + g_j)/τ)."""
    raised = [math.exp((float(a) + float(g)) / temperature) for a, g in zip(logits, noise, strict=True)]
    return np.array([r / sum(raised) for r in raised])


def hard(y: np.ndarray) -> np.ndarray:
    """One-hot of the largest."""
    return np.array([1.0 if i == max(range(len(y)), key=lambda j: y[j]) else 0.0 for i in range(len(y))])


def kept(y: np.ndarray, top: int) -> np.ndarray:
    """The `top` largest, scaled to sum to 1."""
    least = sorted(y, reverse=True)[top - 1]
    left = [v if v >= least else 0.0 for v in y]
    return np.array([v / sum(left) for v in left])


def straight(y: np.ndarray, slopes: np.ndarray, temperature: float) -> np.ndarray:
    """dL/dl of ŷ = sg(onehot - y) + y, given dL/dŷ: the softmax's own Jacobian, y_i (s_i - Σ_j y_j s_j)/τ."""
    return np.array(
        [y[i] * (slopes[i] - sum(y[j] * slopes[j] for j in range(len(y)))) / temperature for i in range(len(y))]
    )


def square(a: np.ndarray, b: np.ndarray, bars: np.ndarray | None = None) -> float:
    """Mean of (a - b)² over every entry; in clean latents where ᾱ is given: x0 = (x - √(1-ᾱ) ε)/√ᾱ, and x is the same for both."""
    total = 0.0
    for i in range(len(a)):
        weight = 1.0 if bars is None else (1 - float(bars[i])) / float(bars[i])
        for u, v in zip(a[i].ravel(), b[i].ravel(), strict=True):
            total += weight * (float(u) - float(v)) ** 2
    return total / a.size


def square_v(a: np.ndarray, b: np.ndarray, bars: np.ndarray) -> float:
    """The same of a model that predicts v, where x0 = √ᾱ x - √(1-ᾱ) v."""
    return sum((1 - float(bar)) * square(u[None], v[None]) for bar, u, v in zip(bars, a, b, strict=True)) / len(a)


def damage(student: np.ndarray, frozen: np.ndarray) -> list[float]:
    """Mean square a word, one after the other."""
    return [square(a[None], b[None]) for a, b in zip(student, frozen, strict=True)]
