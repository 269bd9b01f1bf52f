"""Adversarial search over a vocabulary (AP, AGE): candidate words, a Gumbel softmax over them, and a record of what was found.

A word replaces the concept in its prompts ("a picture of a lion" for "a picture of a tiger"): every prompt has its own table of rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor
from typing_extensions import override  # in typing from Python 3.12

from efface.core.concept import Concept
from efface.core.cond import Cond
from efface.core.denoiser import Denoiser
from efface.core.errors import UsageError
from efface.core.files import read_text
from efface.core.prompts import ConceptPrompts
from efface.core.train import Learner

FREQUENT = 3000  # words of the tokenizer in the default vocabulary, as many as in the paper's list of English words
MARKS = 50  # number of steps at which shares are recorded
SHOWN = 8  # words for each concept whose shares are saved in the edit's header

ClusterBy = Literal["embedding", "distance"]


def listed(vocabulary: str, base: Denoiser) -> list[str]:
    """The words of a .txt file with one a line, of a list with commas, or the tokenizer's frequent words if none are given.

    Raises:
        UsageError: no such file.
    """
    if not vocabulary.strip():
        return base.words(FREQUENT)
    if not vocabulary.endswith(".txt"):
        return vocabulary.split(",")
    path = Path(vocabulary)
    if not path.is_file():
        raise UsageError(
            f"vocabulary: expected a list with commas or a .txt file, got no such file {vocabulary!r}; give its path"
        )
    return read_text(path).splitlines()


def candidates(
    base: Denoiser,
    erase: Sequence[Concept],
    given: Sequence[str],
    always: Sequence[str] = (),
    *,
    closest: int,
    picks: int,
    cluster_by: ClusterBy,
) -> tuple[list[str], Bool[Tensor, "e n"]]:
    """Words, and which of them are candidates for which concept; words with the tokens of an erased concept are left out.

    Args:
        base: the model that embeds the words.
        erase: concepts that search for a word.
        given: the vocabulary.
        always: words that are candidates for every concept at any distance.
        closest: number of vocabulary words to take, by distance of their flattened embeddings to the concept's.
        picks: number of these to keep, by k-medoids.
        cluster_by: cluster the embeddings, or only their distances to the concept (as the released code does).

    Raises:
        UsageError: no word is left.
    """
    words = [w for w in dict.fromkeys(map(_plain, [*always, *given])) if w]
    names, ids, parts = _flat(base.embed([c.name for c in erase])), [], []
    for i in range(0, len(words), 256):  # all at once would take a gigabyte for Stable Diffusion
        cond = base.embed(words[i : i + 256])
        ids += map(tuple, cond.ids.tolist())
        parts.append(torch.cdist(names, _flat(cond)))
    taken = {tuple(row) for row in base.embed([_plain(p) for c in erase for p in c.phrases]).ids.tolist()}
    first = sorted(
        {row: i for i, row in reversed([*enumerate(ids)]) if row not in taken}.values()
    )  # the first of those with equal tokens
    if not first:
        raise UsageError(
            "vocabulary: expected words that are not erased themselves, got none; give words, a file of words, or '' for the model's own"
        )
    words, fixed = [words[i] for i in first], set(map(_plain, always))
    allowed = torch.tensor([[w in fixed for w in words]] * len(erase))
    apart = torch.cat(parts, dim=1)[:, first].masked_fill(allowed, torch.inf)
    for row, away in zip(allowed, apart, strict=True):
        near = away.argsort(stable=True)[: min(closest, int(away.isfinite().sum()))]
        if not len(near):
            continue
        points = away[near, None] if cluster_by == "distance" else _flat(base.embed([words[i] for i in near]))
        row[near[medoids(points, picks)]] = True
    used = allowed.any(0)
    return [w for w, some in zip(words, used.tolist(), strict=True) if some], allowed[:, used]


def medoids(points: Float[Tensor, "n d"], k: int) -> Int[Tensor, "k"]:
    """k-medoids: the indices of `k` points; starts with the first point, then always the farthest from those so far."""
    if k >= len(points):
        return torch.arange(len(points))
    apart = torch.cdist(points, points).fill_diagonal_(0.0)
    chosen = torch.tensor([0])
    while len(chosen) < k:
        chosen = torch.cat([chosen, apart[:, chosen].amin(1).index_fill(0, chosen, -1.0).argmax()[None]])
    for _ in range(100):  # it converges much sooner; ties could make it cycle
        owner = apart[:, chosen].argmin(1)
        owner[chosen] = torch.arange(k)  # even if another point is equal
        among = [(owner == i).nonzero()[:, 0] for i in range(k)]
        moved = torch.stack([m[apart[m][:, m].sum(1).argmin()] for m in among])
        if torch.equal(moved, chosen):
            break
        chosen = moved
    return chosen


def gumbel(shape: tuple[int, ...], rng: Generator) -> Tensor:
    """-log(-log u) for uniform u."""
    return -torch.empty(shape).exponential_(generator=rng).log()


def choice(
    logits: Float[Tensor, "b n"], noise: Float[Tensor, "b n"], temperature: float, hard: bool, top: int
) -> Float[Tensor, "b n"]:
    """Weights of words: softmax((l + g)/τ); hard is the most likely word alone with the soft gradient, soft the `top` words together."""
    soft = ((logits + noise) / temperature).softmax(1)
    if hard:
        return torch.zeros_like(soft).scatter(1, soft.argmax(1, keepdim=True), 1.0) + (soft - soft.detach())
    kept = torch.zeros_like(soft).scatter(1, soft.topk(min(top, soft.shape[1]), dim=1).indices, 1.0) * soft
    return kept / kept.sum(1, keepdim=True)


class Search(Learner):
    """Trainable logits over words for each erased concept, and a record of their shares over the training, saved in checkpoints."""

    def __init__(
        self,
        base: Denoiser,
        erase: Sequence[Concept],
        words: Sequence[str],
        allowed: Bool[Tensor, "e n"],
        *,
        steps: int,
        lr: float,
        temperature: float,
        hard: bool,
        top: int,
        templates: bool,
    ) -> None:
        """Start with equal logits. `steps` is the length of the training; `templates` as in `ConceptPrompts.of`."""
        super().__init__({"logits": torch.zeros(len(erase), len(words))}, lr=lr)
        self.erase, self.words, self.barred = (
            tuple(erase),
            list(words),
            torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf),
        )
        self.temperature, self.hard, self.top = temperature, hard, top
        self.owner = ConceptPrompts.of(erase, templates).owners  # of each prompt of the concepts
        self.tables, self.table = [], []  # rows of all words in one template, and the index of each prompt's table
        for i, concept in enumerate(erase):
            prompts = ConceptPrompts.of([Concept(w, kind=concept.kind) for w in words], templates).prompts
            first, count = len(self.tables), len(prompts) // len(words)
            self.tables += [base.embed(prompts[k::count]) for k in range(count)]
            self.table += [first + p % count for p in range(self.owner.count(i))]
        self.marks = [*range(0, steps, max(1, -(-steps // MARKS))), steps]
        self.trace = torch.zeros(len(self.marks) - 1, len(erase), len(words))

    @property
    def shares(self) -> Float[Tensor, "e n"]:
        """The probability of each word: softmax(l), without temperature."""
        return (self.leaves["logits"].detach() + self.barred).softmax(1)

    def noise(self, batch: int, rng: Generator) -> Float[Tensor, "b n"]:
        """Gumbel noise for `batch` draws."""
        return gumbel((batch, len(self.words)), rng)

    def found(self, picked: Int[Tensor, "b"], noise: Float[Tensor, "b n"]) -> Cond:
        """The found words in the templates of these prompts; gradients reach the logits."""
        logits = (self.leaves["logits"] + self.barred)[[self.owner[p] for p in picked.tolist()]]
        weights = choice(logits, noise, self.temperature, self.hard, self.top)
        tables = [self.tables[self.table[p]] for p in picked.tolist()]
        tokens = [
            (w.to(t.tokens) @ t.tokens.flatten(1)).view_as(t.tokens[0]) for w, t in zip(weights, tables, strict=True)
        ]
        foremost = [t[[int(w.argmax())]] for w, t in zip(weights, tables, strict=True)]
        return replace(Cond.cat(foremost), tokens=torch.stack(tokens))

    def ascend(self, value: Tensor) -> None:
        """One Adam step of the logits that increases `value`; its graph is kept for the weights' step."""
        (g,) = torch.autograd.grad(value, [self.leaves["logits"]], retain_graph=True)
        self.descend({"logits": -g})

    def note(self, step: int) -> None:
        """Record the shares at the start of a step."""
        if step in self.marks:
            self.trace[self.marks.index(step)] = self.shares

    def notes(self) -> dict[str, Any]:
        """For each concept the shares over time of the words with the largest shares, as JSON."""
        trace, out = torch.cat([self.trace, self.shares[None]]), {}
        for i, concept in enumerate(self.erase):
            best = trace[:, i].amax(0).argsort(descending=True, stable=True)[:SHOWN].tolist()
            shares = {
                self.words[k]: [round(float(s), 4) for s in trace[:, i, k]] for k in best if self.barred[i, k] == 0
            }
            out[concept.name] = {"of": int((self.barred[i] == 0).sum()), "steps": self.marks, "shares": shares}
        return {"found": out}

    @override
    def state(self) -> dict[str, Tensor]:
        return {**super().state(), "trace": self.trace}

    @override
    def restore(self, flat: Mapping[str, Tensor]) -> None:
        super().restore(flat)
        self.trace.copy_(flat["trace"])


