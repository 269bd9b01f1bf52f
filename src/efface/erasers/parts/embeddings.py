"""Trains the token embeddings of a few words, and no other weights."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Generator, Tensor, nn

from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.edit import LowRank
from efface.core.errors import UsageError
from efface.core.train import Learner


class WordTuner(Learner):
    """Trains an offset of some rows of `student`'s token embedding; the table itself does not change."""

    def __init__(self, base: Denoiser, ids: Sequence[int], *, lr: float, rng: Generator | None = None) -> None:
        """Fork `base` and train the rows of the tokens `ids`. Embed prompts with `student.embed(..., grad=True)`."""
        self.student = base.fork("text.embeddings")
        self.tables = self.student.params("text.embeddings")  # one for each CLIP text encoder, with the same token ids
        if not self.tables:
            raise UsageError(f"text.embeddings: {base.family.name} reads no words through CLIP; train other weights")
        self.ids = torch.tensor(sorted(set(ids)), device=base.device)
        super().__init__(
            {name: torch.zeros(len(self.ids), w.shape[1]) for name, w in self.tables.items()}, lr=lr, rng=rng
        )
        for name in self.tables:
            part, _, module = name.removesuffix(".weight").partition(".")
            self.student.modules()[part].get_submodule(module).register_forward_hook(partial(self._add, name))

    def _add(self, name: str, module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        said = given[0][..., None] == self.ids
        return out + said.to(out.dtype) @ self.leaves[name].to(out)

    def edit(self) -> LowRank:
        """The edit: a one-hot row for each token, times its offset."""
        found = {}
        for name, w in self.tables.items():
            where = nn.functional.one_hot(self.ids.cpu(), len(w)).T.float()
            found[name] = (where, self.leaves[name].detach().clone())
        return LowRank(found)


def own_words(base: Denoiser, concepts: Sequence[Concept]) -> list[int]:
    """Token ids in the concepts' names that are not in their targets; all ids of a name if that leaves none."""
    ids: set[int] = set()
    for c in concepts:
        said, aimed = _inner(base, c.phrases), _inner(base, [c.target])
        ids |= (said - aimed) or said
    return sorted(ids)


def _inner(base: Denoiser, texts: Sequence[str]) -> set[int]:
    """Token ids of prompts, without start, end and padding."""
    return {i for ids in base.embed(texts).word_ids() for i in ids}
