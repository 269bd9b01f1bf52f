"""Debiasing (arXiv:2308.14761), for one projection W (m, d); texts are columns, as in the paper."""

import numpy as np


def rows(old, c, attributes, beta) -> np.ndarray:  # noqa: ANN001
    """v = W (c + Σ_k β_k (a_k - c)), row by row."""
    v = np.zeros((old.shape[0], c.shape[1]))
    for i in range(c.shape[1]):
        text = c[:, i].copy()
        for a, b in zip(attributes, beta, strict=True):
            text = text + b * (a[:, i] - c[:, i])
        v[:, i] = old @ text
    return v


def paper(old, c, attributes, beta) -> np.ndarray:  # noqa: ANN001
    """v = W c + Σ_k β_k W a_k, as printed."""
    return old @ c + sum(b * (old @ a) for a, b in zip(attributes, beta, strict=True))


def released_2023(old, c, attributes, beta) -> np.ndarray:  # noqa: ANN001
    """o and v are one array in the released code: v starts as W c, each attribute adds β_k |v| u_k / |u_k| to it, u_k = W a_k, and the
    next one sees the longer v."""
    v = (old @ c).copy()
    o = v
    for a, b in zip(attributes, beta, strict=True):
        u = old @ a
        v += b * np.sqrt((o**2).sum()) * u / np.sqrt((u**2).sum())
    return v


def outputs(old, c, attributes, beta) -> np.ndarray:  # noqa: ANN001
    """Ours: what an attribute adds, o gives up."""
    return released_2023(old, c, attributes, beta) - sum(beta) * (old @ c)


def loop(shares, desired, rate, tolerance, rounds) -> list:  # noqa: ANN001
    """What each concept's β moves by in every round: nothing within the tolerance, and nothing more after a round without a move.

    `shares[round][concept]` is what would be measured.
    """
    moves = []
    for r in range(rounds):
        if moves and all(x == 0 for concept in moves[-1] for x in concept):
            moves.append([[0.0] * len(desired) for _ in shares[0]])
            continue
        row = []
        for measured in shares[r]:
            gaps = [want - got for want, got in zip(desired, measured, strict=True)]
            row.append([rate * g for g in gaps] if max(abs(g) for g in gaps) >= tolerance else [0.0] * len(gaps))
        moves.append(row)
    return moves
