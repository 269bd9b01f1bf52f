"""Removal: scaled edits against the edit itself, cut directions against an exact decomposition, and the ascent."""

import torch
from attacks.goals import erased, goal
from toys import tiny

from efface.attacks.removal import Removal, strongest
from efface.core.alterations import altered


def test_scaled_edits_are_the_edit_at_that_strength_on_the_unedited_model() -> None:
    base = tiny()
    edit = erased(base)
    model = edit(base)
    found = Removal().find(model, goal(base, edit=edit), 40).attempts
    for strength in (0.5, -0.5, -1.0):
        (attempt, _) = found[f"strength {strength:g}"][0]
        assert attempt.on(model, base).fingerprint == (edit * strength)(base).fingerprint
    assert not [
        name for name in Removal().find(model, goal(base), 40).attempts if name.startswith("strength")
    ]  # without the file


def test_the_strongest_directions_are_those_of_the_decomposition() -> None:
    base = tiny()
    model = erased(base)(base)
    cut = strongest(model, base, 1)
    assert cut is not None
    changed = cut(model).params("denoiser")
    seen = 0
    for name, before in base.params("denoiser").items():
        change = (model.params([name])[name] - before).double()
        if not change.any():
            assert torch.equal(changed[name], before)
            continue
        u, s, v = torch.linalg.svd(change.flatten(1), full_matrices=False)
        s[0] = 0
        assert torch.allclose((changed[name] - before).double().flatten(1), (u * s) @ v, atol=1e-4)
        seen += 1
    assert seen
    assert strongest(base, base, 1) is None


def test_pruning_zeroes_the_smallest_values_of_each_matrix() -> None:
    base = tiny()
    pruned = altered(base, base, "pruned-30")
    for name, w in base.params("denoiser").items():
        found = pruned.params([name])[name]
        if w.ndim < 2:
            assert torch.equal(found, w)
            continue
        gone = found == 0
        assert abs(float(gone.float().mean()) - 0.3) < 0.02
        assert float(w[gone].abs().max()) <= float(w[~gone].abs().min())


def test_the_ascent_moves_the_prompt_away_from_its_target() -> None:
    base = tiny()
    edit = erased(base)
    model, own = edit(base), goal(base, edit=edit)
    marks = Removal().find(model, own, 300).attempts["ascent"]
    last = marks[max(marks)][0].on(model, base)
    x, t = base.noise([1, 2, 3, 4]), torch.tensor([100, 300, 500, 700])
    with torch.no_grad():
        before, after = (
            float((m.predict(x, t, m.embed(["a tiger"])) - m.predict(x, t, m.embed(["a cat"]))).square().mean())
            for m in (model, last)
        )
    assert after > before
