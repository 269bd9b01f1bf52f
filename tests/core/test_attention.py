"""Recorded cross-attention against diffusers' own probabilities and NumPy; masks and the loss made of it."""

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from oracles import mace as oracle
from torch import Tensor
from toys import tiny

from efface.core.attention import attention_loss, focal, grid, heat, own, recorded, resized
from efface.core.denoiser import Denoiser
from efface.core.errors import UsageError

PROMPTS = ["a tiger on a house", "a picture of a tiger"]


@pytest.fixture
def said(base: Denoiser) -> Tensor:
    return own(base.embed(PROMPTS), [base.embed(["tiger"])] * 2)


@pytest.fixture
def x(base: Denoiser) -> Tensor:
    return torch.randn(2, *base.latent_shape, generator=torch.Generator().manual_seed(1))


T = torch.tensor([900, 200])


def test_own_words_are_found_wherever_they_stand(base: Denoiser) -> None:
    prompts = ["a tiger of a tiger", "red leopard", "red leopard house", "Leopard"]
    names = [base.embed([n]) for n in ("tiger", "leopard", "leopard house", "leopard")]
    cond = base.embed(prompts)
    words = [n.ids[0, 1 : int(n.mask.sum()) - 1].tolist() for n in names]
    for ids, found, name in zip(cond.ids.tolist(), own(cond, names).tolist(), words, strict=True):
        places = [i for i, yes in enumerate(found) if yes]
        assert [ids[i] for i in places] in (name, name * 2)
    assert own(cond, names).sum(1).tolist() == [2, *(len(name) for name in words[1:])]
    assert len(words[1]) > 1  # a name of several tokens
    assert own(cond, names)[1].nonzero()[0] == 2
    with pytest.raises(
        UsageError, match=r"^attention: expected prompts that contain their concept, got prompt 1 without it"
    ):
        own(base.embed(["tiger", "lion"]), [names[0]] * 2)


@pytest.mark.parametrize("hidden", [False, True])  # some tokens, as an edit's keys do
def test_it_is_what_the_layers_pay(
    base: Denoiser, said: Tensor, x: Tensor, monkeypatch: pytest.MonkeyPatch, hidden: bool
) -> None:
    cond = base.embed(PROMPTS)
    given = {"encoder_hidden_states": cond.tokens, "encoder_attention_mask": cond.mask if hidden else None}
    with torch.no_grad(), recorded(base, said) as maps:
        plain = base.pipeline.unet(x, T, **given).sample
    paid: dict[int, Tensor] = {}
    scores = Attention.get_attention_scores

    def noted(self: Attention, *given: Tensor) -> Tensor:
        paid[id(self)] = scores(self, *given)
        return paid[id(self)]

    monkeypatch.setattr(Attention, "get_attention_scores", noted)
    twin = tiny()  # of the same weights, with the processor that computes them openly
    twin.pipeline.unet.set_attn_processor(AttnProcessor())
    torch.testing.assert_close(twin.pipeline.unet(x, T, **given).sample, plain, atol=1e-4, rtol=1e-4)
    layers = {f"unet.{k}": m for k, m in twin.pipeline.unet.named_modules() if k.endswith("attn2")}
    assert maps.keys() == layers.keys()
    columns = said.any(0)
    assert columns.sum() == 2
    for name, layer in layers.items():
        dense = paid[id(layer)].unflatten(0, (2, layer.heads))
        want = dense[..., columns] * said[:, None, None, columns]
        assert (want != 0).any(1).any(1).sum() == 2  # each prompt has its own column
        torch.testing.assert_close(maps[name], want, atol=1e-5, rtol=1e-4)


