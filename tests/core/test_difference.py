"""A model made elsewhere as an edit: it gives the model back, and what cannot be compared is refused."""

import pytest
import torch
from toys import tiny

from efface.core.concept import Concept
from efface.core.difference import ELSEWHERE, difference
from efface.core.errors import UsageError
from efface.erasers.uce import UCE

TIGER = (Concept("tiger", "cat"),)


def test_the_difference_gives_the_model_back() -> None:
    base = tiny()
    norm = next(name for name in base.params("text") if name.endswith("final_layer_norm.weight"))
    other = UCE().fit(base, TIGER, ["lion"])(base).fork([norm])
    other.params([norm])[norm].data.mul_(1.5)
    edit = difference(base, other, TIGER, "theirs")
    assert (edit.header.method, edit.header.erase) == (ELSEWHERE, TIGER)
    again = edit(base)
    for where in ("denoiser", "text"):
        for name, w in other.params(where).items():
            assert torch.allclose(again.params(where)[name], w, atol=1e-6)
    x, t, cond = base.noise([1]), torch.tensor([500]), other.embed(["a tiger"])
    assert torch.allclose(again.predict(x, t, again.embed(["a tiger"])), other.predict(x, t, cond), atol=1e-4)
    assert set(edit.deltas) < {**base.params("denoiser"), **base.params("text")}.keys()  # what is equal is not kept


def test_what_cannot_be_compared_is_one_sentence() -> None:
    base = tiny()
    with pytest.raises(UsageError, match="its weights are those of the unedited model"):
        difference(base, tiny(), TIGER, "theirs")
    with pytest.raises(UsageError, match="other names or shapes"):
        difference(base, tiny(levels=1), TIGER, "theirs")
    with pytest.raises(UsageError, match="another autoencoder"):
        difference(base, tiny(seed=1), TIGER, "theirs")
