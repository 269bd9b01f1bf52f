"""Bottlenecks: the net against NumPy, where it sits, and what it leaves alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention
from oracles import receler as oracle
from torch import Generator, Tensor
from toys import moved, probe

from efface.core.branches.bottlenecks import PARTS, Bottlenecks, noted
from efface.core.denoiser import Denoiser
from efface.core.edit import Adapter, load_edit


def filled(base: Denoiser, seed: int = 0, width: int = 3) -> Bottlenecks:
    """Nets that add something: `up` and its bias are drawn too."""
    rng = Generator().manual_seed(seed)
    new = Bottlenecks.new(base, width, rng)
    draw = {k: 0.3 * torch.randn(t.shape, generator=rng) for k, t in new.tensors.items() if "/up" in k}
    return Bottlenecks({**new.tensors, **draw})


def sites(base: Denoiser) -> list[str]:
    unet = base.modules()["unet"]
    return [f"unet.{name}" for name, m in unet.named_modules() if isinstance(m, Attention) and name.endswith("attn2")]


def outputs(model: Denoiser, base: Denoiser) -> dict[str, Tensor]:
    """What each cross-attention hands on when `model` predicts, by site."""
    seen: dict[str, Tensor] = {}
    handles = []
    for name, module in base.modules()["unet"].named_modules():
        if name.endswith("norm3"):  # is given the cross-attention's output plus what went round it
            hook = lambda m, given, name=name: seen.update({name: given[0].detach()})  # noqa: E731
            handles.append(module.register_forward_pre_hook(hook))
    try:
        probe(model, "tiger")
    finally:
        for handle in handles:
            handle.remove()
    return seen


def test_a_net_is_the_papers(base: Denoiser) -> None:
    branch, rng = filled(base), np.random.default_rng(0)
    added = branch.additions(base)(base.embed(["tiger"]))
    assert list(added) == sites(base)
    for site in list(added)[::3]:
        weights = [branch.tensors[f"{site}/{part}"].double().numpy() for part in PARTS]
        out = rng.normal(size=(2, 4, weights[0].shape[1]))
        got = added[site](torch.zeros(1), torch.from_numpy(out))
        np.testing.assert_allclose(got.numpy(), oracle.added(out, *weights), atol=1e-12)


def test_new_ones_add_nothing_and_begin_as_linear_layers_do(base: Denoiser) -> None:
    branch = Bottlenecks.new(base, 64, Generator().manual_seed(0))
    assert torch.equal(probe(Adapter(branch)(base), "tiger"), probe(base, "tiger"))
    for site in sites(base):
        down, bias, up, up_bias = (branch.tensors[f"{site}/{part}"] for part in PARTS)
        size = len(up)
        assert (down.shape, bias.shape, up.shape, up_bias.shape) == ((64, size), (64,), (size, 64), (size,))
        assert not up.any()
        assert not up_bias.any()
        for t in (down, bias):
            assert t.abs().max() <= size**-0.5
            assert t.std() == pytest.approx((3 * size) ** -0.5, rel=0.2)  # uniform


def test_the_first_net_adds_to_the_output_of_its_cross_attention(base: Denoiser) -> None:
    branch, first = filled(base), sites(base)[0]
    alone = Bottlenecks({k: t for k, t in branch.tensors.items() if k.startswith(first + "/")})
    own: list[Tensor] = []
    hook = base.modules()["unet"].get_submodule(first.removeprefix("unet."))
    handle = hook.register_forward_hook(lambda m, given, out: own.append(out.detach()))
    before = outputs(base, base)
    handle.remove()
    after = outputs(Adapter(alone)(base), base)
    key = first.removeprefix("unet.").replace("attn2", "norm3")
    weights = [branch.tensors[f"{first}/{part}"].double().numpy() for part in PARTS]
    expected = oracle.added(own[0].double().numpy(), *weights)
    np.testing.assert_allclose((after[key] - before[key]).numpy(), expected, atol=1e-5)
    assert abs(expected).max() > 0.1
    assert [k for k in before if torch.equal(before[k], after[k])] == []  # all later ones hear of it


def test_strength_scales_what_is_added_and_two_edits_add_up(base: Denoiser) -> None:
    one, two = Adapter(filled(base)), Adapter(filled(base, seed=1))
    key = sites(base)[0].removeprefix("unet.").replace("attn2", "norm3")
    plain, a, b, half, both = (
        outputs(m, base)[key] for m in (base, one(base), two(base), (one * 0.5)(base), (one + two)(base))
    )
    torch.testing.assert_close(half - plain, 0.5 * (a - plain), atol=1e-5, rtol=0)
    torch.testing.assert_close(both - plain, (a - plain) + (b - plain), atol=1e-5, rtol=0)


def test_every_tensor_learns(base: Denoiser) -> None:
    branch = filled(base)
    branch.tensors = {k: t.requires_grad_(True) for k, t in branch.tensors.items()}
    student = base.fork(())
    student.branches = (branch.bind(base),)
    x = torch.randn(2, *base.latent_shape, generator=Generator().manual_seed(0))
    loss = student.predict(x, torch.tensor([900, 100]), base.embed(["tiger"])).square().mean()
    grads = torch.autograd.grad(loss, list(branch.tensors.values()))
    assert all(g.any() for g in grads)


def test_what_is_added_can_be_noted(base: Denoiser) -> None:
    branch, added = filled(base), dict[str, Tensor]()
    student = base.fork(())
    student.branches = (noted(branch.bind(base), added),)
    got = probe(student, "tiger")
    assert torch.equal(got, probe(Adapter(branch)(base), "tiger"))
    assert set(added) == set(sites(base))
    first = added[sites(base)[0]]
    probe(student, "lion")
    assert not torch.equal(added[sites(base)[0]], first)  # the latest prediction's


def test_its_file_brings_it_back(base: Denoiser, tmp_path: Path) -> None:
    edit = Adapter(filled(base))
    edit.save(tmp_path / "x.safetensors")
    again = load_edit(tmp_path / "x.safetensors")
    assert torch.equal(probe(again(base), "tiger"), probe(edit(base), "tiger"))
    assert moved(base, again(base), "tiger") > 0.1
