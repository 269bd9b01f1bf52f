"""TIME (arXiv:2303.08084): the alignment by trying every subsequence, and one projection W (m, d) from its normal equations."""

from itertools import combinations

import numpy as np


def common(source: list[int], target: list[int]) -> list[tuple[int, int]]:
    """A longest list of equal words, in order in both, the earliest in the source: by trying all, longest first."""
    for size in range(min(len(source), len(target)), 0, -1):
        for here in combinations(range(len(source)), size):
            for there in combinations(range(len(target)), size):
                if [source[i] for i in here] == [target[j] for j in there]:
                    return list(zip(here, there, strict=True))
    return []


def released(source: list[str], target: list[str], n: int) -> list[int]:
    """Rows of a prompt in `n` places, start and end included, as the released code walks; the target has all of the source's words.

    "an" counts as "a" in both prompts. Each word takes the next equal one; after the end everything takes what follows, at most the
    last place.
    """
    here, there = (["a" if word == "an" else word for word in ["<", *text, ">"]] for text in (source, target))
    places: list[int] = []
    for word in here:
        start = places[-1] + 1 if places else 0
        places.append(there.index(word, start))  # a ValueError where the released code runs off the end
    follow = range(places[-1] + 1, n)
    return [*places, *follow, *[n - 1] * n][:n]


def solution(old, c, g, w, p, b, ridge) -> np.ndarray:  # noqa: ANN001
    """W' = (λ W + Σ w v cᵀ + b Σ W p pᵀ) (λ I + Σ w c cᵀ + b Σ p pᵀ)⁻¹ with v = W g; texts are rows."""
    top, bottom = ridge * old, ridge * np.eye(old.shape[1])
    for c_i, g_i, w_i in zip(c, g, w, strict=True):
        top, bottom = top + w_i * np.outer(old @ g_i, c_i), bottom + w_i * np.outer(c_i, c_i)
    for p_j, b_j in zip(p, b, strict=True):
        top, bottom = top + b_j * np.outer(old @ p_j, p_j), bottom + b_j * np.outer(p_j, p_j)
    return top @ np.linalg.inv(bottom)
