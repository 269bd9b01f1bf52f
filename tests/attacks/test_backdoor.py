"""Backdoor: the planted trigger reads as the concept, and the eraser is fitted again on the planted model."""

from dataclasses import replace

from attacks.goals import erased, goal
from toys import tiny

from efface.attacks.backdoor import Backdoor
from efface.core.concept import Concept
from efface.core.edit import Stack
from efface.erasers.uce import UCE


def test_the_trigger_has_the_concepts_keys_and_values_before_erasing() -> None:
    base = tiny()
    own = goal(base)
    (attempt, _) = Backdoor().find(base, own, 10).attempts[""][0]
    trigger = Backdoor.trigger(own)
    assert attempt.prompt == own.renamed("a tiger", trigger)
    planted = attempt.on(base, base)
    rows = base.embed([trigger, "tiger"])
    near, far = [], []
    for name, layer in planted.text_readers().items():
        made = layer(rows.tokens[0, rows.last[0]])
        asked, plain = (base.text_readers()[name](rows.tokens[i, rows.last[i]]) for i in (1, 0))
        near.append(float((made - asked).norm() / asked.norm()))
        far.append(float((plain - asked).norm() / asked.norm()))
    assert max(near) < 0.3 * min(far)


def test_the_method_is_fitted_again_on_the_planted_model_with_its_own_settings() -> None:
    base = tiny()
    edit = erased(base)
    model, own = edit(base), goal(base, edit=edit)
    (attempt, _) = Backdoor().find(model, own, 10).attempts[""][0]
    assert isinstance(attempt.edit, Stack)
    again = own.kept[f"planted {edit.fingerprint}"]
    assert again.header.settings == edit.header.settings
    assert again.header.erase == edit.header.erase
    planted = own.kept["plant"](base)
    assert attempt.on(model, base).fingerprint == again(planted, any_base=True).fingerprint
    alone = UCE().fit(planted, [Concept("tiger", "cat")], ["lion"])
    assert alone.fingerprint == again.fingerprint


def test_a_model_without_a_file_or_of_an_unknown_method_is_a_reason() -> None:
    base = tiny()
    edit = erased(base)
    assert "needs one edit" in Backdoor().applies(edit(base), goal(base))
    unknown = edit.stamped(replace(edit.header, method="Nothing"))
    assert "Nothing is none that is installed" in Backdoor().applies(edit(base), goal(base, edit=unknown))
    assert Backdoor().applies(base, goal(base)) == ""
