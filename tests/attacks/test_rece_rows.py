"""RECE's adversarial rows against least squares, and that they bring back what a closed-form edit moved."""

import numpy as np
import pytest
from attacks.goals import erased, goal
from toys import tiny

from efface.attacks.rece_rows import LIMITS, RECERows
from efface.core.errors import UsageError


def test_the_rows_are_the_least_squares_solution_of_the_paper() -> None:
    base = tiny()
    edit = erased(base)
    model, own = edit(base), goal(base, edit=edit)
    found = RECERows().find(model, own, 1)
    assert found.calls == 0
    old, new = (
        np.concatenate([m.weight.detach().double().numpy() for m in one.text_readers().values()])
        for one in (base, model)
    )
    rows = model.embed(own.prompts).tokens.double().numpy()
    d = rows.shape[-1]
    for limit in LIMITS:
        ridge = np.sqrt(limit * np.square(new).sum() / d)
        system = np.concatenate([new, ridge * np.eye(d)])  # [W*; √λ I] z = [W c; 0]
        for i, attempt in enumerate(found.attempts[f"limit {limit:g}"][0]):
            wish = np.concatenate([old @ rows[i].T, np.zeros((d, rows.shape[1]))])
            solved = np.linalg.lstsq(system, wish, rcond=None)[0].T
            assert attempt.rows is not None
            assert np.abs(attempt.rows.tokens[0].numpy() - solved).max() < 1e-4 * np.abs(solved).max()


def test_the_concepts_keys_and_values_come_back() -> None:
    base = tiny()
    edit = erased(base)
    model, own = edit(base), goal(base, edit=edit)
    (attempt, *_), c = RECERows().find(model, own, 1).attempts["limit 0.0001"][0], base.embed(own.prompts[:1])
    assert attempt.rows is not None
    for name, layer in base.text_readers().items():
        wish, asked, back = (m(c_.tokens) for m, c_ in
                             ((layer, c), (model.text_readers()[name], c), (model.text_readers()[name], attempt.rows)))  # fmt: skip
        assert (back - wish).norm() < 0.5 * (asked - wish).norm()


def test_unchanged_keys_and_values_are_said() -> None:
    base = tiny()
    with pytest.raises(UsageError, match="keys and values, and this model's are the unedited ones"):
        RECERows().find(base, goal(base), 1)
