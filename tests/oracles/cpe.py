"""CPE (arXiv:2506.22806), one concept, one prompt, one site at a time. Rows of a prompt are the rows of a matrix."""

import numpy as np


def gate(e: np.ndarray, query: np.ndarray, key: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eq. 8: the gate of each token, and what it multiplies."""
    n = len(e)
    gathered = np.zeros_like(e)
    for i in range(n):
        logits = np.array([(e[i] @ query) @ (e[j] @ key) for j in range(n)])
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        for j in range(n):
            gathered[i] += shares[j] * e[j]
    return np.array([1 / (1 + np.exp(-gathered[i] @ w)) for i in range(n)]), gathered


def added(e: np.ndarray, concepts: list[dict[str, np.ndarray]], site: int, up: list[np.ndarray]) -> np.ndarray:
    """What one site gets: for each token, from the concept with the largest gate alone."""
    made = [gate(e, c["query"], c["key"], c["gate"]) for c in concepts]
    out = np.zeros((len(e), up[0].shape[1]))
    for i in range(len(e)):
        best = max(range(len(concepts)), key=lambda c: made[c][0][i])
        g, gathered = made[best]
        out[i] = g[i] * gathered[i] @ concepts[best]["down"][:, site] @ up[best]
    return out


def distance(sites: list[tuple[np.ndarray, np.ndarray]], weights: list[float]) -> float:
    """Mean over tokens of what `sites`' pairs differ by, each site's sum of squares with its weight."""
    total = 0.0
    for (a, b), c in zip(sites, weights, strict=True):
        total += c * ((a - b) ** 2).sum() / len(a)
    return total


def goal(w: np.ndarray, concept: np.ndarray, surrogate: np.ndarray, eta: float) -> np.ndarray:
    """Eq. 9's aim: P₀(E_s) + η (P₀(E_s) - P₀(E_t))."""
    p_s, p_t = surrogate @ w.T, concept @ w.T
    return p_s + eta * (p_s - p_t)


def softmax(x: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cross_attention(q: np.ndarray, keys: np.ndarray, values: np.ndarray, w_out: np.ndarray, heads: int) -> np.ndarray:
    """Definition 1, for one query q = W_q z."""
    parts = []
    for a, k, v in zip(np.split(q, heads), np.split(keys, heads, axis=1), np.split(values, heads, axis=1), strict=True):
        parts.append(softmax(k @ a / len(a) ** 0.5) @ v)
    return w_out @ np.concatenate(parts)


def coefficients(
    w_q: np.ndarray, w_v: np.ndarray, w_out: np.ndarray, heads: int, m_z: float, m_e: float
) -> tuple[float, float]:
    """Theorem 1 with a softmax constant of ½ and a bound for each head."""

    def largest(w: np.ndarray) -> float:
        return float(np.sqrt(np.linalg.eigvalsh(w.T @ w).max()))

    out = largest(w_out)
    v = max(largest(part) for part in np.split(w_v, heads))
    q = max(largest(part) for part in np.split(w_q, heads))
    return 0.5 * out * v * m_e * q * m_z / np.sqrt(len(w_q) / heads), out
