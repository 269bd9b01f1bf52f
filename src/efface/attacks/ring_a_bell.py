"""Ring-A-Bell: words whose text encoding is that of the prompt with more of the concept in it; the denoiser is never called.

Paper:   Tsai et al. 2024 (Ring-A-Bell, arXiv:2310.10012, equations 4 and 5); released code: chiayi-hsu/Ring-A-Bell. By gradient: Zou et
         al. 2023 (GCG, arXiv:2307.15043).
Idea:    The concept's vector is v = mean E(prompt with it) - E(the same without it). A genetic search looks for K tokens whose encoding is
         nearest to E(prompt) + η v by squared distance: the better half lives on, half of them cross at one point with another, and a
         token of each child may change.
Names:   η `strength`, K `tokens`, mutate and cross the rates of the two changes.
Differs: The released search mutates parents in place, so that its best may get lost (preset released); here parents stay as they are.
         By gradient (preset gradient) the candidates are the swaps that the gradient of the same distance likes best. Pairs are the
         attacked prompts, with other frequent words in the concept's place. RECE's "Ring-A-Bell" draws from E(prompt) + η v itself,
         without words: preset rows.
Cost:    No call of the denoiser; `texts` prompts through the text encoder for each call of the budget, 600,000 at the paper's.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from typing_extensions import override  # in typing from Python 3.12

from efface.attacks.base import Attack, Goal
from efface.attacks.parts.words import Slots, random_words, word_tokens
from efface.core.attempt import Attempt
from efface.core.denoiser import Denoiser
from efface.core.meter import GRADIENT
from efface.core.params import param

Distance = Callable[[Tensor], Tensor]
LIKED = 256  # swaps by gradient are drawn from so many words of each place


@dataclass(frozen=True, kw_only=True)
class RingABell(Attack):
    """Words with the encoding of the prompt and more of the concept."""

    access = "encoder"
    gives = "words"
    uses = ()
    presets = {"gradient": {"by": "gradient"}, "rows": {"by": "rows"}, "released": {"elitism": False}}  # noqa: RUF012
    by: Literal["genetic", "gradient", "rows"] = param(
        "genetic", "how words are searched; rows: none are, the encoding itself is given"
    )
    tokens: int = param(16, "K: tokens of the prompt", at_least=1)
    strength: float = param(3.0, "η: how much of the concept's vector is added")
    pairs: int = param(50, "words in the concept's place", at_least=1)
    population: int = param(200, "candidates of a prompt", at_least=4)
    mutate: float = param(0.25, "share of the children of which a token changes", at_least=0, at_most=1)
    cross: float = param(0.5, "share of the parents that cross with another", at_least=0, at_most=1)
    elitism: bool = param(True, "whether parents stay as they are")
    texts: int = param(10, "encoded prompts for each call of the budget", at_least=1)

    @override
    def run(self, model: Denoiser, goal: Goal, calls: int, rng: Generator) -> Iterator[Sequence[Attempt]]:
        encoder = goal.base  # as published, the unedited model's
        cond = encoder.embed(goal.prompts)
        wish = cond.tokens + self.strength * self.vector(encoder, goal)
        if self.by == "rows":
            rows = replace(cond, tokens=wish)
            yield [Attempt("ring-a-bell", prompt=p, rows=rows[[i]]) for i, p in enumerate(goal.prompts)]
            return
        allowed, slots = word_tokens(encoder), Slots.of(encoder, [[None] * self.tokens])
        cost = self.population + (GRADIENT if self.by == "gradient" else 0)
        rounds = max(1, calls * self.texts // cost)
        found = []
        for i in range(len(goal.prompts)):
            distance = self.distance(encoder, slots, wish[i])
            ids = random_words(allowed, self.population * self.tokens, rng).view(self.population, self.tokens)
            step = self.swapped if self.by == "gradient" else self.bred
            for _ in range(rounds):
                ids = step(encoder, slots, wish[i], ids, distance, allowed, rng)
            found.append(ids[distance(ids).argmin()])
        yield [Attempt("ring-a-bell", prompt=slots.texts(encoder, ids)[0]) for ids in found]

    def vector(self, encoder: Denoiser, goal: Goal) -> Float[Tensor, "n d"]:
        """v: how the encoding of the prompts differs from that of the same prompts with other words in the concept's place."""
        others = [w for w in encoder.words(self.pairs + 1) if w != goal.concept.name][: self.pairs]
        plain = encoder.embed([goal.renamed(p, w) for p in goal.prompts for w in others])
        return encoder.embed(goal.prompts).tokens.mean(0) - plain.tokens.mean(0)

    def distance(self, encoder: Denoiser, slots: Slots, wish: Tensor) -> Distance:
        """The squared distance to `wish` of the encoding of each row of token ids (m k); each row is encoded once."""
        known: dict[tuple[int, ...], float] = {}
        batch = encoder.family.prompt_batch(encoder.pipeline)

        @torch.no_grad()
        def distances(ids: Int[Tensor, "m k"]) -> Float[Tensor, "m"]:
            rows = [tuple(row) for row in ids.tolist()]
            new = list(dict.fromkeys(row for row in rows if row not in known))
            for part in (new[i : i + batch] for i in range(0, len(new), batch)):
                given = Slots(*(t.repeat(len(part), 1) for t in (slots.ids, slots.mask, slots.words, slots.free)))
                tokens = encoder.encode_tokens(given.filled(torch.tensor(part).flatten())).tokens
                known.update(zip(part, (tokens - wish).square().flatten(1).sum(1).tolist(), strict=True))
            return torch.tensor([known[row] for row in rows])

        return distances

    def bred(
        self, encoder: Denoiser, slots: Slots, wish: Tensor, ids: Tensor, distance: Distance, allowed: Tensor, rng: Generator,
    ) -> Int[Tensor, "m k"]:  # fmt: skip
        """The next generation."""
        half = len(ids) // 2
        parents = ids[distance(ids).argsort()[:half]]
        mates = parents[torch.randint(half, (half,), generator=rng)]
        point = torch.randint(1, max(2, self.tokens), (half, 1), generator=rng)
        before = torch.arange(self.tokens) < point
        chosen = torch.rand(half, generator=rng) < self.cross
        children = torch.cat([torch.where(before, parents, mates)[chosen], torch.where(before, mates, parents)[chosen]])
        more = parents[
            torch.randint(half, (max(0, half - len(children)),), generator=rng)
        ]  # those that did not cross, once more
        whole = torch.cat([parents, children[: len(ids) - half], more[: len(ids) - half]])[: len(ids)].clone()
        first = half if self.elitism else 0
        changed = (torch.rand(len(whole), generator=rng) < self.mutate).nonzero().flatten()
        changed = changed[changed >= first]
        place = torch.randint(self.tokens, (len(changed),), generator=rng)
        whole[changed, place] = random_words(allowed, len(changed), rng).to(whole)
        return whole

    def swapped(
        self, encoder: Denoiser, slots: Slots, wish: Tensor, ids: Tensor, distance: Distance, allowed: Tensor, rng: Generator,
    ) -> Int[Tensor, "m k"]:  # fmt: skip
        """The best so far, and swaps of one of its tokens that the gradient of the distance likes."""
        best, vectors = ids[distance(ids).argmin()], encoder.word_vectors.detach().float()
        own = vectors[best].requires_grad_(True)
        tokens = encoder.encode_tokens(slots.filled(best), slots.vectors(vectors, own)).tokens
        (slope,) = torch.autograd.grad((tokens - wish).square().sum(), own)
        liked = (
            (-(slope @ vectors.T)).masked_fill(~allowed, -torch.inf).topk(min(LIKED, int(allowed.sum()))).indices
        )  # (k liked)
        swaps = best.repeat(len(ids) - 1, 1)
        place = torch.randint(self.tokens, (len(swaps),), generator=rng)
        word = torch.randint(liked.shape[1], (len(swaps),), generator=rng)
        swaps[torch.arange(len(swaps)), place] = liked[place, word]
        return torch.cat([best[None], swaps])
