"""Naive output-based erasure (the talk's eq. 7)."""

import numpy as np


def mean_square(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over every entry of every latent."""
    total = 0.0
    for x, y in zip(a.ravel(), b.ravel(), strict=True):
        total += (float(x) - float(y)) ** 2
    return total / a.size


def loss(
    student_erased: np.ndarray,
    base_target: np.ndarray,
    student_neutral: np.ndarray,
    base_neutral: np.ndarray,
    weight: float,
) -> float:
    """|ε'(c_e) - ε(c_t)|² + λ |ε'(c_n) - ε(c_n)|²."""
    return mean_square(student_erased, base_target) + weight * mean_square(student_neutral, base_neutral)


def past(target: np.ndarray, concept: np.ndarray, eta: float) -> np.ndarray:
    """The released goal e_t - η (e_p - e_t), entry by entry."""
    flat = [t - eta * (p - t) for t, p in zip(target.ravel().tolist(), concept.ravel().tolist(), strict=True)]
    return np.array(flat).reshape(target.shape)
