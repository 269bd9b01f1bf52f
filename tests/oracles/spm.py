"""SPM (arXiv:2312.16145): membranes, their gate, the losses and the anchors, a number at a time."""

import numpy as np


def linear(x: np.ndarray, downs: np.ndarray, ups: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    """Σ_i γ_i up_i (down_i · x) for each row of one prompt: x (rows in), downs (n in), ups (n out), gamma (n)."""
    added = np.zeros((len(x), ups.shape[1]))
    for row, given in enumerate(x):
        for i, weight in enumerate(gamma):
            passed = sum(float(d) * float(v) for d, v in zip(downs[i], given, strict=True))
            for k, up in enumerate(ups[i]):
                added[row, k] += float(weight) * float(up) * passed
    return added


def convolution(
    x: np.ndarray, downs: np.ndarray, ups: np.ndarray, gamma: np.ndarray, stride: int, padding: int
) -> np.ndarray:
    """The same where down_i is a kernel: x (in h w), downs (n in kh kw)."""
    n, _, kh, kw = downs.shape
    wide = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    rows, columns = (wide.shape[1] - kh) // stride + 1, (wide.shape[2] - kw) // stride + 1
    added = np.zeros((ups.shape[1], rows, columns))
    for i in range(n):
        for r in range(rows):
            for c in range(columns):
                seen = wide[:, r * stride : r * stride + kh, c * stride : c * stride + kw]
                added[:, r, c] += gamma[i] * ups[i] * float((downs[i] * seen).sum())
    return added


def released(downs: np.ndarray, ups: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    """The one matrix that summed state dicts make of linear membranes: (Σ_i γ_i up_i)(Σ_j γ_j down_j)ᵀ."""
    up, down = np.zeros(ups.shape[1]), np.zeros(downs.shape[1])
    for i, weight in enumerate(gamma):
        up += weight * ups[i]
        down += weight * downs[i]
    return np.outer(up, down)


def overlap(prompt: list[int], concept: list[int]) -> float:
    """The share of a concept's tokens that a prompt has."""
    return len(set(prompt) & set(concept)) / len(set(concept))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of all rows in one vector."""
    a, b = a.ravel(), b.ravel()
    return float(a @ b) / (float(a @ a) ** 0.5 * float(b @ b) ** 0.5)


def centred(prompt: np.ndarray, concept: np.ndarray, null: np.ndarray) -> float:
    """The squared cosine of what each says besides "", shortened where the prompt says less; nothing where they disagree."""
    p, c = (prompt - null).ravel(), (concept - null).ravel()
    long, said = float(c @ c) ** 0.5, float(p @ p) ** 0.5
    value = float(p @ c) / (long * max(long, said))
    return value**2 if value > 0 else 0.0


def goal(rest: np.ndarray, concept: np.ndarray, target: np.ndarray, eta: float) -> np.ndarray:
    """ε(x, target) - η (ε(x, c) - ε(x, ∅))."""
    return target - eta * (concept - rest)


def loss(now: np.ndarray, goal: np.ndarray, anchored: np.ndarray, still: np.ndarray, anchoring: float) -> float:
    """L_era + λ L_anc, each a mean square."""
    era = sum((float(a) - float(b)) ** 2 for a, b in zip(now.ravel(), goal.ravel(), strict=True)) / goal.size
    anc = sum((float(a) - float(b)) ** 2 for a, b in zip(anchored.ravel(), still.ravel(), strict=True)) / still.size
    return era + anchoring * anc
