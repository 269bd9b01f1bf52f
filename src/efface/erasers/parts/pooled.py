"""UCE's closed form on the pooled vector, which some families read beside the token embeddings: left alone it still names the concept."""

from collections.abc import Sequence

import torch
from torch import Tensor

from efface.core.concept import Concept
from efface.core.cond import Cond
from efface.core.denoiser import Denoiser
from efface.core.edit import TextMap
from efface.core.linalg import gram, text_map
from efface.core.prompts import ConceptPrompts, everyday_prompts, kept_prompts
from efface.core.rows import PART, row_metric

EVERYDAY = 200  # frequent words that define the ridge's metric
RIDGE = 0.1  # in units of the mean eigenvalue, as UCE's default


def pooled_map(
    base: Denoiser,
    prompts: ConceptPrompts,
    preserve: Sequence[Concept],
    templates: bool = True,
    everyday: int = EVERYDAY,
) -> tuple[Tensor, Tensor] | None:
    """Factors (left, right) of the map I + left rightᵀ that turns the pooled vectors of prompts into those of their targets.

    Preserved concepts and "" stay; `everyday` frequent words define the ridge's metric, as in UCE, and 0 pulls equally in all directions.
    None where the model reads no pooled vector.
    """
    if not base.pooled_weights() or not prompts.prompts:
        return None
    embedded = prompts.embed(base)
    c, g = (pooled(cond) for cond in (embedded.prompts, embedded.targets))
    kept = [*kept_prompts(preserve, templates), ""]
    moment = torch.zeros(c.shape[1], c.shape[1], dtype=torch.float64)
    for i in range(0, len(kept), PART):
        rows = pooled(base.embed(kept[i : i + PART]))
        gram(rows, torch.ones(len(rows)), total=moment)
    unit = float(moment.trace() + c.square().sum()) / len(moment)
    texts = everyday_prompts(base, everyday, prompts)
    common = pooled(base.embed(texts)) if texts else None
    metric = None if common is None else row_metric(common, torch.ones(len(common)))
    return text_map(c, g, torch.ones(len(c)), moment, RIDGE * unit, metric)


def pooled(cond: Cond) -> Tensor:
    """Pooled vectors in float64 on the CPU."""
    return cond.vector.double().cpu()


def only_pooled(base: Denoiser, erase: Sequence[Concept], preserve: Sequence[Concept]) -> TextMap | None:
    """An edit of the pooled vector alone, for methods that leave it as it is; None where the model reads none."""
    factors = pooled_map(base, ConceptPrompts.of(erase, templates=True), preserve)
    if factors is None:
        return None
    none = torch.zeros(next(iter(base.text_readers().values())).in_features, 0)
    return TextMap(none, none, pooled=factors)
