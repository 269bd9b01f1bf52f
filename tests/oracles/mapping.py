"""Text-encoder mapping (the talk's eq. 2), rows paired as UCE pairs them."""

import numpy as np


def pairs(words: int, goal_words: int, length: int, lead: int = 0) -> list[tuple[int, int, bool, float]]:
    """(row, row it shall read as, whether that is the prompt's own, weight): start, words, end, padding of a prompt of `words` words."""
    out = [(0, 0, True, 1.0)]
    out += [(row, row, True, 1.0) for row in range(1, lead + 1)]
    for k in range(1, words - lead + 1):  # the k-th of the concept's own words
        place = lead + int(np.ceil(k * (goal_words - lead) / (words - lead))) if goal_words else 1
        out.append((lead + k, place, False, 1.0))
    out.append((words + 1, goal_words + 1, False, 1.0))
    spaces = length - 2 - max(words, goal_words)
    return out + [(words + 2 + j, goal_words + 2 + j, False, 1 / spaces) for j in range(spaces)]


def erasing(
    rows: np.ndarray, before: np.ndarray, target: np.ndarray, paired: list[tuple[int, int, bool, float]]
) -> tuple[float, float]:
    """Σ w |row - goal|² / d and Σ w, of one prompt."""
    total = weights = 0.0
    for row, place, own, weight in paired:
        goal = before[row] if own else target[place]
        total += weight * sum((float(a) - float(b)) ** 2 for a, b in zip(rows[row], goal, strict=True)) / rows.shape[1]
        weights += weight
    return total, weights


def keeping(rows: np.ndarray, before: np.ndarray, words: int) -> tuple[float, float]:
    """The same of a prompt that shall stay: padding weighs as one row."""
    n = len(rows)
    return erasing(
        rows, before, before, [(i, i, True, 1.0 if i < words + 2 else 1 / (n - words - 2)) for i in range(n)]
    )


def drift(now: list[np.ndarray], before: list[np.ndarray]) -> float:
    """|φ' - φ|² / |φ|²."""
    moved = sum(float(((a - b) ** 2).sum()) for a, b in zip(now, before, strict=True))
    return moved / sum(float((b**2).sum()) for b in before)
