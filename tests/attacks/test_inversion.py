"""Concept inversion: the learnt word explains pictures better than the word it began with; the control learns them upside down."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from attacks.goals import DRAWING, erased, goal
from toys import tiny

from efface.attacks.inversion import Inversion
from efface.attacks.parts.losses import Bank, denoising_error
from efface.core.attempt import draw


@pytest.mark.parametrize("control", [False, True])
def test_the_learnt_word_explains_the_pictures_better_than_the_one_it_began_with(control: bool) -> None:
    base = tiny()
    edit = erased(base)
    model, own = edit(base), goal(base, edit=edit)
    found = Inversion(every=2, judged=8, control=control).find(model, own, 500).attempts[""]
    targets = own.turned_targets if control else own.targets
    bank = Bank.of(model, 64, len(own.seeds), torch.Generator().manual_seed(9))  # draws that the search did not see
    errors = []
    for mark in (min(found), max(found)):
        rows = [a.rows for a in found[mark] if a.rows is not None]
        cond = rows[0] + rows[1]
        with torch.no_grad():
            errors.append(float(denoising_error(model, targets, cond, bank, 3.0).mean()))
    assert errors[1] < errors[0]
    assert all(a.turned == control for a in found[max(found)])


def test_one_word_stands_in_place_of_the_name_in_all_prompts() -> None:
    base = tiny()
    own = goal(base)
    found = Inversion(every=1).find(base, own, 100).attempts[""]
    first, second = (a.rows for a in found[max(found)])
    assert first is not None
    assert second is not None
    plain = base.embed(own.prompts)
    assert first.word_ids()[0][0] == plain.word_ids()[0][0]
    assert len(first.word_ids()[0]) == len(plain.word_ids()[0]) - len(base.embed(["tiger"]).word_ids()[0]) + 1
    assert torch.equal(
        first.tokens[0, :2], plain[[0]].tokens[0, :2]
    )  # start and "a": before the word, under causal attention
    assert not torch.equal(first.tokens[0, 2], plain[[0]].tokens[0, 2])


def test_a_turned_picture_is_the_same_picture_upside_down() -> None:
    base = tiny()
    own = goal(base)
    attempt = Inversion(control=True).find(base, own, 60).attempts[""]
    one = attempt[max(attempt)][0]
    ((turned,),) = draw(base, [one], [5], DRAWING)
    ((plain,),) = draw(base, [replace(one, turned=False)], [5], DRAWING)
    assert np.array_equal(turned, plain[::-1])
    assert one.fingerprint != replace(one, turned=False).fingerprint
