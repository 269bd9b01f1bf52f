"""What anyone can do to a model's weights without training: round them, merge them with the unedited ones, put a network back."""

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from efface.core.denoiser import Denoiser
from efface.core.errors import UsageError, nearest

Change = Callable[[Tensor, Tensor], Tensor]  # (weight, the same weight of the unedited model) -> new weight


def rounded(dtype: torch.dtype) -> Change:
    """Weights as a file of that dtype has them; the model still computes in its own."""
    return lambda w, before: w.to(dtype).to(w.dtype)


def quantised(w: Tensor, before: Tensor) -> Tensor:
    """Matrices and kernels in 8 bits, symmetric, one scale for each output channel; vectors as they are."""
    if w.ndim < 2:
        return w
    scale = w.flatten(1).abs().amax(1).clamp(min=1e-12).view(-1, *[1] * (w.ndim - 1)) / 127
    return (w / scale).round() * scale


def merged(w: Tensor, before: Tensor) -> Tensor:
    """Half the model's weights, half the unedited ones, as merging tools do."""
    return (w + before) / 2


def pruned(share: float) -> Change:
    """Matrices and kernels without this share of their values, the smallest by size."""
    return lambda w, before: (
        w if w.ndim < 2 else w * (w.abs() > w.abs().flatten().kthvalue(max(1, round(share * w.numel()))).values)
    )


WEIGHTS: dict[str, Change] = {
    "float16": rounded(torch.float16), "bfloat16": rounded(torch.bfloat16), "int8": quantised, "merged": merged,
}  # fmt: skip
PRUNED: dict[str, Change] = {"pruned-10": pruned(0.1), "pruned-30": pruned(0.3)}
NETWORKS = {"text-encoder": "text_encoder", "autoencoder": "vae"}  # put back from the unedited model
NAMES = (*WEIGHTS, *NETWORKS, *PRUNED)


@torch.no_grad()
def altered(model: Denoiser, base: Denoiser, name: str) -> Denoiser:
    """`model` after one of `NAMES`; `base` is the unedited model. Corrections, branches and keys of an edit stay.

    Raises:
        UsageError: no such alteration.
    """
    if name in NETWORKS:
        changed = copy.copy(model)
        with warnings.catch_warnings():  # diffusers warns when a component is assigned to a copied pipeline
            warnings.simplefilter("ignore")
            changed.pipeline = copy.copy(model.pipeline)
            for part in (p for p in vars(base.pipeline) if p.startswith(NETWORKS[name])):  # all text encoders
                setattr(changed.pipeline, part, getattr(base.pipeline, part))
        return changed
    if name not in NAMES:
        raise UsageError(f"alteration: unknown {name!r}; {nearest(name, NAMES)}")
    names = [*model.params("denoiser"), *model.params("text")]
    changed, before = model.fork(names), base.params(names)
    for key, w in changed.params(names).items():
        w.copy_({**WEIGHTS, **PRUNED}[name](w, before[key]))
    return changed