def walks(
    model: Denoiser,
    prompts: Cond,
    search: Search,
    rng: Generator,
    *,
    batch: int,
    reuse: int,
    steps: int,
    guidance: float,
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """As `walk`, with a second latent for each: that of the found word for its prompt, from the same initial noise at the same level.

    Yields latents of concepts, latents of words, levels, prompt indices, and the Gumbel noise of the found words, which does not
    change within a trajectory.
    """
    levels, row = model.timesteps(steps), torch.arange(batch)
    while True:
        picked = torch.randint(len(prompts), (batch,), generator=rng)
        seeds, noise = torch.randint(2**31, (batch,), generator=rng).tolist(), search.noise(batch, rng)
        with torch.no_grad():
            both = prompts[picked] + search.found(picked, noise)
        path = model.sample(
            both, seeds=seeds * 2, steps=len(levels), guidance=guidance, until=len(levels) - 1, record=True
        )
        for _ in range(reuse):
            k = torch.randint(len(levels), (batch,), generator=rng)
            yield path[k, row], path[k, row + batch], levels[k], picked, noise


def _plain(words: str) -> str:
    return " ".join(words.lower().split())


def _flat(cond: Cond) -> Float[Tensor, "n r"]:
    return cond.cpu().tokens.float().flatten(1)
