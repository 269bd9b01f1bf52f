"""Closed forms for linear maps of token embeddings: one Cholesky factorisation of a d x d matrix serves every layer (UCE eq. 7)."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def gram(
    rows: Float[Tensor, "n d"],
    weights: Float[Tensor, "n"],
    chunk: int = 4096,
    total: Float[Tensor, "d d"] | None = None,
) -> Float[Tensor, "d d"]:
    """Gram matrix Σ w_i r_i r_iᵀ in float64, in chunks to save memory; added to `total`, in place, if that is given."""
    d = rows.shape[1]
    total = torch.zeros(d, d, dtype=torch.float64) if total is None else total
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


def fuse(
    weights: Mapping[str, Tensor],
    left: Float[Tensor, "d r"],
    right: Float[Tensor, "d r"],
    loras: Sequence[Mapping[str, tuple[Tensor, Tensor]]],
    grams: Sequence[Float[Tensor, "d d"]],
    prior: Float[Tensor, "d d"],
) -> dict[str, tuple[Tensor, Tensor]]:
    """Factors (up, down) of W* - W for each weight W, where W* fuses its LoRAs ΔW_i, fitted to W' = W (I + left rightᵀ): it minimises.

        Σ_i |(W* - W' - ΔW_i) K_i^½|² + |(W* - W) P^½|²

    W* = W' + (Σ ΔW_i K_i + (W - W') P) M⁻¹, M = Σ K_i + P: one factorisation for all weights (MACE, eq. 7).

    Args:
        weights: W by name.
        left: (d r) of the map.
        right: (d r) of the map.
        loras: factors (up, down) of each ΔW_i by name.
        grams: K_i.
        prior: P, symmetric positive definite.
    """
    total = sum(grams, torch.zeros_like(prior))
    factor = torch.linalg.cholesky(total + prior)
    shared = torch.cholesky_solve(total @ right.double(), factor)
    fused = {}
    for name, w in weights.items():
        ups, downs = zip(*(lora[name] for lora in loras), strict=True)
        seen = torch.cat([k @ down.double().T for k, down in zip(grams, downs, strict=True)], 1)
        up = torch.cat([w.double().cpu() @ left.double(), *(u.double() for u in ups)], 1)
        down = torch.cat([shared, torch.cholesky_solve(seen, factor)], 1).T
        if len(down) >= min(w.shape):
            both, one = up @ down, torch.eye(min(w.shape), dtype=torch.float64)
            up, down = (one, both) if w.shape[0] < w.shape[1] else (both, one)
        fused[name] = (up, down)
    return fused
