"""Membranes (SPM): a rank-1 adapter for each concept at every layer of the transformers, gated by the prompt's similarity to it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from typing_extensions import override  # in typing from Python 3.12

from efface.core.branch import Branch
from efface.core.cond import Cond
from efface.core.denoiser import Denoiser
from efface.core.errors import UsageError
from efface.core.hooks import Added, BoundBranch

Rule = Literal["centred", "released"]
Layer = nn.Linear | nn.Conv2d


class Membranes(Branch):
    """Adds Σ_i γ_i up_i (down_i x) at each site, where γ_i in [0, 1] is the gate of concept i for the prompt.

    `tensors` are "site/down", (n in) or for a convolution (n in kh kw), and "site/up", (n out); `facts` are each concept's phrases and
    the gate's rule. With the rule "released" γ multiplies both factors, which are summed first: (Σ_i γ_i up_i) Σ_j γ_j down_j x.
    """

    @classmethod
    def shut(cls, base: Denoiser, phrases: Sequence[Sequence[str]], rule: Rule, rng: Generator) -> "Membranes":
        """New membranes, one for each concept's phrases; `up` is 0, so they add nothing."""
        n, tensors = len(phrases), {}
        for site, layer in sites(base).items():
            out, *given = layer.weight.shape
            tensors[f"{site}/down"] = torch.randn(n, *given, generator=rng) / layer.weight[0].numel() ** 0.5
            tensors[f"{site}/up"] = torch.zeros(n, out)
        plain = [[" ".join(phrase.lower().split()) for phrase in p] for p in phrases]  # as the tokenizer reads them
        return cls(tensors, {"phrases": plain, "gate": rule})

    @override
    def additions(self, base: Denoiser) -> Callable[[Cond], dict[str, Added]]:
        layers, opens = self._layers(base), gate(base, self.facts["phrases"], self.facts["gate"])
        return lambda cond: self._added(layers, opens(cond))

    def opener(self, base: Denoiser) -> Callable[[Float[Tensor, "b n"]], BoundBranch]:
        """A function from given gates (b n) to the bound branch, for training: the prompts do not set the gates."""
        layers = self._layers(base)
        return lambda gamma: BoundBranch(lambda cond: self._added(layers, gamma), 1.0, "")

    def _layers(self, base: Denoiser) -> dict[str, Layer]:
        here = sites(base)
        for site in (key.removesuffix("/up") for key in self.tensors if key.endswith("/up")):
            shape = (self.tensors[f"{site}/up"].shape[1], *self.tensors[f"{site}/down"].shape[1:])
            if site not in here or here[site].weight.shape != shape:
                raise UsageError(
                    f"edit: expected a layer {site} of shape {shape}, got {tuple(here[site].weight.shape) if site in here else 'none'}; "
                    "give a model of the same shape as the one it was made for"
                )
        return {site: layer for site, layer in here.items() if f"{site}/up" in self.tensors}

    def _added(self, layers: dict[str, Layer], gamma: Float[Tensor, "b n"]) -> dict[str, Added]:
        mixed = self.facts["gate"] == "released"
        return {
            site: partial(through, layer, self.tensors[f"{site}/down"], self.tensors[f"{site}/up"], gamma, mixed)
            for site, layer in layers.items()
        }


def sites(base: Denoiser) -> dict[str, Layer]:
    """Every linear layer and convolution inside the denoiser's transformers."""
    return {
        f"{outer}.{name}": layer
        for outer, transformer in base.transformers().items()
        for name, layer in transformer.named_modules()
        if isinstance(layer, Layer)
    }


def through(
    layer: Layer,
    down: Tensor,
    up: Float[Tensor, "n out"],
    gamma: Float[Tensor, "b n"],
    mixed: bool,
    given: Tensor,
    out: Tensor,
) -> Tensor:
    """What membranes add to a layer's output; a convolution's `down` uses the layer's kernel size, stride and padding."""
    into = down.to(given)
    if isinstance(layer, nn.Conv2d):
        passed = F.conv2d(given, into, None, layer.stride, layer.padding, layer.dilation).movedim(1, -1)
    else:
        passed = given @ into.T
    weight = gamma.to(passed).view(len(gamma), *[1] * (passed.ndim - 2), -1)
    passed = weight * passed
    if mixed:
        passed = weight * passed.sum(-1, keepdim=True)
    added = passed @ up.to(passed)
    return added.movedim(-1, 1) if isinstance(layer, nn.Conv2d) else added


def gate(base: Denoiser, phrases: Sequence[Sequence[str]], rule: Rule) -> Callable[[Cond], Float[Tensor, "b n"]]:
    """The gate of each concept for prompts: the similarity to one of its phrases, or the share of the phrase's tokens they contain.

        γ = max over the concept's phrases c of max(sim(p, c), |tok(p) ∩ tok(c)| / |tok(c)|)

    Embeddings are flattened; the rule "centred" first subtracts those of "".
    """
    said = [base.embed(list(p)) for p in phrases]
    names = [[set(ids) for ids in cond.word_ids()] for cond in said]
    null = base.embed([""]).tokens if rule == "centred" else torch.zeros_like(said[0].tokens[:1])
    rows = [(cond.tokens - null).flatten(1).float() for cond in said]

    def opens(cond: Cond) -> Float[Tensor, "b n"]:
        # a key's rows come after a prompt's own
        given = (cond.tokens[:, : null.shape[1]] - null).flatten(1).float()
        like = torch.stack([similar(given, r, rule).amax(1) for r in rows], 1)
        has = [[max(len(c & set(p)) / max(len(c), 1) for c in name) for name in names] for p in cond.word_ids()]
        return torch.maximum(like, torch.tensor(has).to(like)).clamp(0, 1)

    return opens


def similar(given: Float[Tensor, "b d"], said: Float[Tensor, "p d"], rule: Rule) -> Float[Tensor, "b p"]:
    """The cosine, or by "centred" (a·c / |c| max(|a|, |c|))², its square, reduced for a shorter a: "" itself has no direction."""
    ours, theirs = given.norm(dim=1)[:, None], said.norm(dim=1)
    if rule == "released":
        return given @ said.T / (ours * theirs)
    return (given @ said.T / (theirs * torch.maximum(ours, theirs))).clamp(min=0).square()
