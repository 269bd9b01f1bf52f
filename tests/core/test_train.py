"""Training: float32 masters, Adam without `.grad`, checkpoints that continue bit for bit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import esd as oracle
from torch import Generator, Tensor
from toys import differing, probe, snapshot, tiny

from efface.core.denoiser import Denoiser
from efface.core.edit import Delta, LowRank
from efface.core.io import read_tensors, write_tensors
from efface.core.log import Log
from efface.core.train import Tuner


def loss_of(tuner: Tuner, rng: Generator) -> Tensor:
    """Something to descend that needs randomness at every step."""
    model = tuner.student
    x = torch.randn(2, *model.latent_shape, generator=rng)
    t = torch.randint(1000, (2,), generator=rng)
    return model.predict(x, t, model.embed(["a tiger"])).square().mean()


def train(base: Denoiser, log: Log, *, steps: int = 6, rank: int = 0, lr: float = 1e-2, every: int = 2) -> Tuner:
    rng = Generator().manual_seed(4)
    tuner = Tuner(base, "xattn", lr=lr, rank=rank, rng=rng)
    for _ in log.steps(tuner, steps, every=every):
        loss = loss_of(tuner, rng)
        tuner.step(loss)
        log.loss(loss.detach())
    return tuner


class Interrupted(Log):
    """Ctrl-C at a step."""

    def __init__(self, checkpoint: Path | None, recipe: str = "", at: int = 4) -> None:
        super().__init__(checkpoint, recipe)
        self.at, self.seen = at, 0

    def loss(self, value: Tensor) -> None:
        self.seen += 1
        if self.seen == self.at:
            raise KeyboardInterrupt


class Watch(Log):
    """Keeps what it is told."""

    def __init__(self, checkpoint: Path | None = None, recipe: str = "") -> None:
        super().__init__(checkpoint, recipe)
        self.losses: list[float] = []
        self.advanced: list[int] = []
        self.stages: list[tuple[str, int]] = []

    def loss(self, value: Tensor) -> None:
        self.losses.append(float(value))

    def stage(self, name: str, total: int) -> Callable[[int], None]:
        self.stages.append((name, total))
        return self.advanced.append


# -- the tuner -----------------------------------------------------------------------------------------------------


def test_the_student_starts_as_the_base_and_only_its_weights_learn(base: Denoiser) -> None:
    for rank in (0, 2):
        tuner = Tuner(base, "xattn", lr=1e-3, rank=rank, rng=Generator().manual_seed(0))
        assert not differing(snapshot(base), snapshot(tuner.student))
        learning = {k for k, w in tuner.student.params("denoiser").items() if w.requires_grad}
        assert learning == {k for k, w in base.params("xattn").items() if w.ndim >= 2 or not rank}


def test_training_touches_neither_the_base_nor_other_weights(base: Denoiser) -> None:
    for rank in (0, 2):
        tuner = train(base, Log(), rank=rank)
        assert differing(snapshot(base), snapshot(tuner.student)) == tuner.workers.keys()
        assert all(w.grad is None for w in tuner.student.params("denoiser").values())


def test_a_step_is_adams(base: Denoiser) -> None:
    name = next(iter(base.params("xattn.kv")))
    tuner = Tuner(base, "xattn.kv", lr=1e-2)
    start, grads = base.params([name])[name].double().numpy().copy(), []
    for step in range(4):
        loss = loss_of(tuner, Generator().manual_seed(step))
        grads.append(torch.autograd.grad(loss, tuner.workers[name], retain_graph=True)[0].double().numpy())
        tuner.step(loss)
    np.testing.assert_allclose(
        tuner.workers[name].detach().numpy(), oracle.adam(start, grads, 1e-2), atol=1e-5
    )  # float32


def test_low_rank_gradients_are_those_of_the_product(base: Denoiser) -> None:
    tuner = Tuner(base, "xattn.kv", lr=1e-2, rank=2, rng=Generator().manual_seed(0))
    rng = Generator().manual_seed(1)
    for f in tuner.leaves.values():
        f.copy_(torch.randn(f.shape, generator=rng) * 0.1)
    tuner.sync()
    loss = loss_of(tuner, Generator().manual_seed(2))
    name = next(iter(tuner.workers))
    g = torch.autograd.grad(loss, tuner.workers[name], retain_graph=True)[0]
    up, down = (tuner.leaves[f"{name}/{k}"].clone().requires_grad_() for k in ("up", "down"))
    wanted = torch.autograd.grad((g * (up @ down)).sum(), [up, down])
    before = {k: v.clone() for k, v in tuner.leaves.items()}
    tuner.step(loss)
    for part, grad in zip(("up", "down"), wanted, strict=True):
        moved = tuner.leaves[f"{name}/{part}"] - before[f"{name}/{part}"]
        big = grad.abs() > 1e-6  # Adam's first step is lr times the sign of the gradient
        torch.testing.assert_close(moved[big], -1e-2 * grad[big].sign(), atol=2e-4, rtol=0)


def test_almost_every_weight_moves(base: Denoiser) -> None:
    tuner = train(base, Log(), steps=3, lr=1e-5)
    moved = torch.cat([(w != base.params([k])[k]).flatten() for k, w in tuner.workers.items()])
    assert moved.float().mean() > 0.99


def test_masters_beside_a_bfloat16_model_are_float32() -> None:
    base = tiny(dtype=torch.bfloat16)
    tuner = train(base, Log(), steps=3, lr=1e-5)
    assert {leaf.dtype for leaf in tuner.leaves.values()} == {torch.float32}
    assert {w.dtype for w in tuner.workers.values()} == {torch.bfloat16}
    slots = [v for s in tuner.adam.state.values() for v in s.values()]
    assert {v.dtype for v in slots} == {torch.float32}
    edit = tuner.edit()
    moved = torch.cat([d.flatten() != 0 for d in edit.deltas.values()])
    assert moved.float().mean() > 0.99
    in_bfloat16 = torch.cat([(w != base.params([k])[k]).flatten() for k, w in tuner.workers.items()])
    assert in_bfloat16.float().mean() < 0.5  # what is lost without masters
    for k, w in tuner.workers.items():
        assert torch.equal(w, tuner.leaves[k].bfloat16())


@pytest.mark.parametrize(("rank", "kind"), [(0, Delta), (2, LowRank)])
def test_the_edit_is_what_was_learnt(base: Denoiser, rank: int, kind: type) -> None:
    tuner = train(base, Log(), rank=rank)
    edit = tuner.edit()
    assert type(edit) is kind
    with torch.no_grad():
        torch.testing.assert_close(probe(edit(base), "a tiger"), probe(tuner.student, "a tiger"), atol=1e-4, rtol=0)
    before = {k: t.clone() for k, t in edit.tensors().items()}
    tuner.step(loss_of(tuner, Generator().manual_seed(0)))
    assert all(torch.equal(before[k], t) for k, t in edit.tensors().items())  # a value, not a view of the masters


def test_the_loss_falls(base: Denoiser) -> None:
    for rank in (0, 2):
        log = Watch()
        train(base, log, steps=12, rank=rank, lr=3e-3)
        assert np.mean(log.losses[-4:]) < 0.9 * np.mean(log.losses[:4])


# -- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("at", [3, 4, 6])  # right after a checkpoint, between two, in the last step
def test_an_interrupted_training_ends_as_an_uninterrupted_one(
    base: Denoiser, tmp_path: Path, rank: int, at: int
) -> None:
    path = tmp_path / "c.safetensors"
    straight = train(base, Log(), rank=rank)
    with pytest.raises(KeyboardInterrupt):
        train(base, Interrupted(path, "r", at=at), rank=rank)
    assert read_tensors(path)[1] == {"step": (at - 1) // 2 * 2, "recipe": "r"}
    log = Watch(path, "r")
    resumed = train(base, log, rank=rank)
    assert log.advanced[0] == (at - 1) // 2 * 2
    assert len(log.losses) == 6 - log.advanced[0]
    assert log.stages == [("training", 6)]
    assert sum(log.advanced) == 6
    assert all(torch.equal(straight.leaves[k], resumed.leaves[k]) for k in straight.leaves)
    assert not differing(snapshot(straight.student), snapshot(resumed.student))
    assert not path.exists()  # a finished run leaves nothing behind


def test_an_interruption_before_the_first_checkpoint_starts_anew(base: Denoiser, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(base, Interrupted(path, "r", at=1))
    assert not path.exists()
    assert torch.equal(probe(train(base, Log(path, "r")).student, "cat"), probe(train(base, Log()).student, "cat"))


def test_a_checkpoint_of_another_recipe_is_not_continued(base: Denoiser, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(base, Interrupted(path, "mine", at=3))
    log = Watch(path, "another")
    other = train(base, log)
    assert log.advanced[0] == 0
    assert len(log.losses) == 6
    assert not differing(snapshot(other.student), snapshot(train(base, Log()).student))


def test_a_file_that_is_no_checkpoint_is_not_continued(base: Denoiser, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    write_tensors(path, {"a": torch.ones(1)}, {"format": 1})
    log = Watch(path, "r")
    train(base, log, steps=1)
    assert log.advanced[0] == 0


def test_a_bfloat16_training_resumes_too(tmp_path: Path) -> None:
    base, path = tiny(dtype=torch.bfloat16), tmp_path / "c.safetensors"
    straight = train(base, Log(), lr=1e-3)
    with pytest.raises(KeyboardInterrupt):
        train(base, Interrupted(path, "r", at=3), lr=1e-3)
    resumed = train(base, Log(path, "r"), lr=1e-3)
    assert all(torch.equal(straight.leaves[k], resumed.leaves[k]) for k in straight.leaves)


def test_a_silent_log_writes_nothing(base: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(base, Log(), steps=2, every=1)
    assert not list(tmp_path.iterdir())
