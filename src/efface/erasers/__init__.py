"""Every eraser by name. A new method is its file and its line in this table."""

import importlib
from typing import TYPE_CHECKING, Any

from efface.core.declared import declared
from efface.core.errors import UsageError, nearest

if TYPE_CHECKING:  # imports torch, which a list of methods does without
    from efface.erasers.base import Eraser

TABLE = {
    "uce": "efface.erasers.uce:UCE",
    "debias": "efface.erasers.debias:Debias",
    "time": "efface.erasers.time:TIME",
    "rece": "efface.erasers.rece:RECE",
    "mace": "efface.erasers.mace:MACE",
    "cpe": "efface.erasers.cpe:CPE",
    "mapping": "efface.erasers.mapping:TextMapping",
    "esd": "efface.erasers.esd:ESD",
    "naive": "efface.erasers.naive:Naive",
    "ablation": "efface.erasers.ablation:ConceptAblation",
    "ap": "efface.erasers.ap:AP",
    "age": "efface.erasers.age:AGE",
    "spm": "efface.erasers.spm:SPM",
    "receler": "efface.erasers.receler:Receler",
    "kpop": "efface.erasers.kpop:KPOP",
    "sld": "efface.erasers.sld:SLD",
    "negative": "efface.erasers.negative:NegativePrompt",
}


def find(name: str) -> "type[Eraser]":
    """The class of a method.

    Raises:
        UsageError: no such method.
    """
    if name not in TABLE:
        raise UsageError(f"method: unknown {name!r}; {nearest(name, names())}")
    module, _, cls = TABLE[name].partition(":")
    return getattr(importlib.import_module(module), cls)


def names() -> list[str]:
    """Every method and every method-preset, such as "uce", "uce-2023", "esd-x"."""
    return [n for method in TABLE for n in (method, *(f"{method}-{p}" for p in declarations(method).presets))]


def declarations(name: str) -> "type[Eraser]":
    """What a method declares (docstring, hyper-parameters, presets, cost), without what it imports and without its functions.

    Raises:
        UsageError: no such method.
    """
    if name not in TABLE:
        raise UsageError(f"method: unknown {name!r}; {nearest(name, names())}")
    return declared(*TABLE[name].split(":"))


def settings(name: str) -> tuple[str, dict[str, Any]]:
    """A method or method-preset as the method's name and its settings.

    Raises:
        UsageError: no such method or preset.
    """
    if name in TABLE:
        return name, {}
    method, _, preset = name.partition("-")
    if method not in TABLE or preset not in declarations(method).presets:
        raise UsageError(f"method: unknown {name!r}; {nearest(name, names())}")
    return method, dict(declarations(method).presets[preset])


def split(name: str) -> "tuple[type[Eraser], dict[str, Any]]":
    """A method or method-preset as its class and settings.

    Raises:
        UsageError: no such method or preset.
    """
    method, given = settings(name)
    return find(method), given


def make(name: str, **changes: Any) -> "Eraser":
    """An eraser by name, such as `make("esd-x", steps=100)`."""
    cls, preset = split(name)
    return cls(**{**preset, **changes})
