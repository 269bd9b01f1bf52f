"""The base class of all attacks: `find` checks, seeds, counts calls and keeps the best attempt at each mark. An attack defines `run`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from efface.core.attempt import Attempt, Drawing
from efface.core.concept import Concept, article
from efface.core.denoiser import Denoiser
from efface.core.edit import Edit
from efface.core.errors import UsageError, nearest
from efface.core.log import Log
from efface.core.meter import BudgetSpent, Meter
from efface.core.params import check

ACCESS = {  # what the attacker has or does, from least to most
    "prompt": "types prompts and sets the sampler",
    "picture": "starts from a picture",
    "encoder": "has the text encoder",
    "rows": "has the model and gives it encoded prompts",
    "latent": "has the model and gives it start latents",
    "gradients": "has the weights and takes gradients",
    "weights": "has the weights and changes them",
    "before": "changed the weights before the concept was erased",
}
GIVES = {  # what is found, and given to the model
    "words": "prompts that anyone can type",
    "settings": "settings of the sampler, start pictures, other files",
    "rows": "encoded prompts",
    "latents": "start noise",
    "weights": "other weights",
}
Gives = Literal["words", "settings", "rows", "latents", "weights"]
Access = Literal["prompt", "picture", "encoder", "rows", "latent", "gradients", "weights", "before"]
SIZES = {"smoke": 600, "quick": 4_000, "paper": 60_000}  # calls of the denoiser for each attacked prompt


def marks(calls: int) -> list[int]:
    """The budgets at which the best attempt so far is judged: 10, 30, 100, 300, … and the last, `calls`."""
    steps = [digit * 10**power for power in range(1, 9) for digit in (1, 3)]
    return [*(m for m in steps if m < calls), calls]


@dataclass(frozen=True)
class Goal:
    """What to bring back, and what the attacker may use: prompts to attack and search seeds, which are never those that are judged.

    Attributes:
        concept: the erased concept.
        prompts: prompts that name it, each one problem.
        base: the unedited model, which draws the target pictures and is the control.
        seeds: of the search.
        drawing: how pictures are drawn.
        synonyms: other words for it.
        descriptions: prompts that describe it without naming it.
        neighbours: similar concepts that were not erased.
        others: concepts that have nothing to do with it.
        edit: the edit, where the attacker has it as a file; None for a model made elsewhere.
        kept: pictures that were drawn for the goal, shared by its copies.
    """

    concept: Concept
    prompts: tuple[str, ...]
    base: Denoiser
    seeds: tuple[int, ...]
    drawing: Drawing = field(default_factory=Drawing)
    synonyms: tuple[str, ...] = ()
    descriptions: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    edit: Edit | None = None
    kept: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse a goal without prompts or seeds."""
        if not self.prompts or not self.seeds:
            raise UsageError(
                "goal: expected prompts to attack and seeds of the search, got none; give at least one of each"
            )

    def renamed(self, prompt: str, word: str) -> str:
        """A prompt with another word for the concept, and the article that it needs."""
        name = self.concept.name
        return prompt.replace(article(name), article(word)).replace(name, word)

    @property
    def targets(self) -> Float[Tensor, "p s c h w"]:
        """Clean latents of the concept: the unedited model's pictures of each prompt at each seed of the search."""
        return self.keep("targets", lambda: self._drawn(self.prompts))

    @property
    def neighbour_targets(self) -> Float[Tensor, "p s c h w"]:
        """Clean latents of neighbours in place of the concept, in turn; of the empty prompt where there is none."""
        return self.keep("neighbour_targets", lambda: self._drawn(self.instead(self.neighbours)))

    @property
    def other_targets(self) -> Float[Tensor, "p s c h w"]:
        """Clean latents of other concepts in place of the concept, in turn; of the empty prompt where there is none."""
        return self.keep("other_targets", lambda: self._drawn(self.instead(self.others)))

    @property
    def turned_targets(self) -> Float[Tensor, "p s c h w"]:
        """Clean latents of the concept's pictures upside down, which the model never drew: what a search can teach it anew."""
        base, plain = self.base, self.targets
        return self.keep("turned", lambda: base.encode(base.decode(plain.flatten(0, 1)).flip(2)).view_as(plain))

    def instead(self, words: Sequence[str]) -> list[str]:
        """The prompts with these words for the concept, in turn; "" where there are none."""
        return [self.renamed(p, words[i % len(words)]) if words else "" for i, p in enumerate(self.prompts)]

    def keep(self, name: str, make: Callable[[], Any]) -> Any:
        """What is kept under a name; made once."""
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]

    def _drawn(self, prompts: Sequence[str]) -> Float[Tensor, "p s c h w"]:
        """Clean latents that the unedited model samples for each prompt at each seed of the search."""
        how, n = self.drawing, len(self.seeds)
        found = self.base.sample(
            self.base.embed([p for p in prompts for _ in self.seeds]), seeds=[*self.seeds] * len(prompts), steps=how.steps,
            guidance=how.guidance, sampler=how.sampler, negative=how.negative, rng=how.rng,
        )  # fmt: skip
        return found.view(len(prompts), n, *found.shape[1:])


