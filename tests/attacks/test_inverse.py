"""The inverse of a linear map of the text embeddings: the unedited model's picture comes back."""

import families
import numpy as np
import pytest
import torch
from attacks.goals import DRAWING, erased, goal
from toys import tiny

from efface.attacks.inverse import Inverse
from efface.core.attempt import Attempt, draw
from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.edit import Edit, TextMap
from efface.core.errors import UsageError
from efface.erasers.esd import ESD
from efface.erasers.uce import UCE

SEEDS = [1, 2]


def apart(one: list[list[np.ndarray]], other: list[list[np.ndarray]]) -> float:
    """Largest difference of two sets of pictures, of 1."""
    return float(np.abs(np.array(one, dtype=float) - np.array(other)).max()) / 255


def replayed(base: Denoiser, edit: Edit) -> tuple[float, float]:
    """How far the edited model's pictures are from the unedited one's: asked by name, and by what the attack found."""
    model, own = edit(base), goal(base, edit=edit)
    found = Inverse().find(model, own, 10)
    assert found.calls == 0
    plain = [Attempt("none", prompt=p) for p in own.prompts]
    wanted = draw(base, plain, SEEDS, DRAWING)
    return apart(draw(model, plain, SEEDS, DRAWING), wanted), apart(
        draw(model, found.attempts[""][0], SEEDS, DRAWING), wanted
    )


def test_the_unedited_picture_comes_back_to_a_thousandth() -> None:
    base = tiny()
    before, after = replayed(base, erased(base))
    assert before > 0.05
    assert after <= 1 / 255 + 1e-9  # one step of 8 bits


def test_edits_in_a_stack_and_at_a_strength_are_undone_in_their_order() -> None:
    base = tiny()
    rng = torch.Generator().manual_seed(1)
    left, right = (torch.randn(2, 64, 3, generator=rng) / 8 for _ in range(2))
    other = TextMap(left[0], right[0]) + TextMap(left[1], right[1]) * 0.5
    before, after = replayed(base, other)
    assert before > 0.05
    assert after <= 1 / 255 + 1e-9


def test_it_says_why_it_does_not_apply() -> None:
    base = tiny()
    with pytest.raises(UsageError, match="needs the edit's file"):
        Inverse().find(base, goal(base), 10)
    trained = ESD(steps=1, batch=1, sampler_steps=2).fit(base, ["tiger"])
    with pytest.raises(UsageError, match="linear maps of the text embeddings only"):
        Inverse().find(trained(base), goal(base, edit=trained), 10)


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux-dev"])
def test_on_other_families_it_gives_the_unedited_predictions_back(family: str) -> None:
    """Rows of every tokenizer and the pooled vector: to rounding, what the unedited model predicts."""
    base = Denoiser(families.MAKERS[family]())
    edit = UCE().fit(base, [Concept("tiger", "cat")], ["lion"])
    own = goal(base, prompts=("a tiger",), edit=edit)
    ((found,),) = (marks[max(marks)] for marks in Inverse().find(edit(base), own, 10).attempts.values())
    assert found.rows is not None
    x, t, plain = torch.randn(2, *base.latent_shape), torch.tensor([900, 300]), base.embed(["a tiger"])
    with torch.no_grad():
        before, edited, after = (
            base.predict(x, t, plain),
            edit(base).predict(x, t, plain),
            edit(base).predict(x, t, found.rows),
        )
    assert float((after - before).norm()) < 0.01 * float((edited - before).norm())
    assert float((edited - before).norm() / before.norm()) > 0.05
