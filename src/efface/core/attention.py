"""Cross-attention, recorded while a denoiser predicts: which places of a picture listen to which words."""

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
    """Token positions of each prompt that say its concept: where the ids of `names[i]`, embedded alone, stand in prompt i.

    Raises:
        UsageError: a prompt does not say its concept.
    """
    said = torch.zeros_like(cond.mask, dtype=torch.bool)
    for i, row in enumerate(said):
        (words,), (ids,), places = names[i].word_ids(), cond[[i]].word_ids(), cond.words[i].nonzero()[:, 0]
        starts = [k for k in range(len(ids) - len(words) + 1) if ids[k : k + len(words)] == words]
        if not starts:
            raise UsageError(
                f"attention: expected prompts that say their concept, got prompt {i} without it; give a shorter prompt"
            )
        for k in starts:
            row[places[k : k + len(words)]] = True
    return said


@contextmanager
def recorded(model: Denoiser, own: Bool[Tensor, "#b n"]) -> Iterator[dict[str, Tensor]]:
    """Attention that each cross-attention pays to the positions `own` while `model` predicts, with gradient where there is one.

    Yields a dictionary that each call of `model.predict` fills anew: {layer: softmax(q kᵀ scale) (b, heads, places, s)}, where s runs
    over the positions that any prompt owns and is 0 where this prompt does not. It holds for stock attention, whatever its backend.
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
        for part in ("to_q", "to_k"):  # only now: hooks run in the order they came, and adapters have added theirs
            hook = getattr(layer, part).register_forward_hook(lambda m, i, out, part=part: heard.update({part: out}))
            inner.callback(hook.remove)

    def end(_: Any, given: Any, named: dict[str, Any], out: Any) -> None:
        inner.close()
        q, k = (heard.pop(part).unflatten(2, (layer.heads, -1)).transpose(1, 2) for part in ("to_q", "to_k"))
        scores = q @ k.transpose(2, 3) * layer.scale
        if (hidden := named.get("attention_mask")) is not None:  # as an edit's keys hide padding
            scores = scores + hidden[:, None]
        attention = scores.softmax(3, dtype=torch.promote_types(scores.dtype, torch.float32))
        used = own.any(0).nonzero()[:, 0]
        maps[name] = attention[..., used] * own[:, None, None, used].to(attention)

    stack.callback(layer.register_forward_pre_hook(begin).remove)
    stack.callback(layer.register_forward_hook(end, with_kwargs=True).remove)


def heat(maps: Maps, shape: tuple[int, int], side: int = 16) -> Float[Tensor, "b h w"]:
    """Where each picture listens to its concept, between 0 and 1: the mean over heads, tokens and the layers of one resolution.

    Args:
        maps: as recorded.
        shape: height and width of the latents, which all layers share but for their scale.
        side: the layers whose height is nearest to it are used; 16 is where Stable Diffusion's show objects best.
    """
    near = min({grid(m, shape) for m in maps.values()}, key=lambda g: abs(g[0] - side))
    layers = [m for m in maps.values() if grid(m, shape) == near]
    mean = torch.stack([m.mean(1).sum(2) for m in layers]).mean(0)
    low, high = mean.amin(1, keepdim=True), mean.amax(1, keepdim=True)
    return ((mean - low) / (high - low).clamp(min=1e-12)).unflatten(1, near)


def grid(map: Float[Tensor, "b heads places s"], shape: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a layer that sees latents of `shape` at some scale."""
    width = round((map.shape[2] * shape[1] / shape[0]) ** 0.5)
    return map.shape[2] // width, width


def resized(masks: Float[Tensor, "b h w"], size: tuple[int, int]) -> Float[Tensor, "b places"]:
    """Masks at a layer's resolution, one number a place: the share of each place that is masked."""
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
    """How often each noise level is met: σ(g (t - t1)) - σ(g (t - t2)), where concepts take shape (MACE, eq. 5)."""
    t = torch.arange(levels, dtype=torch.float64)
    density = torch.sigmoid(sharpness * (t - low)) - torch.sigmoid(sharpness * (t - high))
    return density / density.sum()
