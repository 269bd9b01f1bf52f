"""What ordinary tools offer: each variant draws, and does what its name says."""

import numpy as np
import torch
from attacks.goals import DRAWING, erased, goal
from toys import tiny

from efface.attacks.household import Household, louder
from efface.core.alterations import NETWORKS, WEIGHTS
from efface.core.attempt import Attempt, draw


def test_only_the_concepts_own_rows_are_scaled() -> None:
    base = tiny()
    own = goal(base)
    plain, loud = base.embed(own.prompts), louder(base, own, 1.6)
    ratio = (loud.tokens / plain.tokens).nan_to_num(1.0).mean(-1)
    (name,) = base.embed(["tiger"]).word_ids()
    for ids, row in zip(plain.ids.tolist(), ratio, strict=True):
        scaled = [i for i, x in enumerate(row.tolist()) if abs(x - 1.6) < 1e-4]
        assert [ids[i] for i in scaled] == name
        assert all(abs(x - 1) < 1e-4 for i, x in enumerate(row.tolist()) if i not in scaled)


def test_every_variant_draws_and_the_unedited_parts_bring_the_picture_back() -> None:
    base = tiny()
    edit = erased(base)
    model, own = edit(base), goal(base, edit=edit)
    plain = np.array(draw(model, [Attempt("", prompt=own.prompts[0])], [1], DRAWING), dtype=float)
    found = Household().find(model, own, 1).attempts
    assert {f"model: {name}" for name in (*WEIGHTS, *NETWORKS)} <= set(found)
    assert {"word:1.6", "lion for 20% of the steps", "negative: cat", "guidance 15", "sampler euler"} <= set(found)
    for label, marks in found.items():
        first = marks[0][0]
        drawn = draw(first.on(model, base), [first], [1], DRAWING)
        if label not in (
            "model: autoencoder",
            "model: text-encoder",
            "model: float16",
        ):  # this edit changes neither part
            assert np.abs(np.array(drawn) - plain).max() > 0, label
    half, whole = (
        np.abs(np.array(draw(m, [Attempt("", prompt=own.prompts[0])], [1], DRAWING), dtype=float) - plain).mean()
        for m in (found["model: merged"][0][0].on(model, base), base)
    )
    assert half > 0
    assert whole > 0


def test_a_weak_start_from_a_picture_is_the_picture_and_a_mask_keeps_what_it_does_not_cover() -> None:
    base = tiny()
    own = goal(base)
    found = Household(picture=True).find(base, own, 1).attempts
    assert len(found) == 10
    wish = np.array(base.pictures(own.targets[0, :1])[0], dtype=float)
    apart = {}
    for label, marks in found.items():
        if "the concept" in label:
            apart[label] = np.abs(np.array(draw(base, [marks[0][0]], [7], DRAWING)[0][0]) - wish).mean()
    assert apart["from the concept, strength 0.3"] < apart["from the concept, strength 0.9"]
    middle = found["middle of the concept"][0][0]
    assert middle.mask is not None
    assert 0 < float(middle.mask.mean()) < 1
    assert torch.equal(middle.picture, own.targets[0, 0].cpu())
