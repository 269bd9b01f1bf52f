"""LoRA factors of rank 1: they begin as the released ones do, and add what they are."""

import math

import torch

from efface.erasers.parts.lora import added, lora


def test_up_is_zero_and_down_is_standard_normal() -> None:
    n = 100_000
    leaves = lora({"a": torch.ones(3, n), "b": torch.ones(2, n)}, torch.Generator().manual_seed(0))
    assert {k: tuple(v.shape) for k, v in leaves.items()} == {
        "a/up": (3, 1), "b/up": (2, 1), "a/down": (1, n), "b/down": (1, n),
    }  # fmt: skip
    assert not leaves["a/up"].any()
    assert not leaves["b/up"].any()
    for down in (leaves["a/down"][0].double(), leaves["b/down"][0].double()):
        assert abs(float(down.mean())) < 4 / n**0.5
        assert abs(float(down.square().mean()) - 1) < 4 * (2 / n) ** 0.5
        cdf = 0.5 * (1 + torch.erf(down.sort().values / math.sqrt(2)))
        steps = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        assert float((cdf - steps).abs().max()) < 1.95 / n**0.5  # Kolmogorov and Smirnov: one in a thousand is beyond
    assert abs(float((leaves["a/down"] * leaves["b/down"]).mean())) < 4 / n**0.5  # each its own


def test_they_add_up_times_down() -> None:
    rng = torch.Generator().manual_seed(0)
    leaves = {"w.weight/up": torch.randn(3, 1, generator=rng), "w.weight/down": torch.randn(1, 4, generator=rng)}
    rows = torch.randn(2, 5, 4, generator=rng)
    out = added(leaves)["w"](rows, torch.zeros(2, 5, 3))
    for i in range(2):
        for j in range(5):
            along = sum(float(rows[i, j, k]) * float(leaves["w.weight/down"][0, k]) for k in range(4))
            for o in range(3):
                assert abs(float(out[i, j, o]) - along * float(leaves["w.weight/up"][o, 0])) < 1e-5
