"""Prompt pairs: a concept in many prompts, each with the same prompt for its target, and the first stage of MACE on them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from efface.core.attention import own
from efface.core.concept import Concept, article
from efface.core.denoiser import Cond, Denoiser
from efface.core.errors import UsageError
from efface.core.linalg import gram, text_map
from efface.core.rows import keep_rows

# {0} the name, {1} the name with its article; the first two are plain, for drawing pictures
MACE_TEMPLATES = {
    "object": (
        "{1}", "a picture of {1}", "{0}", "{1} in the snow", "{1} on a table", "a photo of {1} at night", "{1} in a green field",
        "a drawing of {1} on paper", "{1} under a blue sky", "{1} on a white background", "{1} next to a house", "{1} in a simple style",
    ),
    "person": (
        "{0}", "a picture of {0}", "{0} in the snow", "{0} on a stage", "a photo of {0} at night", "a drawing of {0} on paper",
        "{0} with a hat", "{0} on a white background", "{0} next to a house", "{0} in a simple style",
    ),
    "style": (
        "a picture in {0} style", "a dog in {0} style", "{0}", "{0} style", "a house in {0} style on a white background",
        "a flower in the style of {0}", "a car drawn by {0} on paper", "a tree in {0} style at night", "{0} style picture of a street",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class PromptPairs:
    """Prompts with a concept, the same prompts with its target, the positions of the concept's tokens, and the number of plain prompts."""

    prompts: Cond
    targets: Cond
    own: Bool[Tensor, "b n"]
    plain: int

    @property
    def ends(self) -> Bool[Tensor, "b n"]:
        """The end tokens; also the padding if that is the end token (Stable Diffusion 1)."""
        return self.prompts.end_tokens


def prompt_pairs(base: Denoiser, concept: Concept) -> PromptPairs:
    """A concept in all templates of its kind that leave a padding token; without a target, the pair is the template without a name.

    Raises:
        UsageError: no template does.
    """
    templates = MACE_TEMPLATES.get(concept.kind, MACE_TEMPLATES["object"])
    target = (concept.target, article(concept.target)) if concept.target.strip() else ("", "")
    texts = [
        (f.format(n, article(n)), " ".join(f.format(*target).split()), n) for f in templates for n in concept.phrases
    ]
    prompts, targets, names = (base.embed(column) for column in zip(*texts, strict=True))
    fits = (~prompts.full & ~targets.full).nonzero()[:, 0]
    if not len(fits):
        raise UsageError(
            f"concept: expected a name that fits the text encoder's length, got {concept.name!r}; give a shorter name"
        )
    plain = int((fits < 2 * len(concept.phrases)).sum())
    return PromptPairs(
        prompts[fits], targets[fits], own(prompts[fits], [names[[i]] for i in fits.tolist()]), plain or len(fits)
    )


def moment(cond: Cond) -> Float[Tensor, "d d"]:
    """Second moment Σ e eᵀ over all rows of a concept's prompts, the mean over prompts; the padding of each counts as one row."""
    rows, weights = keep_rows(cond.cpu(), "content")
    return gram(rows, weights / len(cond))


def refine(
    pairs: Sequence[PromptPairs], kept: Float[Tensor, "d d"], prior: Float[Tensor, "d d"]
) -> tuple[Float[Tensor, "d r"], Float[Tensor, "d r"]]:
    """Factors (left, right) of I + left rightᵀ, which maps tokens near a concept to the same tokens near its target (MACE, eq. 1).

    Each concept weighs as much as one prompt; `kept` and `prior` are second moments of preserved rows.
    """
    shares = [1 / len(t.own) for t in pairs for _ in t.own]
    every = [(t.prompts[[i]].cpu(), t.targets[[i]].cpu()) for t in pairs for i in range(len(t.own))]
    rows, goals, leads = zip(*(co_occurring(prompt, goal) for prompt, goal in every), strict=True)
    weights, before = (
        torch.cat([torch.full((len(r),), share) for r, share in zip(part, shares, strict=True)])
        for part in (rows, leads)
    )
    kept = kept + gram(torch.cat(leads), before)
    return text_map(torch.cat(rows), torch.cat(goals), weights, kept, 1.0, prior)


def co_occurring(source: Cond, goal: Cond) -> tuple[Float[Tensor, "r d"], Float[Tensor, "r d"], Float[Tensor, "p d"]]:
    """Rows of one prompt that co-occur with its concept, their target rows in `goal`, and the rows before the concept.

    The first are the common end of both prompts, up to the end token, then the mean of the padding. The last are the common start
    of both prompts: these do not depend on the concept, and stay. The concept's own tokens are in neither.
    """
    a, b = (c.ids[0, : int(c.end) + 1].tolist() for c in (source, goal))
    most = min(len(a), len(b))
    before = next((i for i in range(most) if a[i] != b[i]), most)
    behind = next((i for i in range(most - before) if a[-1 - i] != b[-1 - i]), most - before)
    rows, goals = (
        torch.cat([c.tokens[0, n - behind : n], c.tokens[0, n:].mean(0, keepdim=True)])
        for c, n in ((source, len(a)), (goal, len(b)))
    )
    return rows, goals, source.tokens[0, :before]
