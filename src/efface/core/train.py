"""Training for erasers: float32 master weights, Adam, and gradients that leave `.grad` of shared tensors alone."""

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor
from typing_extensions import override  # in typing from Python 3.12

from efface.core.denoiser import Denoiser
from efface.core.edit import Delta, LowRank
from efface.core.errors import EffaceError


class NotFinite(EffaceError):
    """A loss or a weight in training is infinite or not a number."""


class Learner:
    """Named trainable tensors (autograd leaves) in float32, and their Adam optimiser."""

    def __init__(
        self, leaves: Mapping[str, Tensor], *, lr: float, rng: Generator | None = None, decay: float = 0.0
    ) -> None:
        """Train the given tensors in place. `rng` is saved in checkpoints; of several learners, give it to one only."""
        self.leaves, self.rng = {k: v.requires_grad_(True) for k, v in leaves.items()}, rng
        self._optimise(lr, decay)

    def _optimise(self, lr: float, decay: float = 0.0) -> None:
        values = list(self.leaves.values())
        self.adam = torch.optim.AdamW(values, lr=lr, betas=(0.9, 0.999), weight_decay=decay, foreach=True)

    def step(self, loss: Tensor) -> None:
        """One Adam step on `loss`, by torch.autograd.grad: `.grad` on shared tensors would be hidden state.

        Raises:
            NotFinite: the loss, or a weight after the step.
        """
        _finite("the loss", [loss])
        grads = torch.autograd.grad(loss, list(self.leaves.values()), allow_unused=True)
        self.descend(dict(zip(self.leaves, grads, strict=True)))

    def descend(self, grads: Mapping[str, Tensor | None]) -> None:
        """One Adam step with gradients by name; None is a zero gradient.

        Raises:
            NotFinite: a weight after the step.
        """
        for name, leaf in self.leaves.items():
            g = grads[name]
            leaf.grad = torch.zeros_like(leaf) if g is None else g.to(leaf)
        self.adam.step()
        self.adam.zero_grad()
        _finite("a weight", list(self.leaves.values()))

    def state(self) -> dict[str, Tensor]:
        """Everything an interrupted run needs to continue bit for bit."""
        flat = {f"leaf:{k}": v.detach() for k, v in self.leaves.items()}
        for i, slots in self.adam.state_dict()["state"].items():
            flat |= {f"adam:{i}:{k}": torch.as_tensor(v).clone() for k, v in slots.items()}
        return flat | ({"rng": self.rng.get_state()} if self.rng is not None else {})

    @torch.no_grad()
    def restore(self, flat: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in flat.items():
            kind, _, rest = key.partition(":")
            if kind == "leaf":
                self.leaves[rest].copy_(value)
            elif kind == "adam":
                i, _, name = rest.partition(":")
                slots.setdefault(int(i), {})[name] = value
        self.adam.load_state_dict({"state": slots, "param_groups": self.adam.state_dict()["param_groups"]})
        if self.rng is not None:
            self.rng.set_state(flat["rng"])


class Tuner(Learner):
    """Trains weights of `student`, a fork of the base, as float32 masters: whole tensors, or LoRA factors if `rank` is above 0.

    Masters are float32 for every dtype of the model: a small Adam step does not change a bfloat16 weight.
    """

    def __init__(self, base: Denoiser, where: str, *, lr: float, rank: int = 0, rng: Generator | None = None) -> None:
        """Fork `base` and train the fork's weights `where`; with `rank`, only its matrices and kernels."""
        weights = base.params(where)
        if rank:
            weights = {k: w for k, w in weights.items() if w.ndim >= 2}
        self.base, self.rank, self.rng = base, rank, rng
        self.student = base.fork(weights)
        self.workers = self.student.params(weights)
        for w in self.workers.values():
            w.requires_grad_(True)
        self.leaves: dict[str, Tensor] = {}
        for name, w in weights.items():
            if rank:
                out, rest = len(w), w[0].numel()
                down = torch.randn(rank, rest, generator=rng) / rest**0.5
                self.leaves |= {f"{name}/up": torch.zeros(out, rank), f"{name}/down": down}
            else:
                self.leaves[name] = (
                    w.detach().float().cpu().clone() if w.dtype != torch.float32 else self.workers[name].detach()
                )
        self._optimise(lr)

    @override
    def step(self, loss: Tensor) -> None:
        _finite("the loss", [loss])
        grads = torch.autograd.grad(loss, list(self.workers.values()), allow_unused=True)
        found: dict[str, Tensor | None] = {}
        for (name, worker), g in zip(self.workers.items(), grads, strict=True):
            if self.rank:  # W = W₀ + up down, so dL/dup = G downᵀ and dL/ddown = upᵀ G
                up, down = self.leaves[f"{name}/up"], self.leaves[f"{name}/down"]
                g = torch.zeros_like(worker) if g is None else g
                g = g.float().flatten(1).to("cpu")
                found |= {f"{name}/up": g @ down.T, f"{name}/down": up.T @ g}
            else:
                found[name] = g
        self.descend(found)
        self.sync()

    @torch.no_grad()
    def sync(self) -> None:
        """Copy the masters into the student's weights."""
        before = self.base.params(self.workers) if self.rank else {}
        for name, w in self.workers.items():
            if self.rank:
                w.copy_(
                    before[name].float()
                    + (self.leaves[f"{name}/up"] @ self.leaves[f"{name}/down"]).view_as(w).to(w.device)
                )
            elif self.leaves[name].data_ptr() != w.data_ptr():
                w.copy_(self.leaves[name])

    def edit(self) -> Delta | LowRank:
        """The edit: trained weights minus the base's, or the LoRA factors."""
        if self.rank:
            return LowRank(
                {k: (self.leaves[f"{k}/up"].clone(), self.leaves[f"{k}/down"].clone()) for k in self.workers}
            )
        before = self.base.params(self.workers)
        return Delta({k: self.leaves[k].cpu() - w.detach().float().cpu() for k, w in before.items()})

    @override
    def restore(self, flat: Mapping[str, Tensor]) -> None:
        super().restore(flat)
        self.sync()


def _finite(what: str, tensors: Sequence[Tensor]) -> None:
    """Refuse values that are not finite."""
    norms = torch.stack([n.detach().float() for n in torch._foreach_norm([t.detach() for t in tensors], torch.inf)])
    if not norms.isfinite().all():
        raise NotFinite(f"{what} is infinite or not a number")