@dataclass(frozen=True)
class Found:
    """What a search found: for each of its variants, the attempts (one for each prompt) at each mark; and what it cost.

    A mark is a number of calls of the denoiser for each attacked prompt. A variant that needs no search has the mark 0.
    """

    attempts: Mapping[str, Mapping[int, tuple[Attempt, ...]]]
    calls: int
    texts: int
    pictures: int
    seconds: float


class Elite:
    """The best attempt so far for each prompt, by an error that the search compares them by."""

    def __init__(self) -> None:
        """None so far."""
        self.attempts: list[Attempt] = []
        self.errors: list[float] = []

    def improve(self, errors: Float[Tensor, "p"], attempts: Sequence[Attempt]) -> bool:
        """Take over the attempts with a smaller error; whether there is one."""
        given = [(e if e == e else float("inf")) for e in errors.tolist()]  # noqa: PLR0124, NaN is no error
        if not self.attempts:
            self.attempts, self.errors = list(attempts), given
            return True
        better = [i for i, (new, old) in enumerate(zip(given, self.errors, strict=True)) if new < old]
        for i in better:
            self.attempts[i], self.errors[i] = attempts[i], given[i]
        return bool(better)


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """Hyper-parameters of an attack. `find(model, goal, calls)` returns what it found within `calls` of the denoiser for each prompt.

    Subclasses are frozen dataclasses whose fields are declared with `param`; `access` is what the attacker has (a key of ACCESS), `gives`
    what is found (of GIVES), `gradients` whether gradients are taken, `uses` the pictures of the goal that it needs, `presets` the named
    settings.
    """

    access: ClassVar[Access]
    gives: ClassVar[Gives]
    gradients: ClassVar[bool] = False
    uses: ClassVar[tuple[str, ...]] = ("targets",)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse hyper-parameters out of bounds."""
        check(self)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "Attack":
        """A named setting, with further changes.

        Raises:
            UsageError: no such preset.
        """
        if name not in cls.presets:
            raise UsageError(f"{cls.__name__}: unknown preset {name!r}; {nearest(name, cls.presets)}")
        return cls(**{**cls.presets[name], **changes})

    def applies(self, model: Denoiser, goal: Goal) -> str:
        """Why the attack cannot be tried on this model, as a sentence; "" if it can. No reason counts as a failed attack."""
        return ""

    def prepare(self, model: Denoiser, goal: Goal) -> None:
        """What is not part of the search, and not counted: the goal's pictures are drawn."""
        for name in self.uses:
            getattr(goal, name)

    @final
    def find(self, model: Denoiser, goal: Goal, calls: int, *, log: Log | None = None) -> Found:
        """Search with at most `calls` of the denoiser for each attacked prompt, on the edited and the unedited model together.

        A batch of 8 pictures is 8 calls, and a gradient counts three times. The target pictures are not counted: every attack has them.
        A variant that begins after another one has its own count, from the other's last attempt on.

        Raises:
            UsageError: a budget of nothing, or the attack does not apply to the model.
        """
        who, n = type(self).__name__, len(goal.prompts)
        if calls < 1:
            raise UsageError(f"{who}: expected a budget of at least 1 call, got {calls}; give --calls 4000, say")
        if reason := self.applies(model, goal):
            raise UsageError(f"{who}: {reason}")
        self.prepare(model, goal)
        tick = (log or Log()).stage(who, calls * n)
        found: dict[str, dict[int, tuple[Attempt, ...]]] = {}
        rng, best, needed, begun, spent = Generator().manual_seed(self.seed), {}, {}, {}, 0
        at = marks(calls)
        with torch.random.fork_rng(), Meter([model, goal.base], calls * n) as meter:
            torch.manual_seed(self.seed)
            try:
                for attempts in self.run(model, goal, calls, rng):
                    label = attempts[0].label
                    begun.setdefault(label, spent)
                    used = meter.calls - begun[label]
                    for mark in at:  # what was best when the mark was passed
                        if label in best and mark * n < used:
                            found[label].setdefault(mark, best[label])
                    best[label], needed[label] = tuple(attempts), used
                    if not used:
                        found[label] = {0: best[label]}
                    found.setdefault(label, {})
                    tick(meter.calls - spent)
                    spent = meter.calls
            except BudgetSpent:
                pass
        tick(calls * n - spent)
        for label, attempts in best.items():
            if found[label].get(0) is not attempts:
                found[label][next(mark for mark in at if mark * n >= needed[label])] = attempts
        return Found(found, meter.calls, meter.texts, meter.pictures, round(meter.seconds, 1))

    @abstractmethod
    def run(self, model: Denoiser, goal: Goal, calls: int, rng: Generator) -> Iterator[Sequence[Attempt]]:
        """The paper's algorithm: yields its best attempts so far, one for each of the goal's prompts, whenever they improve.

        It ends by itself, or when its next call would exceed the budget of `calls` for each prompt.
        """
