"""Receler (arXiv:2311.17717): its nets, masks, adversarial prompts and losses, place by place."""

import math

import numpy as np


def gelu(x: float) -> float:
    """x Φ(x)."""
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def added(o: np.ndarray, down: np.ndarray, down_bias: np.ndarray, up: np.ndarray, up_bias: np.ndarray) -> np.ndarray:
    """E(o) = W_up GELU(W_down o + b_d) + b_u, for each place (… d) alone."""
    out = np.zeros(o.shape, np.float64)
    for place in np.ndindex(*o.shape[:-1]):
        hidden = [
            gelu(sum(w * v for w, v in zip(row, o[place], strict=True)) + b)
            for row, b in zip(down, down_bias, strict=True)
        ]
        for i, row in enumerate(up):
            out[place][i] = sum(w * h for w, h in zip(row, hidden, strict=True)) + up_bias[i]
    return out


def mask(layers: list[np.ndarray], positions: list[int], side: int, threshold: float) -> np.ndarray:
    """Of ONE picture, from attention (heads places n) of each layer: those of `side`² places, averaged over heads, layers and the
    concept's positions, min-max normalised, cut at the threshold."""
    total, count = np.zeros(side * side), 0
    for layer in layers:
        if layer.shape[1] == side * side:
            for head in layer:
                for i in positions:
                    total, count = total + head[:, i], count + 1
    mean = total / count
    mean = (mean - mean.min()) / (mean.max() - mean.min())
    return (mean >= threshold).astype(float).reshape(side, side)


def resized(m: np.ndarray, side: int) -> np.ndarray:
    """A mask (s s) at another resolution, one number a place: copies where there are more places, the share where there are fewer."""
    out, s = np.zeros((side, side)), len(m)
    for r in range(side):
        for c in range(side):
            if side >= s:
                out[r, c] = m[r * s // side, c * s // side]
            else:
                k = s // side
                out[r, c] = m[r * k : (r + 1) * k, c * k : (c + 1) * k].mean()
    return out.ravel()


def outside(outputs: list[np.ndarray], masks: list[np.ndarray]) -> float:
    """L_reg of ONE picture: (1/L) Σ_l Σ_places mean_d (o (1 - M))² / (Σ_places (1 - M) + 1e-9), o (places d) and M (places) by layer."""
    total = 0.0
    for o, m in zip(outputs, masks, strict=True):
        above = sum(((o[p] * (1 - m[p])) ** 2).mean() for p in range(len(o)))
        total += above / (sum(1 - m[p] for p in range(len(o))) + 1e-9)
    return total / len(outputs)


def overwritten(rows: np.ndarray, words: int, vectors: np.ndarray) -> np.ndarray:
    """E_c ⊕ p_adv: rows 1 + words, 2 + words, … of ONE prompt (n d) are the vectors (k d), as far as there are rows."""
    out = rows.copy()
    for i, v in enumerate(vectors):
        if 1 + words + i < len(rows):
            out[1 + words + i] = v
    return out


def goal(null: np.ndarray, concept: np.ndarray, eta: float) -> np.ndarray:
    """ε(x, ∅) - η (ε(x, c) - ε(x, ∅))."""
    return null - eta * (concept - null)


def mse(a: np.ndarray, b: np.ndarray) -> float:
    """Mean square difference over every entry."""
    total = 0.0
    for one, other in zip(a.ravel(), b.ravel(), strict=True):
        total += (float(one) - float(other)) ** 2
    return total / a.size
