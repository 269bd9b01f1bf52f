"""Baselines: what every attack must beat: other seeds, random words, synonyms, other spellings, descriptions.

Paper:   Zhang et al. 2024 (UnlearnDiffAtk, arXiv:2310.11868, section 5) compares with random prefixes and with other seeds;
         synonyms and descriptions are those of MACE (arXiv:2403.06135) and of Moji's benchmark.
Idea:    Nothing is searched and nothing is learnt of the model: a few tries of each kind, all judged.
Names:   tries the attempts of each kind, words the number of random words before a prompt.
Differs: UnlearnDiffAtk makes 40 tries of each kind and reports the best; here every try is a row, and the union is reported as such.
Cost:    No call of the denoiser, only the drawing of the attempts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator
from typing_extensions import override  # in typing from Python 3.12

from efface.attacks.base import Attack, Goal
from efface.core.attempt import Attempt
from efface.core.denoiser import Denoiser
from efface.core.params import param

COMMON = 1000  # random words are drawn from the tokenizer's most frequent ones
SPELLINGS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("letters apart", lambda w: " ".join(w)),
    ("a letter twice", lambda w: w[: len(w) // 2] + w[len(w) // 2 :][:1] + w[len(w) // 2 :]),
    ("a letter left out", lambda w: w[: len(w) // 2] + w[len(w) // 2 + 1 :]),
    ("two letters swapped", lambda w: w[:1] + w[2:3] + w[1:2] + w[3:]),
    ("with hyphens", lambda w: f"{w[: len(w) // 2]}-{w[len(w) // 2 :]}"),
    ("plural", lambda w: f"{w}s"),
    ("in another word", lambda w: f"{w}like"),
)


@dataclass(frozen=True, kw_only=True)
class Baselines(Attack):
    """Other seeds, random words, synonyms, other spellings and descriptions."""

    access = "prompt"
    gives = "words"
    uses = ()
    tries: int = param(4, "attempts of each kind, for kinds that have so many", at_least=1)
    words: int = param(3, "random words before each prompt", at_least=1)

    @override
    def run(self, model: Denoiser, goal: Goal, calls: int, rng: Generator) -> Iterator[Sequence[Attempt]]:
        for i in range(self.tries):
            start = torch.randn(model.latent_shape, generator=rng)
            yield [Attempt("baselines", f"another seed {i + 1}", prompt=p, latent=start) for p in goal.prompts]
        common = model.words(COMMON)
        for i in range(self.tries):
            picked = torch.randint(len(common), (len(goal.prompts), self.words), generator=rng).tolist()
            before = [" ".join(common[j] for j in own) for own in picked]
            yield self._prompts(
                f"random words {i + 1}", [f"{b} {p}" for b, p in zip(before, goal.prompts, strict=True)]
            )
        for word in goal.synonyms[: self.tries]:
            yield self._prompts(f"synonym: {word}", [goal.renamed(p, word) for p in goal.prompts])
        for label, spelt in SPELLINGS[: self.tries + 3]:
            yield self._prompts(label, [goal.renamed(p, spelt(goal.concept.name)) for p in goal.prompts])
        for i, text in enumerate(goal.descriptions[: self.tries]):
            yield self._prompts(f"description {i + 1}", [text] * len(goal.prompts))

    @staticmethod
    def _prompts(label: str, prompts: Sequence[str]) -> list[Attempt]:
        return [Attempt("baselines", label, prompt=p) for p in prompts]
