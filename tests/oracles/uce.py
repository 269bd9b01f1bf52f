"""UCE (arXiv:2308.14761, eq. 7) for one projection W (m, d); texts are columns, as in the paper."""

import numpy as np


def objective(new, old, c, g, a, p, b, ridge) -> float:  # noqa: ANN001
    """Σ a_i |W' c_i - W g_i|² + Σ b_j |W' p_j - W p_j|² + λ |W' - W|²."""
    total = ridge * ((new - old) ** 2).sum()
    for i in range(c.shape[1]):
        total += a[i] * ((new @ c[:, i] - old @ g[:, i]) ** 2).sum()
    for j in range(p.shape[1]):
        total += b[j] * ((new @ p[:, j] - old @ p[:, j]) ** 2).sum()
    return float(total)


def normal_equations(old, c, g, a, p, b, ridge) -> np.ndarray:  # noqa: ANN001
    """The released code's way: one matrix and its inverse for each layer."""
    d = old.shape[1]
    top, bottom = ridge * old, ridge * np.eye(d)
    for i in range(c.shape[1]):
        top = top + a[i] * np.outer(old @ g[:, i], c[:, i])
        bottom = bottom + a[i] * np.outer(c[:, i], c[:, i])
    for j in range(p.shape[1]):
        top = top + b[j] * np.outer(old @ p[:, j], p[:, j])
        bottom = bottom + b[j] * np.outer(p[:, j], p[:, j])
    return top @ np.linalg.inv(bottom)


def least_squares(old, c, g, a, p, b, ridge) -> np.ndarray:  # noqa: ANN001
    """The same objective as one stacked least-squares problem, without normal equations."""
    d = old.shape[1]
    left = np.vstack([np.sqrt(a)[:, None] * c.T, np.sqrt(b)[:, None] * p.T, ridge**0.5 * np.eye(d)])
    right = np.vstack([np.sqrt(a)[:, None] * (old @ g).T, np.sqrt(b)[:, None] * (old @ p).T, ridge**0.5 * old.T])
    return np.linalg.lstsq(left, right, rcond=None)[0].T


def content_pairs(n: int, words_c: int, words_g: int) -> list[tuple[int, int, float]]:
    """Our pairing of rows (index of c, index of g, weight) for prompts of `words_c` and `words_g` tokens in `n` places.

    A word goes to the target's word at the same relative place, or to the end of an empty target; end to end; the padding that
    both have to each other, with the weight of one row together.
    """
    pairs = []
    for i in range(1, words_c + 1):
        place = next(j for j in range(1, words_g + 1) if j * words_c >= i * words_g) if words_g else 1
        pairs.append((i, place, 1.0))
    pairs.append((words_c + 1, words_g + 1, 1.0))
    pads = n - 2 - max(words_c, words_g)
    pairs += [(words_c + 2 + i, words_g + 2 + i, 1 / pads) for i in range(pads)]
    return pairs


def fit(old, v, c, a, p, b, ridge) -> np.ndarray:  # noqa: ANN001
    """The normal equations for any targets v (m, n), not only W g: Σ_i a_i |W' c_i - v_i|² and the rest of `objective`."""
    d = old.shape[1]
    top, bottom = ridge * old, ridge * np.eye(d)
    for i in range(c.shape[1]):
        top = top + a[i] * np.outer(v[:, i], c[:, i])
        bottom = bottom + a[i] * np.outer(c[:, i], c[:, i])
    for j in range(p.shape[1]):
        top = top + b[j] * np.outer(old @ p[:, j], p[:, j])
        bottom = bottom + b[j] * np.outer(p[:, j], p[:, j])
    return top @ np.linalg.inv(bottom)


def tensor(old, c, g) -> np.ndarray:  # noqa: ANN001
    """The released technique "tensor": v = W g less its component along W c, both seen as one long vector."""
    before, aim = old @ c, old @ g
    length = 0.0
    for x in before.ravel():
        length += x * x
    u = before / length**0.5
    along = 0.0
    for x, y in zip(u.ravel(), aim.ravel(), strict=True):
        along += x * y
    return aim - along * u
