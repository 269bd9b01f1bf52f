"""Concepts to erase or preserve: a name, a target, other prompts for it, and a kind. No tensors."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from efface.core.errors import UsageError, nearest

LONGEST = 300  # characters of a name or a prompt; text encoders read some 75 words
JOINERS = "\u200c\u200d"  # invisible, but part of words in Persian and Indic scripts, and of emoji

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
        # a list is not hashable, and a string is one prompt
        for name, text in {"name": self.name, "target": self.target, "prompts": tuple(given)}.items():
            object.__setattr__(self, name, tuple(map(_clean, text)) if isinstance(text, tuple) else _clean(text))
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


def _clean(text: str) -> str:
    """Text in Unicode's composed form (NFC): "é" of one or two characters is one name.

    Raises:
        UsageError: characters that nobody sees, or a text that is no name.
    """
    text = unicodedata.normalize("NFC", text)
    unseen = (c for c in text if unicodedata.category(c)[0] == "C" and c not in JOINERS)
    if hidden := next(unseen, None):
        raise UsageError(f"concept: expected visible characters, got U+{ord(hidden):04X} in {text[:40]!r}; delete it")
    if len(text) > LONGEST:
        raise UsageError(f"concept: expected at most {LONGEST} characters, got {len(text)}: {text[:40]!r}…; shorten it")
    return text


def article(words: str) -> str:
    """The words with "a" or "an" before them, unless they start with an article."""
    if words.lower().startswith(("a ", "an ", "the ")):
        return words
    return f"an {words}" if words[:1].lower() in tuple("aeiou") else f"a {words}"


def same(a: str, b: str) -> bool:
    """Whether two names are equal, ignoring case and spacing."""
    return a.lower().split() == b.lower().split()


def apart(erase: Iterable[Concept], preserve: Iterable[Concept], where: str = "erase") -> None:
    """Refuse a concept that is erased twice, or both erased and preserved.

    Raises:
        UsageError: there is one.
    """
    names: list[str] = []
    for c in erase:
        if any(same(c.name, other) for other in names):
            raise UsageError(f"{where}: {c.name!r} is given twice; give it once")
        names.append(c.name)
    for p in preserve:
        if any(same(p.name, name) for name in names):
            raise UsageError(f"{where}: {p.name!r} is both erased and preserved; take it out of one of the lists")


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
