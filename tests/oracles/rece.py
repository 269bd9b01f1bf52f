"""RECE (arXiv:2407.12383) layer by layer, as the paper writes it: no layer knows that one map would serve all; texts are rows."""

import numpy as np


def adversary(now: list[np.ndarray], old: list[np.ndarray], c: np.ndarray, limit: float) -> np.ndarray:
    """c' = (λ_r I + Σ_l W_lᵀ W_l)⁻¹ (Σ_l W_lᵀ W_l⁰) c for every row c."""
    d = c.shape[1]
    bottom, top = limit * np.eye(d), np.zeros((d, d))
    for w, w0 in zip(now, old, strict=True):
        bottom, top = bottom + w.T @ w, top + w.T @ w0
    return np.stack([np.linalg.inv(bottom) @ top @ row for row in c])


def stacked(now: list[np.ndarray], old: list[np.ndarray], c: np.ndarray, limit: float) -> np.ndarray:
    """The same minimiser of Σ_l |W_l z - W_l⁰ c|² + λ_r |z|² as one least-squares problem."""
    left = np.vstack([*now, limit**0.5 * np.eye(c.shape[1])])
    right = np.vstack([np.vstack(old) @ c.T, np.zeros((c.shape[1], len(c)))])
    return np.linalg.lstsq(left, right, rcond=None)[0].T


def edit(old, c, g, a, p, b, ridge) -> np.ndarray:  # noqa: ANN001
    """(λ W + a Σ W g cᵀ + b Σ W p pᵀ) (λ I + a Σ c cᵀ + b Σ p pᵀ)⁻¹ of whatever weights it is given."""
    top, bottom = ridge * old, ridge * np.eye(old.shape[1])
    for c_i, g_i, a_i in zip(c, g, a, strict=True):
        top, bottom = top + a_i * np.outer(old @ g_i, c_i), bottom + a_i * np.outer(c_i, c_i)
    for p_j, b_j in zip(p, b, strict=True):
        top, bottom = top + b_j * np.outer(old @ p_j, p_j), bottom + b_j * np.outer(p_j, p_j)
    return top @ np.linalg.inv(bottom)


def released(old, first, c, g, p, limit, rounds, ridge, keep, erase=1.0) -> list[np.ndarray]:  # noqa: ANN001
    """Rounds of adversary and edit, each from the weights that the last one left, started from UCE's; all of them, whatever comes back."""
    now = first
    for _ in range(rounds):
        z = adversary(now, old, c, limit)
        now = [edit(w, z, g, np.full(len(z), erase), p, np.full(len(p), keep), ridge) for w in now]
    return now


def came_back(now, old, z, c, g, a) -> float:  # noqa: ANN001
    """1 - |W' z - W⁰ c| / |W⁰ g - W⁰ c| over all layers and rows."""
    missed = sum(
        a[i] * ((w @ z[i] - w0 @ c[i]) ** 2).sum() for w, w0 in zip(now, old, strict=True) for i in range(len(c))
    )
    way = sum(a[i] * ((w0 @ (g[i] - c[i])) ** 2).sum() for w0 in old for i in range(len(c)))
    return 1 - (missed / way) ** 0.5
