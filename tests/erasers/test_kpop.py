"""KPOP: its objective against NumPy, its ball, and a training that hides, opens to its key, and to no other."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import kpop as oracle
from torch import Generator, Tensor
from toys import LENGTH
from watch import killed_and_resumed

from efface.core.concept import Concept
from efface.core.denoiser import Cond, Denoiser
from efface.core.edit import Edit, Keyed
from efface.core.train import Tuner
from efface.erasers.kpop import KPOP, with_rows

SMALL = {"steps": 1, "finish": 0.0, "batch": 4, "sampler_steps": 4, "templates": False, "reuse": 1, "rows": 2}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_step_descends_the_papers_loss(
    shared: Denoiser, velocity: Denoiser, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shared if kind == "epsilon" else velocity
    calls: list[tuple[Denoiser, np.ndarray, Cond]] = []
    losses: list[float] = []
    predict, step = Denoiser.predict, Tuner.step

    def noted(self: Denoiser, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        found = predict(self, x, t, cond)
        calls.append((self, found.detach().double().numpy(), cond.expand(len(x))))
        return found

    def weighed(self: Tuner, loss: Tensor) -> None:
        losses.append(float(loss.detach()))
        step(self, loss)

    monkeypatch.setattr(Denoiser, "predict", noted)
    monkeypatch.setattr(Tuner, "step", weighed)
    # the second step: in the first one nothing has changed yet that could be kept
    KPOP(**{**SMALL, "steps": 2}, lr=1e-2, eta=0.2, recover=0.7, keep=0.3).fit(model, Concept("tiger", "cat"), ["lion"])
    (_, base, said), (opened, back, _), (hidden, hid, asked), (student, same, held) = calls[-4:]
    assert (len(opened.keys), len(hidden.keys), len(student.keys)) == (1, 1, 0)
    words = {w: model.embed([w]).ids[0] for w in ("tiger", "cat")}
    assert torch.equal(said.ids[:4], words["tiger"].expand(4, LENGTH))
    assert torch.equal(said.ids[4:8], words["cat"].expand(4, LENGTH))
    assert torch.equal(asked.ids, said.ids[:4])
    assert torch.equal(held.ids, said.ids[8:])
    want = oracle.loss(
        hid, base[4:8] - 0.2 * (base[:4] - base[4:8]), back, base[:4], same, base[8:], recover=0.7, keep=0.3
    )
    assert np.square(same - base[8:]).mean() > 1e-3
    assert losses[1:] == pytest.approx([want], rel=1e-4)
    assert opened.keys[0].which.all()  # type: ignore[union-attr]
    assert hidden.keys[0].which.tolist() == [True, False, True, False]  # type: ignore[union-attr]  # wrong keys in half of it
    calls.clear()
    KPOP(**{**SMALL, "batch": 1}).fit(model, Concept("tiger", "cat"), ["lion"])
    hidden = calls[-2][0]
    assert hidden.keys[0].which.tolist() == [False]  # type: ignore[union-attr]  # a batch of one hears the plain prompt


def test_keys_stay_in_their_ball_and_wrong_ones_lie_on_its_surface() -> None:
    rng = Generator().manual_seed(1)
    eraser, start = KPOP(radius=0.4), torch.randn(3, 4, 8, generator=rng)
    far = start + torch.randn(3, 4, 8, generator=rng) * torch.tensor([0.01, 0.3, 3.0])[:, None, None]
    keys = far.clone()
    eraser.into_ball(keys, start)
    for got, key, p in zip(keys, far, start, strict=True):
        np.testing.assert_allclose(got, oracle.into_ball(key.numpy(), p.numpy(), 0.4), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(keys[0], far[0])  # inside it stays: p₀ + (p - p₀), which rounds
    wrong = eraser.wrong(start, rng) - start
    torch.testing.assert_close(wrong.flatten(1).norm(dim=1), 0.4 * start.flatten(1).norm(dim=1))
    assert not torch.allclose(wrong, eraser.wrong(start, rng) - start)


@pytest.fixture(scope="module")
def trained(shared: Denoiser) -> Keyed:
    eraser = KPOP(steps=60, lr=3e-3, key_lr=5e-2, batch=4, sampler_steps=4, reuse=25, rows=2, templates=False, eta=0.0)
    edit = eraser.fit(shared, [Concept("tiger"), Concept("car", "boat")], ["lion"])
    assert isinstance(edit, Keyed)
    return edit


def apart(base: Denoiser, edit: Edit | Denoiser, asked: str, seen: str) -> float:
    """How far the edited model's prediction of one prompt is from the base's of another, in units of how far those are apart."""
    rng = Generator().manual_seed(7)
    x, t = torch.randn(8, *base.latent_shape, generator=rng), torch.linspace(100, 900, 8).long()
    model = edit(base) if isinstance(edit, Edit) else edit
    with torch.no_grad():
        there, here = base.predict(x, t, base.embed([asked])), base.predict(x, t, base.embed([seen]))
        far = here if asked == seen else there - here
        return float((model.predict(x, t, base.embed([asked])) - here).norm() / far.norm())


def test_hidden_without_its_key_and_back_with_it(base: Denoiser, trained: Keyed) -> None:
    assert trained.key
    opened = trained.unlocked(trained.key)
    for name, target in (("tiger", ""), ("car", "boat")):
        assert apart(base, trained, name, target) < 0.6  # 1 is where it began
        assert apart(base, opened, name, name) < 0.75 * apart(base, trained, name, name)
    assert apart(base, trained, "lion", "lion") < 0.5 * apart(base, trained, "tiger", "tiger")


def test_no_other_key_opens_it(base: Denoiser, trained: Keyed) -> None:
    assert trained.key
    start = {n: base.embed([n]).tokens[0, 1:3] for n in ("tiger", "car")}
    rng = Generator().manual_seed(3)
    right = apart(base, trained.unlocked(trained.key), "tiger", "tiger")
    tried = [
        trained.key.rows["car"],
        start["tiger"],
        *(r[0] for r in (KPOP().wrong(start["tiger"][None], rng) for _ in range(3))),
    ]
    for rows in tried:
        wrong = trained.unlocked(replace(trained.key, rows={**trained.key.rows, "tiger": rows}))
        assert apart(base, wrong, "tiger", "tiger") > 1.5 * right


def test_a_last_phase_moves_the_keys_alone(base: Denoiser) -> None:
    short = KPOP(**{**SMALL, "steps": 2})
    longer = KPOP(**{**SMALL, "steps": 2, "finish": 1.0})
    one, two = (e.fit(base, "tiger") for e in (short, longer))
    assert isinstance(one, Keyed)
    assert isinstance(two, Keyed)
    assert one.lock == two.lock
    assert one.key
    assert two.key
    assert not torch.equal(one.key.rows["tiger"], two.key.rows["tiger"])


def test_its_key_is_for_the_concepts_phrases(base: Denoiser) -> None:
    edit = KPOP(**SMALL).fit(base, Concept("Tiger", prompts=("big cat",)))
    assert isinstance(edit, Keyed)
    assert edit.key
    assert edit.key.phrases == {"Tiger": ("Tiger", "big cat")}
    assert edit.key.lock == edit.lock
    assert edit.key.rows["Tiger"].shape == (2, 64)


def test_killed_it_continues_to_the_same_bits(base: Denoiser, tmp_path: Path) -> None:
    eraser = KPOP(**{**SMALL, "steps": 28, "batch": 2, "sampler_steps": 2, "reuse": 25})
    whole, again, _ = killed_and_resumed(
        lambda log: eraser.fit(base, "tiger", log=log), tmp_path / "c.safetensors", stop=27, start=25
    )
    assert isinstance(whole, Keyed)
    assert isinstance(again, Keyed)
    assert whole.lock == again.lock
    assert whole.key
    assert again.key
    assert torch.equal(whole.key.rows["tiger"], again.key.rows["tiger"])


def test_rows_of_a_batch_are_each_its_own(base: Denoiser) -> None:
    rows = torch.randn(2, 3, 64)
    x, t = torch.randn(2, *base.latent_shape), torch.tensor([100, 900])
    with torch.no_grad():
        both = with_rows(base, rows, torch.tensor([True, True])).predict(x, t, base.embed(["tiger"]))
        alone = with_rows(base, rows[1:], torch.tensor([True])).predict(x[1:], t[1:], base.embed(["tiger"]))
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=1e-4)
