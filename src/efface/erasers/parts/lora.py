"""LoRA factors of rank 1 on a model's projections, for training (MACE)."""

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from efface.core.hooks import Added


def lora(weights: Mapping[str, Tensor], rng: Generator) -> dict[str, Tensor]:
    """Initial factors for matrices: up is 0, down is drawn from N(0, 1)."""
    ups = {f"{name}/up": torch.zeros(len(w), 1) for name, w in weights.items()}
    return ups | {f"{name}/down": torch.randn(1, w.shape[1], generator=rng) for name, w in weights.items()}


def added(leaves: Mapping[str, Tensor]) -> dict[str, Added]:
    """What the factors add to the output of each projection, with gradients."""

    def add(name: str) -> Added:
        return lambda rows, out: rows @ leaves[f"{name}/down"].to(rows).T @ leaves[f"{name}/up"].to(rows).T

    names = [key.removesuffix("/up") for key in leaves if key.endswith("/up")]
    return {name.removesuffix(".weight"): add(name) for name in names}
