"""Relearning: training on the concept's pictures lowers their error; each learning rate has its own marks."""

import pytest
import torch
from attacks.goals import erased, goal
from toys import tiny

from efface.attacks.parts.losses import Bank, denoising_error
from efface.attacks.relearn import Relearn
from efface.core.edit import Delta, LowRank


@pytest.mark.parametrize(
    ("rank", "kind", "label"), [(4, LowRank, "LoRA, rate 0.003"), (0, Delta, "weights, rate 0.0001")]
)
def test_training_lowers_the_error_on_the_concepts_pictures(rank: int, kind: type, label: str) -> None:
    base = tiny()
    edit = erased(base)
    model, own = edit(base), goal(base, edit=edit)
    found = Relearn(rank=rank).find(model, own, 600)
    assert len(found.attempts) == 2
    marks = found.attempts[label]
    assert marks[0][0].edit is None
    assert sorted(marks) == [0, 10, 30, 100, 300]
    # a step of four pictures costs 12 calls, 6 for each of two prompts
    assert [marks[m][0].about["steps"] for m in (10, 30, 100, 300)] == [1, 5, 16, 50]
    last = marks[300][0]
    assert isinstance(last.edit, kind)
    bank = Bank.of(model, 64, len(own.seeds), torch.Generator().manual_seed(9))
    with torch.no_grad():
        before, after = (
            float(denoising_error(m, own.targets, m.embed(own.prompts), bank, 1.0).mean())
            for m in (model, last.on(model, base))
        )
    assert after < before


def test_benign_pictures_are_of_other_things_and_the_control_is_turned() -> None:
    base = tiny()
    own = goal(base, others=("boat", "moon"))
    assert own.instead(own.others) == ["a boat", "a red moon"]
    assert not torch.equal(own.other_targets, own.targets)
    for name in ("neighbours", "others", "control", "merged"):
        found = Relearn.preset(name).find(base, own, 20)
        assert all(
            a.turned == (name == "control") for marks in found.attempts.values() for at in marks.values() for a in at
        )
    assert "names none" in Relearn.preset("others").applies(base, goal(base))


def test_a_lora_of_the_unedited_model_is_added_to_the_edited_one() -> None:
    base = tiny()
    edit = erased(base)
    model = edit(base)
    marks = Relearn(merged=True).find(model, goal(base, edit=edit), 100).attempts["LoRA, rate 0.003"]
    last = marks[max(marks)][0]
    assert last.edit is not None
    for name, w in last.on(model, base).params("denoiser").items():
        step = last.edit(base).params([name])[name] - base.params([name])[name]
        assert torch.allclose(w, model.params([name])[name] + step, atol=1e-5)
