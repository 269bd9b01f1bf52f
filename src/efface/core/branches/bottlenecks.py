"""Bottleneck adapters: a two-layer network that adds to the output of each cross-attention, for every prompt (Receler)."""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn.functional import gelu
from typing_extensions import override  # in typing from Python 3.12

from efface.core.branch import Branch
from efface.core.cond import Cond
from efface.core.denoiser import Denoiser
from efface.core.errors import UsageError
from efface.core.hooks import Added, BoundBranch

PARTS = ("down", "down_bias", "up", "up_bias")


class Bottlenecks(Branch):
    """up GELU(down o + down_bias) + up_bias for the output o of each "unet.….attn2"; "unet.….attn2/down" is one of the tensors."""

    @classmethod
    def new(cls, base: Denoiser, width: int, rng: Generator) -> "Bottlenecks":
        """New adapters of `width` hidden units, initialised as linear layers, except `up` and its bias, which are zero."""
        tensors = {}
        for name, attention in base.cross_attentions().items():
            size = attention.layer.out_dim
            down, bias = ((2 * torch.rand(shape, generator=rng) - 1) / size**0.5 for shape in ((width, size), (width,)))
            begin = (down, bias, torch.zeros(size, width), torch.zeros(size))
            tensors |= {f"{name}/{part}": t for part, t in zip(PARTS, begin, strict=True)}
        return cls(tensors)

    @override
    def additions(self, base: Denoiser) -> Callable[[Cond], dict[str, Added]]:
        sites = dict.fromkeys(key.rpartition("/")[0] for key in self.tensors)
        here = {name: attention.layer.out_dim for name, attention in base.cross_attentions().items()}
        for site in sites:
            if here.get(site) != (width := len(self.tensors[f"{site}/up"])):
                raise UsageError(
                    f"edit: expected a cross-attention {site} of width {width}, got {here.get(site, 'none')}; "
                    "give a model of the same shape as the one it was made for"
                )
        added = {site: _adding(*(self.tensors[f"{site}/{part}"] for part in PARTS)) for site in sites}
        return lambda cond: added


def _adding(down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> Added:
    def add(given: Tensor, out: Float[Tensor, "b places d"]) -> Float[Tensor, "b places d"]:
        a, b, c, d = (w.to(out) for w in (down, down_bias, up, up_bias))
        return gelu(out @ a.T + b) @ c.T + d

    return add


def noted(bound: BoundBranch, added: dict[str, Tensor]) -> BoundBranch:
    """The same branch, which also stores in `added` what it adds at each site in the latest prediction."""

    def noting(site: str, add: Added) -> Added:
        def run(given: Tensor, out: Tensor) -> Tensor:
            added[site] = add(given, out)
            return added[site]

        return run

    return replace(bound, added=lambda cond: {site: noting(site, add) for site, add in bound.added(cond).items()})
