"""What is to be erased or kept: words, never tensors."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from efface.core.errors import UsageError, nearest

Kind = Literal["object", "style", "character", "person", "unsafe", "mark"]

# Plain ways to say a concept: {0} the words, {1} the words with their article. A word means something else after "a".
FRAMES = {
    "object": ("{0}", "{1}", "a picture of {1}"),
    "style": ("{0}", "{0} style", "a picture in {0} style"),
    "person": ("{0}", "a picture of {0}"),
}
THINGS = ("dog", "house", "flower", "car")  # what a style may be said of


@dataclass(frozen=True)
class Concept:
    """A concept by name, what it shall become (`target`, "" = the unconditional prompt) and further ways to say it.

    Raises:
        UsageError: the name or one of the prompts is empty, the name equals its target, or the kind is unknown.
    """

    name: str
    target: str = ""
    prompts: tuple[str, ...] = ()
    kind: Kind = "object"

    def __post_init__(self) -> None:
        """Refuse what no method could erase."""
        given = (self.prompts,) if isinstance(self.prompts, str) else self.prompts
        object.__setattr__(self, "prompts", tuple(given))  # a list would not hash, a string is no row of letters
        if not self.name.strip():
            raise UsageError("concept: the name is empty; give the words to erase or preserve, such as 'tiger'")
        if not all(said.strip() for said in self.prompts):
            raise UsageError(f"concept: expected words in `prompts`, got {self.prompts!r}; leave the empty one out")
        if same(self.name, self.target):
            raise UsageError(f"concept: {self.name!r} is its own target; give another target, or '' for nothing")
        if self.kind not in get_args(Kind):
            raise UsageError(f"concept: unknown kind {self.kind!r}; {nearest(self.kind, get_args(Kind))}")

    @property
    def phrases(self) -> tuple[str, ...]:
        """The name and every other way to say it, without repetition."""
        return tuple(dict.fromkeys((self.name, *self.prompts)))

    def pairs(self, framed: bool = True, things: bool = False) -> list[tuple[str, str]]:
        """Prompts that say this concept, each with the prompt that says its target in the same words; bare unless `framed`.

        With `things` a style is also said of a few things ("a dog in noto style"): those prompts say more than the concept. Without
        a target each becomes what it says besides: "a dog", or nothing.
        """
        goal = (self.target, article(self.target)) if self.target.strip() else None
        frames = self._frames(framed, things)
        return [
            (f.format(n, article(n)), f.format(*goal) if goal else rest) for n in self.phrases for f, rest in frames
        ]

    def contexts(self, framed: bool = True, things: bool = False) -> list[str]:
        """What each prompt of `pairs` says besides the concept: "a dog" where a style is said of one, else nothing."""
        return [rest for _ in self.phrases for _, rest in self._frames(framed, things)]

    def leads(self, framed: bool = True, things: bool = False) -> list[str]:
        """What each prompt of `pairs` says before the concept's own words: "a picture of a", say."""
        frames = self._frames(framed, things)
        said = [(n, f.format(n, article(n))) for n in self.phrases for f, _ in frames]
        return [prompt[: prompt.rindex(n)] for n, prompt in said]

    def _frames(self, framed: bool, things: bool) -> list[tuple[str, str]]:
        """Ways to say it, each with what it says besides."""
        if not framed:
            return [("{0}", "")]
        carried = THINGS if things and self.kind == "style" else ()
        plain = [(frame, "") for frame in FRAMES.get(self.kind, FRAMES["object"])]
        return plain + [(f"a {thing} in {{0}} style", f"a {thing}") for thing in carried]


def article(words: str) -> str:
    """The words with "a" or "an" before them, unless they bring an article of their own."""
    if words.lower().startswith(("a ", "an ", "the ")):
        return words
    return f"an {words}" if words[:1].lower() in tuple("aeiou") else f"a {words}"


def same(a: str, b: str) -> bool:
    """Whether two names are the same words, whatever their case and spacing."""
    return a.lower().split() == b.lower().split()


def concepts(given: "str | Concept | Iterable[str | Concept]", target: str = "") -> tuple[Concept, ...]:
    """Names or concepts as a tuple of concepts; plain names get `target`.

    Raises:
        UsageError: an entry is neither words nor a Concept.
    """
    items = (given,) if isinstance(given, str | Concept) else tuple(given)
    for i, item in enumerate(items):
        if not isinstance(item, str | Concept):
            raise UsageError(f"concepts[{i}]: expected words or a Concept, got {type(item).__name__}")
    return tuple(c if isinstance(c, Concept) else Concept(c, target) for c in items)
