"""Goals on toys for the tests of attacks."""

from typing import Any

from toys import tiny

from efface.attacks.base import Goal
from efface.core.attempt import Drawing
from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.edit import Edit
from efface.erasers.uce import UCE

DRAWING = Drawing(steps=4)


def erased(base: Denoiser) -> Edit:
    """A closed-form edit of the toy that turns its tiger into a cat."""
    return UCE().fit(base, [Concept("tiger", "cat")], ["lion"])


def goal(base: Denoiser | None = None, **changes: Any) -> Goal:
    """Two prompts that name the tiger, and two seeds."""
    given = {
        "concept": Concept("tiger", "cat"), "prompts": ("a tiger", "a red tiger"), "base": base or tiny(), "seeds": (1000, 1001),
        "drawing": DRAWING, "synonyms": ("king",), "descriptions": ("a happy red cat",), "neighbours": ("lion",), **changes,
    }  # fmt: skip
    return Goal(**given)
