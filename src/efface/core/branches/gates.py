"""Token gates: a residual added to every cross-attention key and value, gated by token, open only at an erased concept's (CPE)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn.functional import one_hot, pad
from typing_extensions import override  # in typing from Python 3.12

from efface.core.branch import Branch
from efface.core.cond import Cond
from efface.core.denoiser import Denoiser
from efface.core.errors import UsageError
from efface.core.hooks import Added

GAIN = 10.0  # scale of `up` in training, so that one learning rate suits it and the gates
START = 0.1  # initial scale of `query` and `key`: small, so that a gate first attends to all tokens equally


class TokenGates(Branch):
    """Residual attention gates of n concepts (CPE eq. 8): one gate for all sites, one low-rank map for each.

    Tensors: `query`, `key` (n d r), `gate` (n d), `down` (n d m s) and `up` (n s D), the m sites concatenated; facts: `sites`, the width
    of each. Residuals of concepts do not add up: a token gets that of the concept with the largest gate there.
    """

    @override
    def additions(self, base: Denoiser) -> Callable[[Cond], dict[str, Added]]:
        here = {name.removesuffix(".weight"): tuple(w.shape) for name, w in base.reader_weights().items()}
        made = {site: (width, self.tensors["gate"].shape[1]) for site, width in self.facts["sites"].items()}
        if made != here:
            raise UsageError(
                f"edit: made for {len(made)} keys and values of shapes {sorted(set(made.values()))}, this model has {len(here)} of shapes "
                f"{sorted(set(here.values()))}; give a model of the same shape as the one it was made for"
            )
        t = {name: w.to(base.device) for name, w in self.tensors.items()}
        ends = [0, *torch.tensor(list(self.facts["sites"].values())).cumsum(0).tolist()]
        ups = {site: t["up"][..., a:b] for site, (a, b) in zip(self.facts["sites"], pairwise(ends), strict=True)}

        def added(cond: Cond) -> dict[str, Added]:
            low = selected(cond.tokens.float(), t["query"], t["key"], t["gate"], t["down"])
            return {site: _add(low[..., i, :], up) for i, (site, up) in enumerate(ups.items())}

        return added


def _add(low: Float[Tensor, "n b t s"], up: Float[Tensor, "n s k"]) -> Added:
    def add(given: Tensor, out: Tensor) -> Tensor:
        added = torch.einsum("nbts,nsk->btk", low, up)
        return pad(
            added, (0, 0, 0, out.shape[-2] - added.shape[1])
        )  # rows of a text encoder that the gates do not know

    return add


def gated(
    rows: Float[Tensor, "#n b t d"],
    query: Float[Tensor, "n d r"],
    key: Float[Tensor, "n d r"],
    gate: Float[Tensor, "n d"],
) -> tuple[Float[Tensor, "n b t"], Float[Tensor, "n b t d"]]:
    """Each concept's gate, as logits, and its residual σ(e w) e, where e = softmax(E Q (E K)ᵀ) E attends over the prompt's tokens E."""
    gathered = ((rows @ query[:, None]) @ (rows @ key[:, None]).mT).softmax(-1) @ rows
    opening = (gathered @ gate[:, None, :, None]).squeeze(-1)
    return opening, opening.sigmoid()[..., None] * gathered


def selected(
    rows: Float[Tensor, "b t d"],
    query: Float[Tensor, "n d r"],
    key: Float[Tensor, "n d r"],
    gate: Float[Tensor, "n d"],
    down: Float[Tensor, "n d m s"],
) -> Float[Tensor, "n b t m s"]:
    """Residuals after the down projection of each site; zero except for the concept with the largest gate at that token."""
    opening, residual = gated(rows[None], query, key, gate)
    first = one_hot(opening.argmax(0), len(gate)).movedim(-1, 0).to(residual.dtype)
    return torch.einsum("nbt,nbtd,ndms->nbtms", first, residual, down)


@dataclass(frozen=True)
class Sites:
    """Key and value projections of all cross-attention layers as one tensor, and the training of gates on them.

    The leaves are a branch's tensors, except `up` (n m s k), which is in units of a site's outputs and padded with zeros to the widest
    site; without `key`, the query is also the key.
    """

    widths: dict[str, int]
    maps: Float[Tensor, "m k d"]

    @classmethod
    def of(cls, base: Denoiser) -> "Sites":
        """The sites of a denoiser."""
        weights = {name.removesuffix(".weight"): w.float() for name, w in base.reader_weights().items()}
        widths = {site: len(w) for site, w in weights.items()}
        return cls(widths, torch.stack([pad(w, (0, 0, 0, max(widths.values()) - len(w))) for w in weights.values()]))

    @property
    def even(self) -> Float[Tensor, "m"]:
        """Weights that turn a sum over channels and sites into a mean."""
        return torch.tensor([1 / width / len(self.widths) for width in self.widths.values()]).to(self.maps)

    def leaves(self, n: int, gate_rank: int, site_rank: int, tied: bool, rng: Generator) -> dict[str, Tensor]:
        """Initial leaves for n concepts: gates half open for every token, and `up` zero."""
        (m, k, d), names = self.maps.shape, ("query",) if tied else ("query", "key")
        drawn = {name: START * torch.randn(n, d, gate_rank, generator=rng) / d**0.5 for name in names}
        drawn |= {"gate": torch.zeros(n, d), "down": torch.randn(n, d, m, site_rank, generator=rng) / d**0.5}
        return {name: t.to(self.maps) for name, t in drawn.items()} | {"up": self.maps.new_zeros(n, m, site_rank, k)}

    def tensors(self, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The branch's tensors for these leaves: with `key`, and with `up` in the units of the outputs, still padded."""
        widths = torch.tensor(list(self.widths.values())).to(self.maps)
        unit = GAIN * self.maps.flatten(1).norm(dim=1) / widths.sqrt()
        return {"key": leaves["query"], **leaves, "up": unit[:, None, None] * leaves["up"]}

    def miss(
        self,
        leaves: Mapping[str, Tensor],
        rows: Float[Tensor, "n b t d"],
        wish: Float[Tensor, "n b t d"] | None,
        scale: Float[Tensor, "m"],
    ) -> Float[Tensor, "n"]:
        """Error Σ_l c_l |r D_l U_l - v W_lᵀ|², the mean over tokens: distance of the residual from that of changing row E to E + v.

        No key or value is computed: with h = r D and G = U Uᵀ the sum is h G hᵀ - 2 h U W vᵀ + v WᵀW vᵀ.
        """
        acting = self.tensors(leaves)
        up, down = acting["up"] * scale.sqrt()[:, None, None], acting["down"]
        _, residual = gated(rows, acting["query"], acting["key"], acting["gate"])
        low = torch.einsum("nrd,ndms->nrms", residual.flatten(1, 2), down)
        total = (torch.einsum("nrms,nmsz->nrmz", low, up @ up.mT) * low).sum((2, 3))
        if wish is not None:
            maps, v = self.maps * scale.sqrt()[:, None, None], wish.flatten(1, 2)
            total = total - 2 * (torch.einsum("nrd,nmsd->nrms", v, up @ maps) * low).sum((2, 3))
            total = total + ((v @ torch.einsum("mkd,mke->de", maps, maps)) * v).sum(2)
        return total.mean(1)

    def branch(self, leaves: Mapping[str, Tensor]) -> TokenGates:
        """The branch of the trained leaves, without padding."""
        acting = {name: t.detach().cpu() for name, t in self.tensors(leaves).items()}
        ups = [acting["up"][:, i, :, :width] for i, width in enumerate(self.widths.values())]
        return TokenGates({**acting, "up": torch.cat(ups, -1)}, {"sites": self.widths})
