"""The effect of an edit: nothing for an edit of zeros, all of what the prompt adds for one that maps it to nothing."""

import torch
from toys import tiny

from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.edit import TextMap
from efface.core.effect import NOTHING, effect, sentence
from efface.erasers.negative import NegativePrompt
from efface.erasers.uce import UCE


def test_an_edit_of_zeros_does_nothing_and_says_so(base: Denoiser) -> None:
    none = TextMap(torch.zeros(64, 1), torch.zeros(64, 1))
    found = effect(base, none(base), Concept("tiger"))
    assert found == {"concept": "a tiger", "other": "a dog", "on_concept": 0.0, "on_other": 0.0}
    assert sentence(found).startswith(
        "Warning: this edit changes pictures of 'a tiger' by less than 5 % of what the prompt adds"
    )


def test_a_prompt_mapped_to_nothing_loses_all_that_it_adds(base: Denoiser) -> None:
    """An oracle: at the conditional prediction of "" the change is the prompt's whole difference, 1 by definition."""
    edit = UCE(ridge=1e-6, everyday=0).fit(base, "tiger", ["dog"])
    found = effect(base, edit(base), Concept("tiger"))
    assert 0.8 < float(found["on_concept"]) < 1.2
    assert float(found["on_other"]) < 0.3
    assert sentence(found) == (
        f"It changes the predictions for 'a tiger' by {100 * float(found['on_concept']):.0f} % of what the prompt adds, "
        f"for 'a dog' by {100 * float(found['on_other']):.0f} %."
    )
    weak = effect(base, (edit * 0.01)(base), Concept("tiger"))
    assert float(weak["on_concept"]) < NOTHING < float(found["on_concept"])


def test_a_change_of_the_guidance_is_seen(base: Denoiser) -> None:
    found = effect(base, NegativePrompt().fit(base, "tiger")(base), Concept("tiger"))
    assert float(found["on_concept"]) > NOTHING


def test_the_other_prompt_is_none_of_the_concepts_words() -> None:
    small = tiny(levels=1)
    assert effect(small, small, Concept("hot dog", "house"))["other"] == "a flower"
