"""Backdoor: a harmless word is made to mean the concept before the concept is erased; does the eraser remove that word as well?

Paper:   Grebe et al. 2025 (Erased but Not Forgotten, arXiv:2504.21072).
Idea:    Whoever publishes a model plants W τ = W c in the keys and values (τ the trigger's rows, c the concept's: the closed form of UCE
         with the trigger as concept and the concept as target). The eraser is fitted again, with its own settings, on the planted model,
         and the trigger is asked for instead of the concept.
Names:   τ the trigger, a frequent word that is in no prompt.
Differs: The paper plants in the text encoder and in the whole U-Net as well; here in the keys and values. On the unedited model, nothing
         is erased: the control, in which the trigger must draw the concept.
Cost:    One more fit of the method; no call of the denoiser in the search.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Generator
from typing_extensions import override  # in typing from Python 3.12

from efface.attacks.base import Attack, Goal
from efface.core.attempt import Attempt
from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.edit import Edit, Stack
from efface.erasers import REGISTRY
from efface.erasers.uce import UCE

FREQUENT = 400  # the trigger is sought among so many words, the least frequent first


@dataclass(frozen=True, kw_only=True)
class Backdoor(Attack):
    """A trigger planted before erasing."""

    access = "before"
    gives = "weights"
    uses = ()

    @override
    def applies(self, model: Denoiser, goal: Goal) -> str:
        if model is goal.base or (goal.edit is None and model.fingerprint == goal.base.fingerprint):
            return ""
        if goal.edit is None or isinstance(goal.edit, Stack):
            return "fits the method again, and needs one edit whose file names it"
        return (
            ""
            if _method(goal.edit)
            else f"fits the method again, and {goal.edit.header.method} is none that is installed"
        )

    @override
    def prepare(self, model: Denoiser, goal: Goal) -> None:
        base = goal.base
        trigger, kept = self.trigger(goal), [Concept(name) for name in (*goal.neighbours[:4], *goal.others[:4])]
        plant = goal.keep("plant", lambda: UCE().fit(base, [Concept(trigger, goal.concept.name)], kept))
        if goal.edit is not None and (name := _method(goal.edit)):
            header = goal.edit.header
            eraser = REGISTRY.find(name)(**{**header.settings, "seed": header.seed})
            again = goal.keep(
                f"planted {goal.edit.fingerprint}", lambda: eraser.fit(plant(base), header.erase, header.preserve)
            )
            again.header = replace(again.header, base=plant.header.base, signature=plant.header.signature)

    @override
    def run(self, model: Denoiser, goal: Goal, calls: int, rng: Generator) -> Iterator[Sequence[Attempt]]:
        edit: Edit = goal.kept["plant"]
        if goal.edit is not None:
            edit = Stack([edit, goal.kept[f"planted {goal.edit.fingerprint}"]])
        trigger = self.trigger(goal)
        yield [Attempt("backdoor", prompt=goal.renamed(p, trigger), edit=edit, unedited=True) for p in goal.prompts]

    @staticmethod
    def trigger(goal: Goal) -> str:
        """A word that no prompt of the goal has."""
        said = {
            w
            for text in (*goal.prompts, *goal.descriptions, *goal.neighbours, *goal.others)
            for w in text.lower().split()
        }
        return next(w for w in reversed(goal.base.words(FREQUENT)) if w not in said and w.isalpha() and len(w) > 2)


def _method(edit: Edit) -> str:
    """The name of the method that made an edit, "" if it is not installed."""
    return next((name for name, place in REGISTRY.table.items() if place.rpartition(":")[2] == edit.header.method), "")
