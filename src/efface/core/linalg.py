"""Closed forms over text rows: one Cholesky factorisation of one d x d matrix serves every layer (reference: UCE eq. 7)."""

import torch
from jaxtyping import Float
from torch import Tensor


def gram(rows: Float[Tensor, "n d"], weights: Float[Tensor, "n"], chunk: int = 4096) -> Float[Tensor, "d d"]:
    """Σ w_i r_i r_iᵀ in float64, in chunks: two thousand prompts fit in the memory of one."""
    d = rows.shape[1]
    total = torch.zeros(d, d, dtype=torch.float64)
    for part, w in zip(rows.split(chunk), weights.split(chunk), strict=True):
        scaled = part.double() * w.double().sqrt()[:, None]
        total.addmm_(scaled.T, scaled)
    return total


def text_map(
    erased: Float[Tensor, "n d"],
    targets: Float[Tensor, "n d"],
    weights: Float[Tensor, "n"],
    kept: Float[Tensor, "d d"],
    ridge: float,
    metric: Float[Tensor, "d d"] | None = None,
) -> tuple[Float[Tensor, "d r"], Float[Tensor, "d r"]]:
    """The factors (left, right) of T = I + left rightᵀ that minimises, for every projection W at once and W' = W T.

        Σ_i a_i |W' c_i - W g_i|² + Σ_j b_j |W' p_j - W p_j|² + λ |(W' - W) R^½|²

    T = I + (G - C)ᵀ A C M⁻¹,  M = λ R + Cᵀ A C + K,  K = Σ b_j p_j p_jᵀ: symmetric positive definite, factorised once, in float64.

    Args:
        erased: rows c_i, in the order of `targets`.
        targets: rows g_i.
        weights: a_i.
        kept: K.
        ridge: λ, above 0.
        metric: R, symmetric positive definite; None is the identity.
    """
    c, g = erased.double(), targets.double()
    d = c.shape[1]
    right = gain(c, weights, kept, ridge, metric)
    left = (g - c).T
    if len(c) >= d:  # more rows than dimensions: the product itself is the smaller factor
        left, right = left @ right.T, torch.eye(d, dtype=torch.float64)
    return left, right


def gain(
    erased: Float[Tensor, "n d"],
    weights: Float[Tensor, "n"],
    kept: Float[Tensor, "d d"],
    ridge: float,
    metric: Float[Tensor, "d d"] | None = None,
) -> Float[Tensor, "d n"]:
    """Y = M⁻¹ Cᵀ A of `text_map`, for targets V that no text row gives: W' = W + (V - W Cᵀ) Yᵀ minimises Σ_i a_i |W' c_i - v_i|² + ..."""
    c, a = erased.double(), weights.double()
    m = ridge * (torch.eye(c.shape[1], dtype=torch.float64) if metric is None else metric) + gram(c, a) + kept
    return torch.cholesky_solve((a[:, None] * c).T, torch.linalg.cholesky(m))
