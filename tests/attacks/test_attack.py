"""What holds for every attack: counted budgets, marks, attempts as files, replayed bit for bit."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from attacks.goals import DRAWING, erased, goal
from torch import Generator
from toys import tiny

from efface.attacks.base import Attack, Goal, marks
from efface.core.alterations import NAMES, PRUNED, altered
from efface.core.attempt import Attempt, draw, load_attempt
from efface.core.denoiser import Denoiser
from efface.core.errors import UsageError
from efface.core.meter import BudgetSpent, Meter


@dataclass(frozen=True, kw_only=True)
class Counting(Attack):
    """Spends ten calls on the model, five on the unedited one and a gradient of two, then says how often it has."""

    access = "rows"

    def run(self, model: Denoiser, goal: Goal, calls: int, rng: Generator) -> Iterator[Sequence[Attempt]]:
        cond, i = model.embed([""]), 0
        while True:
            yield [Attempt("counting", prompt=f"{p} {i}") for p in goal.prompts]
            i += 1
            x = torch.randn(10, *model.latent_shape, generator=rng)
            t = torch.full((10,), 500)
            with torch.no_grad():
                model.predict(x, t, cond)
                goal.base.predict(x[:5], t[:5], cond)
            model.predict(x[:2], t[:2], replace(cond, tokens=cond.tokens.clone().requires_grad_(True)))


def test_every_call_counts_and_a_gradient_counts_three_times() -> None:
    base = tiny()
    found = Counting().find(base, goal(base), 100)  # 2 prompts: 200 calls; a round is 10 + 5 + 3 * 2
    assert found.calls == 21 * (200 // 21) + 10  # the last round's five do not fit in
    assert found.texts == 1
    kept = {mark: attempts[0].prompt for mark, attempts in found.attempts[""].items()}
    # at a mark of m for each prompt, the best attempt that had needed at most 2 m calls
    assert {m: int(kept[m].split()[-1]) for m in kept} == {0: 0, 10: 20 // 21, 30: 60 // 21, 100: 200 // 21}


def test_a_copy_of_a_network_is_counted_while_the_search_runs_and_not_afterwards() -> None:
    base = tiny()
    x, t, cond = base.noise([1, 2]), torch.tensor([500, 500]), base.embed(["a"])
    with Meter([base], 100) as meter, torch.no_grad():
        fork = base.fork("denoiser")
        fork.predict(x, t, cond)
    assert meter.calls == 2
    with torch.no_grad():
        fork.predict(x, t, cond)
        base.predict(x, t, cond)
    assert meter.calls == 2


def test_a_budget_ends_before_it_is_exceeded() -> None:
    base = tiny()
    x, t, cond = base.noise([1, 2]), torch.tensor([500, 500]), base.embed(["a"])
    with Meter([base], 3) as meter, torch.no_grad():
        base.predict(x, t, cond)
        with pytest.raises(BudgetSpent):
            base.predict(x, t, cond)
    assert meter.calls == 2


def test_marks_grow_by_thirds_of_a_decade_and_end_at_the_budget() -> None:
    assert marks(4000) == [10, 30, 100, 300, 1000, 3000, 4000]
    assert marks(10) == [10]


def test_a_budget_of_nothing_and_a_goal_without_prompts_are_refused() -> None:
    base = tiny()
    with pytest.raises(UsageError, match="expected a budget of at least 1 call, got 0"):
        Counting().find(base, goal(base), 0)
    with pytest.raises(UsageError, match="goal: expected prompts"):
        goal(base, prompts=())


def test_an_attempt_is_one_file_and_its_replay_is_bit_for_bit_the_same(tmp_path: Path) -> None:
    base = tiny()
    edit, shape = erased(base), base.latent_shape
    rng = torch.Generator().manual_seed(1)
    whole = Attempt(
        "test", "all", prompt="a cat", rows=base.embed(["a dog"]), negative_rows=base.embed(["a car"]), later=(0.5, "a tiger"),
        settings={"guidance": 2.0}, latent=torch.randn(shape, generator=rng), picture=torch.randn(shape, generator=rng),
        mask=torch.ones(shape[1:]), strength=0.5, alteration="float16", edit=edit * 0.5, about={"percentile": 3.5},
    )  # fmt: skip
    whole.save(tmp_path / "one.safetensors")
    again = load_attempt(tmp_path / "one.safetensors")
    assert again.fingerprint == whole.fingerprint
    assert again.about == whole.about
    first, second = (draw(a.on(base, base), [a], [1, 2], DRAWING) for a in (whole, again))
    assert all((x == y).all() for x, y in zip(first[0], second[0], strict=True))


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a dog"}, {"label": "b"}, {"later": (0.5, "a cat")}, {"settings": {"guidance": 4.0}}, {"strength": 0.4},
        {"alteration": "int8"}, {"latent": torch.zeros(4, 8, 8)}, {"picture": torch.zeros(4, 8, 8)}, {"mask": torch.zeros(8, 8)},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_what_differs_in_a_picture_differs_in_the_fingerprint(change: dict[str, object]) -> None:
    one = Attempt("test", "a", prompt="a cat")
    assert replace(one, **change).fingerprint != one.fingerprint  # pyright: ignore[reportArgumentType]
    assert replace(one, about={"calls": 3}).fingerprint == one.fingerprint


def test_an_attempt_of_another_family_is_refused_in_a_sentence() -> None:
    base = tiny()
    rows = base.embed(["a dog"])
    narrow = Attempt("test", rows=replace(rows, tokens=rows.tokens[..., :8]))
    with pytest.raises(UsageError, match="rows have width 8, this model reads 64; replay it on a model of the family"):
        draw(base, [narrow], [1], DRAWING)
    with pytest.raises(UsageError, match="same picture size"):
        draw(base, [Attempt("test", latent=torch.zeros(4, 4, 4))], [1], DRAWING)


def test_an_edit_is_not_an_attempt_nor_the_reverse(tmp_path: Path) -> None:
    base = tiny()
    erased(base).save(tmp_path / "edit.safetensors")
    with pytest.raises(UsageError, match="expected an attempt"):
        load_attempt(tmp_path / "edit.safetensors")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in PRUNED])  # see test_removal.py
def test_an_alteration_does_to_the_weights_what_it_says(name: str) -> None:
    base = tiny()
    other = tiny(seed=1)  # every network of other weights
    model = copy.copy(base)
    changed = altered(model, other, name)
    for key, w in changed.params("denoiser").items():
        mine, theirs = base.params([key])[key], other.params([key])[key]
        expected = {
            "float16": mine.half().float(), "bfloat16": mine.bfloat16().float(), "merged": 0.5 * mine + 0.5 * theirs,
        }.get(name, mine)  # fmt: skip
        if name == "int8" and w.ndim > 1:  # an independent writing: channel by channel
            for row, given in zip(w, mine, strict=True):
                scale = given.abs().max() / 127
                assert torch.allclose(row, torch.round(given / scale) * scale)
        else:
            assert torch.allclose(w, expected, atol=1e-6), key
    same_text = torch.equal(changed.embed(["a tiger"]).tokens, other.embed(["a tiger"]).tokens)
    assert same_text == (name == "text-encoder")
    assert (changed.pipeline.vae is other.pipeline.vae) == (name == "autoencoder")
    assert base.fingerprint == tiny().fingerprint
