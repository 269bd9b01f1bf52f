"""efface: erase concepts from text-to-image diffusion models, measure the result, ship the edit as a small file."""

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Concept": "efface.core.concept",
    "Denoiser": "efface.core.denoiser",
    "load": "efface.core.denoiser",
    "load_edit": "efface.core.edit",
    "Edit": "efface.core.edit",
    "TextMap": "efface.core.edit",
    "Delta": "efface.core.edit",
    "LowRank": "efface.core.edit",
    "Guidance": "efface.core.edit",
    "Stack": "efface.core.edit",
    "UCE": "efface.erasers.uce",
    "TIME": "efface.erasers.time",
    "RECE": "efface.erasers.rece",
    "ESD": "efface.erasers.esd",
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
