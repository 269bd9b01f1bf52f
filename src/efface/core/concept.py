"""Concepts to erase or preserve: a name, a target, other prompts for it, and a kind. No tensors."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from efface.core.errors import UsageError, nearest

Kind = Literal["object", "style", "character", "person", "unsafe", "mark"]


@dataclass(frozen=True)
class Concept:
    """A concept: its name, its `target` ("" = the unconditional prompt), other prompts for it, and its kind.

    Raises:
        UsageError: the name or one of the prompts is empty, the name equals its target, or the kind is unknown.
    """

    name: str
    target: str = ""
    prompts: tuple[str, ...] = ()
    kind: Kind = "object"

    def __post_init__(self) -> None:
        """Refuse concepts that no method can erase."""
        given = (self.prompts,) if isinstance(self.prompts, str) else self.prompts
        object.__setattr__(self, "prompts", tuple(given))  # a list is not hashable, and a string is one prompt
        if not self.name.strip():
            raise UsageError("concept: the name is empty; give the words to erase or preserve, such as 'tiger'")
        if not all(prompt.strip() for prompt in self.prompts):
            raise UsageError(f"concept: expected text in `prompts`, got {self.prompts!r}; leave the empty one out")
        if same(self.name, self.target):
            raise UsageError(f"concept: {self.name!r} is its own target; give another target, or '' for nothing")
        if self.kind not in get_args(Kind):
            raise UsageError(f"concept: unknown kind {self.kind!r}; {nearest(self.kind, get_args(Kind))}")

    @property
    def phrases(self) -> tuple[str, ...]:
        """The name and the other prompts, without repetition."""
        return tuple(dict.fromkeys((self.name, *self.prompts)))


def article(words: str) -> str:
    """The words with "a" or "an" before them, unless they start with an article."""
    if words.lower().startswith(("a ", "an ", "the ")):
        return words
    return f"an {words}" if words[:1].lower() in tuple("aeiou") else f"a {words}"


def same(a: str, b: str) -> bool:
    """Whether two names are equal, ignoring case and spacing."""
    return a.lower().split() == b.lower().split()


def concepts(given: "str | Concept | Iterable[str | Concept]", target: str = "") -> tuple[Concept, ...]:
    """Names and concepts as a tuple of concepts; plain names get `target`.

    Raises:
        UsageError: an entry is neither a string nor a Concept.
    """
    items = (given,) if isinstance(given, str | Concept) else tuple(given)
    for i, item in enumerate(items):
        if not isinstance(item, str | Concept):
            raise UsageError(f"concepts[{i}]: expected a string or a Concept, got {type(item).__name__}; give its name")
    return tuple(c if isinstance(c, Concept) else Concept(c, target) for c in items)