def test_it_is_the_papers_softmax_and_carries_the_gradient(base: Denoiser, said: Tensor, x: Tensor) -> None:
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn2"
    layer = base.pipeline.unet.get_submodule(name.removeprefix("unet."))
    heard: dict[str, Tensor] = {}
    handles = [
        getattr(layer, part).register_forward_hook(lambda m, i, out, part=part: heard.update({part: out.detach()}))
        for part in ("to_q", "to_k")
    ]
    cond = base.embed(PROMPTS)
    shift = torch.zeros(1, requires_grad=True)
    handles.append(layer.to_k.register_forward_hook(lambda m, i, out: out + shift * said[..., None]))
    with recorded(base, said) as maps:
        base.predict(x, T, cond)
    for handle in handles:
        handle.remove()
    for i in range(2):
        q, k = (heard[part][i].double().numpy() for part in ("to_q", "to_k"))
        want = oracle.attention(q, k, layer.heads)[..., said.any(0).numpy()] * said[i, said.any(0)].numpy()
        np.testing.assert_allclose(maps[name][i].detach().numpy(), want, atol=1e-6)
    (slope,) = torch.autograd.grad(maps[name].square().sum(), shift)
    total = []
    for step in (-1e-4, 1e-4):
        moved = [heard["to_k"][i].double().numpy() + step * said[i, :, None].numpy() for i in range(2)]
        maps_ = [oracle.attention(heard["to_q"][i].double().numpy(), moved[i], layer.heads) for i in range(2)]
        total.append(sum((a[..., said[i].numpy()] ** 2).sum() for i, a in enumerate(maps_)))
    assert float(slope) == pytest.approx((total[1] - total[0]) / 2e-4, rel=1e-3)
    assert abs(float(slope)) > 1e-3


def test_it_sees_what_is_added_beside_a_layer_and_leaves_nothing_behind(
    base: Denoiser, said: Tensor, x: Tensor
) -> None:
    cond, unet = base.embed(PROMPTS), base.pipeline.unet
    count = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in unet.modules())
    with torch.no_grad(), recorded(base, said) as maps:
        base.predict(x, T, cond)
        before = dict(maps)
        name = next(iter(maps))
        added = unet.get_submodule(name.removeprefix("unet.")).to_k.register_forward_hook(lambda m, i, out: 2 * out)
        base.predict(x, T, cond)
        added.remove()
        assert not torch.allclose(maps[name], before[name])
    with pytest.raises(RuntimeError), recorded(base, said):
        base.predict(x[:, :1], T, cond)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in unet.modules()) == count


def test_heat_is_a_mean_of_one_resolution_between_0_and_1() -> None:
    rng = torch.Generator().manual_seed(0)
    maps = {k: torch.rand(2, 4, n, 3, generator=rng) for k, n in (("a", 128), ("b", 32), ("c", 32), ("d", 8))}
    got = heat(maps, (8, 16), side=4)
    mean = (maps["b"].double().numpy() + maps["c"].double().numpy()).mean(1).sum(2)
    for i in range(2):
        want = (mean[i] - mean[i].min()) / (mean[i].max() - mean[i].min())
        np.testing.assert_allclose(got[i].flatten().numpy(), want, atol=1e-6)
    assert got.shape == (2, 4, 8)
    assert heat(maps, (8, 16)).shape == (2, 8, 16)  # nearest to 16
    assert grid(maps["d"], (8, 16)) == (2, 4)


def test_masks_are_seen_at_every_resolution() -> None:
    mask = (torch.rand(2, 8, 16, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    for size in ((8, 16), (4, 8), (2, 4)):
        for i in range(2):
            want = oracle.shrunk(mask[i].numpy(), *size)
            np.testing.assert_allclose(resized(mask, size)[i].numpy(), want, atol=1e-6)


@pytest.mark.parametrize("squared", [True, False])
def test_the_loss_is_the_papers(squared: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    maps = {k: torch.rand(2, 3, n, 2, generator=rng) for k, n in (("a", 64), ("b", 16))}
    masks = (torch.rand(2, 8, 8, generator=rng) > 0.5).float()
    small = [np.stack([oracle.shrunk(m.numpy(), n, n) for m in masks]) for n in (8, 4)]
    want = oracle.loss([m.numpy() for m in maps.values()], small, squared)
    assert float(attention_loss(maps, masks, (8, 8), squared)) == pytest.approx(want, rel=1e-5)
    assert attention_loss(maps, torch.zeros_like(masks), (8, 8), squared) == 0


def test_noise_levels_are_met_where_concepts_take_shape() -> None:
    density = focal(1000)
    assert float(density.sum()) == pytest.approx(1)
    assert int(density.argmax()) == 300
    assert float(density[520:].sum()) < 1e-3
    for t in (0, 150, 200, 299, 400, 999):
        assert float(density[t]) == pytest.approx(oracle.focal(t), rel=1e-9)
