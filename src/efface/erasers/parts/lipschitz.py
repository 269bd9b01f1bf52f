"""Lipschitz bounds of a cross-attention's output in its keys and values, from its weights alone (CPE, theorem 1)."""

from collections.abc import Iterable
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from efface.core.denoiser import Denoiser


def of_sites(
    base: Denoiser, sites: Iterable[str], rows: Float[Tensor, "b t d"], as_released: bool = False
) -> list[float]:
    """λ of every key and value ("unet.….attn2.to_k") of a denoiser that reads prompts such as `rows`."""
    layers = base.cross_attentions()
    largest, found = float(rows.flatten(1).norm(dim=1).max()), []
    for site in sites:
        name, _, part = site.rpartition(".")
        attn, norm = cast(Any, layers[name].layer), layers[name].norm
        q, v, out = (w.detach().float() for w in (attn.to_q.weight, attn.to_v.weight, attn.to_out[0].weight))
        bound = cross_attention(q, v, out, attn.heads, normalised(norm), largest)
        found.append((released(q, v, out, rows.shape[1]) if as_released else bound)[part == "to_v"])
    return found


def cross_attention(
    to_q: Float[Tensor, "c c"],
    to_v: Float[Tensor, "c d"],
    to_out: Float[Tensor, "c c"],
    heads: int,
    queries: float,
    rows: float,
) -> tuple[float, float]:
    """(λ_k, λ_v) with |ΔCA| <= λ_k |ΔK|_F + λ_v |ΔV|_F for every query token.

        λ_k = ½ σ(W_o) max_h σ(W_v,h) M_E max_h σ(W_q,h) M_z / √d_h,  λ_v = σ(W_o),  σ = largest singular value

    ½ is the Lipschitz constant of a softmax; each head has its own weights, so that σ(W_o W_v) over all heads would be no bound.

    Args:
        to_q: weights of the queries; with `to_v` and `to_out` those of one cross-attention.
        to_v: weights of the values.
        to_out: weights of the output.
        heads: that share the channels.
        queries: M_z, the largest norm of a query token.
        rows: M_E, the largest norm of a prompt's rows, all of them together.
    """
    out = _spectral(to_out)
    q, v = (max(_spectral(head) for head in w.chunk(heads)) for w in (to_q, to_v))
    return 0.5 * out * v * rows * q * queries / (len(to_q) / heads) ** 0.5, out


def released(
    to_q: Float[Tensor, "c c"], to_v: Float[Tensor, "c d"], to_out: Float[Tensor, "c c"], length: int
) -> tuple[float, float]:
    """(λ_k, λ_v) as in CPE's code, without the norms of the inputs."""
    return _spectral(to_out @ to_v) * _spectral(to_q) / length, _spectral(to_out)


def normalised(norm: nn.LayerNorm) -> float:
    """The largest norm of a layer norm's output."""
    gain, bias = norm.weight.detach(), norm.bias.detach()
    return float(gain.abs().max() * gain.numel() ** 0.5 + bias.norm())


def _spectral(w: Tensor) -> float:
    return float(torch.linalg.matrix_norm(w.detach().float(), 2))
