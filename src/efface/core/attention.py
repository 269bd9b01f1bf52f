"""Cross-attention maps, recorded during predictions: how much each position of a picture attends to a concept's tokens."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from jaxtyping import Bool, Float
from torch import Tensor

from efface.core.denoiser import Cond, Denoiser
from efface.core.errors import UsageError

Maps = Mapping[str, Float[Tensor, "b heads places s"]]


def own(cond: Cond, names: Sequence[Cond]) -> Bool[Tensor, "b n"]:
    """True at the token positions of each prompt's concept: wherever the token ids of `names[i]` occur in prompt i.

    Raises:
        UsageError: a prompt does not contain its concept.
    """
    owned = torch.zeros_like(cond.mask, dtype=torch.bool)
    for i, row in enumerate(owned):
        (words,), (ids,), places = names[i].word_ids(), cond[[i]].word_ids(), cond.words[i].nonzero()[:, 0]
        starts = [k for k in range(len(ids) - len(words) + 1) if ids[k : k + len(words)] == words]
        if not starts:
            raise UsageError(
                f"attention: expected prompts that contain their concept, got prompt {i} without it; give a shorter prompt"
            )
        for k in starts:
            row[places[k : k + len(words)]] = True
    return owned


@contextmanager
def recorded(model: Denoiser, own: Bool[Tensor, "#b n"]) -> Iterator[dict[str, Tensor]]:
    """Record the attention that each cross-attention layer pays to the positions `own` while `model` predicts, with gradients.

    Yields a dictionary that each call of `model.predict` overwrites: {layer: softmax(q kᵀ scale) (b, heads, places, s)}, where s runs
    over the positions that any prompt owns; a prompt's values are 0 at positions it does not own. Works for stock attention with any
    backend.
    """
    maps: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name, attention in model.cross_attentions().items():
            _listen(stack, name, attention.layer, own, maps)
        yield maps


def _listen(stack: ExitStack, name: str, layer: Attention, own: Tensor, maps: dict[str, Tensor]) -> None:
    heard: dict[str, Tensor] = {}
    inner = stack.enter_context(ExitStack())

    def begin(*_: Any) -> None:
        for part in (
            "to_q",
            "to_k",
        ):  # registered here, since hooks run in order of registration, after those of adapters
            hook = getattr(layer, part).register_forward_hook(lambda m, i, out, part=part: heard.update({part: out}))
            inner.callback(hook.remove)

    def end(_: Any, given: Any, named: dict[str, Any], out: Any) -> None:
        inner.close()
        q, k = (heard.pop(part).unflatten(2, (layer.heads, -1)).transpose(1, 2) for part in ("to_q", "to_k"))
        scores = q @ k.transpose(2, 3) * layer.scale
        if (hidden := named.get("attention_mask")) is not None:  # set when an edit's keys append rows
            scores = scores + hidden[:, None]
        attention = scores.softmax(3, dtype=torch.promote_types(scores.dtype, torch.float32))
        used = own.any(0).nonzero()[:, 0]
        maps[name] = attention[..., used] * own[:, None, None, used].to(attention)

    stack.callback(layer.register_forward_pre_hook(begin).remove)
    stack.callback(layer.register_forward_hook(end, with_kwargs=True).remove)


def heat(maps: Maps, shape: tuple[int, int], side: int = 16) -> Float[Tensor, "b h w"]:
    """Attention of each picture to its concept, scaled to [0, 1]: the mean over heads, tokens and the layers of one resolution.

    Args:
        maps: as recorded.
        shape: height and width of the latents; all layers have this aspect ratio.
        side: use the layers whose height is nearest to this; Stable Diffusion's maps of height 16 show objects best.
    """
    near = min({grid(m, shape) for m in maps.values()}, key=lambda g: abs(g[0] - side))
    layers = [m for m in maps.values() if grid(m, shape) == near]
    mean = torch.stack([m.mean(1).sum(2) for m in layers]).mean(0)
    low, high = mean.amin(1, keepdim=True), mean.amax(1, keepdim=True)
    return ((mean - low) / (high - low).clamp(min=1e-12)).unflatten(1, near)


def grid(map: Float[Tensor, "b heads places s"], shape: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a layer's attention map, for latents of `shape`."""
    width = round((map.shape[2] * shape[1] / shape[0]) ** 0.5)
    return map.shape[2] // width, width


def resized(masks: Float[Tensor, "b h w"], size: tuple[int, int]) -> Float[Tensor, "b places"]:
    """Masks at a layer's resolution: the masked share of each position."""
    return torch.nn.functional.adaptive_avg_pool2d(masks, size).flatten(1)


def attention_loss(
    maps: Maps, masks: Float[Tensor, "b h w"], shape: tuple[int, int], squared: bool = True
) -> Float[Tensor, ""]:
    """Attention from inside the masks to the recorded positions: the mean square, or the norm, of each layer, summed over layers."""
    total = masks.new_zeros(())
    for m in maps.values():
        inside = m * resized(masks, grid(m, shape))[:, None, :, None]
        total = total + (
            inside.square().sum(3).mean() if squared else torch.linalg.vector_norm(inside, dim=(1, 2, 3)).mean()
        )
    return total


def focal(levels: int, low: int = 200, high: int = 400, sharpness: float = 0.05) -> Float[Tensor, "t"]:
    """Sampling probability of each noise level: σ(g (t - t1)) - σ(g (t - t2)), the levels at which concepts form (MACE, eq. 5)."""
    t = torch.arange(levels, dtype=torch.float64)
    density = torch.sigmoid(sharpness * (t - low)) - torch.sigmoid(sharpness * (t - high))
    return density / density.sum()
