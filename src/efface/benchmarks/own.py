"""A benchmark of the user's own: any concept on any model. What to ask stands in a plan, a TOML file that can be edited and given again.

What the user leaves open is proposed from the text encoder alone: of the tokenizer's frequent words, those nearest to the concept are
its neighbours, and the farthest ones distant concepts.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch.nn.functional import normalize

from efface.benchmarks.row import Role
from efface.benchmarks.spec import Benchmark, Cell, Judge, Sampler, Task
from efface.core.concept import Concept, Kind, apart, article
from efface.core.denoiser import Denoiser
from efface.core.errors import UsageError, nearest
from efface.core.files import read_text

MODEL = "model"  # the judge that needs nothing else: the unedited model's own classifier
WORDS = 1000  # frequent words among which concepts are proposed
PROPOSED = 4  # neighbours, and as many distant concepts
PICTURES = {
    "smoke": 2,
    "demo": 4,
    "quick": 6,
    "full": 24,
}  # of what is erased; of other words and other concepts half as many


@dataclass(frozen=True)
class Questions:
    """What to ask of models that erased concepts: the entries of a plan file.

    Attributes:
        erase: what was erased, by name.
        kind: of these: object, style, person.
        synonyms: other words for what was erased.
        descriptions: prompts that describe it without its name.
        neighbours: concepts that are like it and shall stay.
        distant: concepts that are not.
        judge: "model" (the unedited model's own classifier), or any detector of `efface evaluate --help`.
        pictures: of each erased concept; half as many of everything else.
        steps: of the sampler.
        guidance: scale of the guidance.
        sampler: by name.
        negative: negative prompt.
    """

    erase: tuple[str, ...] = ()
    kind: str = "object"
    synonyms: tuple[str, ...] = ()
    descriptions: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    distant: tuple[str, ...] = ()
    judge: str = MODEL
    pictures: int = 6
    steps: int = 25
    guidance: float = 7.5
    sampler: str = "ddim"
    negative: str = ""

    def __post_init__(self) -> None:
        """Refuse what would be a crash or a wrong number an hour later.

        Raises:
            UsageError: nothing to ask, a concept that is both erased and to stay, a name twice, or a value out of bounds.
        """
        if not self.erase:
            raise UsageError("plan: expected concepts in 'erase', got none; name what was erased")
        if self.kind not in get_args(Kind):
            raise UsageError(f"plan: unknown kind {self.kind!r}; {nearest(self.kind, get_args(Kind))}")
        if min(self.pictures, self.steps) < 1:
            raise UsageError(f"plan: expected pictures and steps of at least 1, got {self.pictures} and {self.steps}")
        apart([Concept(n) for n in self.erase], [Concept(n) for n in (*self.neighbours, *self.distant)], "plan")
        names = (*self.erase, *self.neighbours, *self.distant)
        if twice := next((n for i, n in enumerate(names) if n in names[:i]), None):
            raise UsageError(f"plan: {twice!r} is named twice; name it once")

    def text(self) -> str:
        """The plan as TOML."""
        lines = ["# What `efface evaluate` asked. Edit it and give it with --plan to ask something else.", ""]
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, tuple):
                lines.append(f"{f.name} = [{', '.join(_quoted(v) for v in value)}]")
            else:
                lines.append(f"{f.name} = {_quoted(value) if isinstance(value, str) else value}")
        return "\n".join(lines) + "\n"

    def says(self, name: str, i: int = 0) -> str:
        """A prompt that asks for a concept; the forms take turns with `i`."""
        if name in self.erase and self.kind == "style":
            return (f"a picture in {name} style", f"a house in {name} style", f"a dog in {name} style")[i % 3]
        plain = name if name in self.erase and self.kind == "person" else article(name)
        return (f"a picture of {plain}", plain)[i % 2]

    def benchmark(self) -> Benchmark:
        """The benchmark with one task."""
        labels = (*self.erase, *self.neighbours, *self.distant)
        few = max(1, self.pictures // 2)
        asked: list[tuple[Role, Sequence[str], int]] = [
            ("erase", self.erase, self.pictures), ("neighbour", self.neighbours, few), ("distant", self.distant, few),
        ]  # fmt: skip
        cells = [
            Cell(role, name, self.says(name, i), 1000 * labels.index(name) + i, group="untold" if role == "neighbour" else "")
            for role, names, count in asked for name in names for i in range(count)
        ]  # fmt: skip
        otherwise: list[tuple[Role, Sequence[str]]] = [("synonym", self.synonyms), ("implicit", self.descriptions)]
        for k, (role, texts) in enumerate(otherwise):
            for j, text in enumerate(texts):
                said = self.says(text) if role == "synonym" and self.kind != "style" else text
                cells += [Cell(role, self.erase[0], said, 100_000 * (k + 1) + 1000 * j + i) for i in range(few)]
        judge = Judge(self.judge, ("top1",), labels=labels)
        task = Task(
            "+".join(self.erase[:3]),
            tuple(Concept(n, kind=cast(Kind, self.kind)) for n in self.erase),
            cells=tuple(cells),
        )
        return Benchmark(
            name="own",
            about=f"{', '.join(self.erase)} on a model of the user's",
            source="the user's plan",
            tasks=lambda files: [task],
            judges={"concept": judge},
            sampler=Sampler(self.sampler, self.steps, self.guidance, self.negative),
        )


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def read_plan(path: Path) -> Questions:
    """The questions in a plan file.

    Raises:
        UsageError: no such file, no TOML, an unknown entry, or one of the wrong type; the message names it.
    """
    if not path.is_file():
        raise UsageError(
            f"--plan: no such file {str(path)!r}; `efface evaluate` writes one as plan.toml into its folder"
        )
    try:
        raw = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"--plan: {path} is no TOML ({error}); mend that line") from error
    return questions(raw, str(path))


def questions(raw: Mapping[str, Any], where: str) -> Questions:
    """Questions from plain values, checked entry by entry.

    Raises:
        UsageError: an unknown entry, or one of the wrong type.
    """
    defaults = asdict(Questions(erase=("x",)))
    given: dict[str, Any] = {}
    for name, value in raw.items():
        if name not in defaults:
            raise UsageError(f"--plan: {where}: unknown entry {name!r}; {nearest(name, defaults)}")
        if isinstance(defaults[name], tuple):
            values = [value] if isinstance(value, str) else value
            if not isinstance(values, list | tuple) or not all(isinstance(v, str) and v.strip() for v in values):
                raise UsageError(
                    f'--plan: {where}: expected a list of names for {name}, got {value!r}; write ["a", "b"]'
                )
            given[name] = tuple(v.strip() for v in values)
        else:
            kind = type(defaults[name])
            right = isinstance(value, int | float if kind is float else kind) and not isinstance(value, bool)
            if not right:
                raise UsageError(f"--plan: {where}: expected {kind.__name__} for {name}, got {value!r}; mend it")
            given[name] = kind(value)
    return Questions(**given)


def proposed(given: Questions, base: Denoiser) -> Questions:
    """The questions with proposals where `neighbours` or `distant` is empty."""
    if given.neighbours and given.distant:
        return given
    taken = {
        w for name in (*given.erase, *given.synonyms, *given.neighbours, *given.distant) for w in name.lower().split()
    }
    words = [w for w in base.words(WORDS) if w not in taken]
    if len(words) < 2 * PROPOSED:
        raise UsageError(
            "evaluate: the model's tokenizer has too few words to propose concepts that shall stay; give --neighbours and --distant"
        )
    vectors, own = _vectors(base, words), _vectors(base, given.erase)
    centre = vectors.mean(0)  # what all words share
    like = normalize(vectors - centre, dim=1) @ normalize(own - centre, dim=1).mean(0)
    order = [words[i] for i in like.argsort(descending=True, stable=True).tolist()]
    return replace(
        given, neighbours=given.neighbours or tuple(order[:PROPOSED]), distant=given.distant or tuple(order[-PROPOSED:])
    )


def _vectors(base: Denoiser, texts: Sequence[str]) -> torch.Tensor:
    """One vector for each text: the pooled one, where the model reads it, or the embedding of the end token, which has read all of it."""
    cond = base.embed(list(texts))
    found = cond.tokens[torch.arange(len(cond)), cond.end] if cond.pooled is None else cond.pooled
    return found.float().cpu()
