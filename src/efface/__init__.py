"""efface: erase concepts from text-to-image diffusion models, measure the result, ship the edit as a small file."""

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Concept": "efface.core.concept",
    "Denoiser": "efface.core.denoiser",
    "load": "efface.core.denoiser",
    "load_edit": "efface.core.edit",
    "load_key": "efface.core.key",
    **dict.fromkeys(
        ("Edit", "TextMap", "Delta", "LowRank", "Guidance", "Adapter", "Keyed", "Stack"), "efface.core.edit"
    ),
    "UCE": "efface.erasers.uce",
    "Debias": "efface.erasers.debias",
    "TIME": "efface.erasers.time",
    "RECE": "efface.erasers.rece",
    "MACE": "efface.erasers.mace",
    "CPE": "efface.erasers.cpe",
    "TextMapping": "efface.erasers.mapping",
    "ESD": "efface.erasers.esd",
    "Naive": "efface.erasers.naive",
    "ConceptAblation": "efface.erasers.ablation",
    "AP": "efface.erasers.ap",
    "AGE": "efface.erasers.age",
    "SPM": "efface.erasers.spm",
    "Receler": "efface.erasers.receler",
    "KPOP": "efface.erasers.kpop",
    "SLD": "efface.erasers.sld",
    "NegativePrompt": "efface.erasers.negative",
    "EffaceError": "efface.core.errors",
    "UsageError": "efface.core.errors",
}
__all__ = list(_PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Public names, imported when first used: `import efface` costs nothing heavy."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'efface' has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
