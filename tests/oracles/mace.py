"""MACE (arXiv:2403.06135): co-occurring words, eq. 1; attention loss, eq. 3; focal timesteps, eq. 4-6; fusion, eq. 7. Texts are rows."""

import numpy as np


def attention(q: np.ndarray, k: np.ndarray, heads: int) -> np.ndarray:
    """softmax(Q Kᵀ / √d) of one picture, head by head: (heads, places, tokens) from (places, width) and (tokens, width)."""
    size = q.shape[1] // heads
    out = np.zeros((heads, len(q), len(k)))
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        for i, row in enumerate(q[:, part]):
            scores = k[:, part] @ row / np.sqrt(size)
            weights = np.exp(scores - scores.max())
            out[h, i] = weights / weights.sum()
    return out


def shrunk(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """The share of each place that is masked."""
    tall, wide = mask.shape[0] // height, mask.shape[1] // width
    out = [
        mask[r * tall : (r + 1) * tall, c * wide : (c + 1) * wide].mean() for r in range(height) for c in range(width)
    ]
    return np.array(out)


def loss(maps: list[np.ndarray], masks: list[np.ndarray], squared: bool) -> float:
    """Eq. 3 for maps (b, heads, places, tokens) and masks (b, places), layer by layer: |A ∘ M|², a mean over pictures, heads and places;
    or as released |A ∘ M|, a mean over pictures."""
    total = 0.0
    for a, m in zip(maps, masks, strict=True):
        b, heads, places, tokens = a.shape
        norms = np.zeros(b)
        for i in range(b):
            for h in range(heads):
                for p in range(places):
                    for s in range(tokens):
                        norms[i] += (a[i, h, p, s] * m[i, p]) ** 2
        total += norms.sum() / (b * heads * places) if squared else np.sqrt(norms).mean()
    return total


def focal(t: int, low: float = 200, high: float = 400, sharp: float = 0.05, levels: int = 1000) -> float:
    """ξ(t), eq. 5-6, normalised over all levels."""

    def raw(at: int) -> float:
        return 1 / (1 + np.exp(-sharp * (at - low))) - 1 / (1 + np.exp(-sharp * (at - high)))

    return raw(t) / sum(raw(i) for i in range(levels))


def fused(old, refined, changes, rows, weights, prior) -> np.ndarray:  # noqa: ANN001
    """Eq. 7 by its normal equations: W* Σ = Σ_i Σ_j w_ij (W' + ΔW_i) e_ij e_ijᵀ + W P, with P the second moment of the prior."""
    top, bottom = old @ prior, prior.copy()
    for change, own, ws in zip(changes, rows, weights, strict=True):
        for e, w in zip(own, ws, strict=True):
            top = top + w * np.outer((refined + change) @ e, e)
            bottom = bottom + w * np.outer(e, e)
    return top @ np.linalg.inv(bottom)


def objective(new, old, refined, changes, rows, weights, prior) -> float:  # noqa: ANN001
    """Eq. 7: Σ_i Σ_j w_ij |W* e_ij - (W' + ΔW_i) e_ij|² + |(W* - W) P^½|²."""
    total = np.trace((new - old) @ prior @ (new - old).T)
    for change, own, ws in zip(changes, rows, weights, strict=True):
        for e, w in zip(own, ws, strict=True):
            total += w * (((new - refined - change) @ e) ** 2).sum()
    return float(total)


def beside(source: list[str], goal: list[str]) -> tuple[list[tuple[int, int]], int]:
    """Which words of `source` co-occur with its concept and stand in `goal` as well: pairs of places behind it, and how many before it.

    Both lists are prompts word by word, with their start and end but without padding.
    """
    before = 0
    while before < min(len(source), len(goal)) and source[before] == goal[before]:
        before += 1
    behind = 0
    while behind < min(len(source), len(goal)) - before and source[-1 - behind] == goal[-1 - behind]:
        behind += 1
    return [(len(source) - i, len(goal) - i) for i in range(behind, 0, -1)], before


def moment(tokens: np.ndarray, real: list[int]) -> np.ndarray:
    """Σ e eᵀ over the rows of prompts (b, n, d), a mean over prompts: words 1 each, the padding after `real[i]` rows 1 together."""
    b, n, d = tokens.shape
    total = np.zeros((d, d))
    for prompt, size in zip(tokens, real, strict=True):
        for i, e in enumerate(prompt):
            total += np.outer(e, e) / (b if i < size else b * (n - size))
    return total


def metric(tokens: np.ndarray, real: list[int]) -> np.ndarray:
    """Nine parts the second moment of everyday prompts, one part the identity, of mean eigenvalue 1."""
    where = moment(tokens, real)
    return 0.9 * where / np.linalg.eigvalsh(where).mean() + 0.1 * np.eye(len(where))
