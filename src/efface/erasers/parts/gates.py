"""Merges token gates that were trained separately into one edit (CPE)."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch.nn.functional import pad

from efface.core.branches.gates import TokenGates
from efface.core.edit import Adapter
from efface.core.errors import UsageError


def merge(edits: Iterable[Adapter]) -> Adapter:
    """Merge gates that were trained separately. A stack of them would add up; here a token gets one concept's residual.

    Smaller ranks are padded with zeros, which changes nothing.

    Raises:
        UsageError: edits of different models, or none.
    """
    every = list(edits)
    facts = [e.branch.facts for e in every]
    if not every or facts != facts[:1] * len(facts) or len({e.header.base for e in every}) > 1:
        raise UsageError(
            f"merge: expected edits of one model, got {len(every)} of several or none; merge what was made for one"
        )
    parts = [e.branch.tensors | {"up": e.strength * e.branch.tensors["up"]} for e in every]
    rank, low = max(t["query"].shape[2] for t in parts), max(t["up"].shape[1] for t in parts)
    fills = {
        "query": lambda t: (0, rank - t.shape[2]),
        "key": lambda t: (0, rank - t.shape[2]),
        "gate": lambda t: (0, 0),
        "down": lambda t: (0, low - t.shape[3]),
        "up": lambda t: (0, 0, 0, low - t.shape[1]),
    }
    tensors = {name: torch.cat([pad(t[name], fill(t[name])) for t in parts]) for name, fill in fills.items()}
    erased = dict.fromkeys(c for e in every for c in e.header.erase)
    return Adapter(TokenGates(tensors, facts[0]), replace(every[0].header, settings={}, erase=tuple(erased)))
