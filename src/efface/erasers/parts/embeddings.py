"""Trains the token embeddings of a few words, and no other weights."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.edit import LowRank
from efface.core.train import Learner


class WordTuner(Learner):
    """Trains an offset of some rows of `student`'s token embedding; the table itself does not change."""

    def __init__(self, base: Denoiser, ids: Sequence[int], *, lr: float, rng: Generator | None = None) -> None:
        """Fork `base` and train the rows of the tokens `ids`. Embed prompts with `student.embed(..., grad=True)`."""
        self.student = base.fork("text.embeddings")
        ((self.name, table),) = self.student.params("text.embeddings").items()
        self.ids, self.known = torch.tensor(sorted(set(ids)), device=table.device), len(table)
        super().__init__({"rows": torch.zeros(len(self.ids), table.shape[1])}, lr=lr, rng=rng)
        module = self.name.removeprefix("text.").removesuffix(".weight")
        self.student.modules()["text"].get_submodule(module).register_forward_hook(self._add)

    def _add(self, module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        said = given[0][..., None] == self.ids
        return out + said.to(out.dtype) @ self.leaves["rows"].to(out)

    def edit(self) -> LowRank:
        """The edit: a one-hot row for each token, times its offset."""
        rows = self.leaves["rows"].detach().clone()
        where = nn.functional.one_hot(self.ids.cpu(), self.known).T.float()
        return LowRank({self.name: (where, rows)})


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
