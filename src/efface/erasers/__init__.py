"""The table of erasers by name. A new method is one file and one line in this table."""

import importlib
from typing import TYPE_CHECKING, Any

from efface.core.declared import declared
from efface.core.errors import UsageError, nearest
from efface.core.params import parse

if TYPE_CHECKING:  # imports torch, which a list of methods does not need
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
    """A method's declarations (docstring, hyper-parameters, presets), read without importing its module.

    Raises:
        UsageError: no such method.
    """
    if name not in TABLE:
        raise UsageError(f"method: unknown {name!r}; {nearest(name, names())}")
    return declared(*TABLE[name].split(":"))


def settings(name: str) -> tuple[str, dict[str, Any]]:
    """A method or method-preset as the method's name and its settings; hyper-parameters may follow: "uce:ridge=0.5:tokens=last".

    Raises:
        UsageError: no such method, preset or hyper-parameter, one given twice, or text of another type.
    """
    name, *given = name.split(":")
    method, _, preset = (name, "", "") if name in TABLE else name.partition("-")
    if method not in TABLE or (name != method and preset not in declarations(method).presets):
        raise UsageError(f"method: unknown {name!r}; {nearest(name, names())}")
    cls, changes = declarations(method), {}
    for one in given:
        key, equals, text = one.partition("=")
        key = key.strip().replace("-", "_")
        if not equals:
            raise UsageError(f"method: expected {name}:NAME=VALUE, got {one!r}; give a pair such as {name}:ridge=0.5")
        if key in changes:
            raise UsageError(f"method: expected each hyper-parameter once, got {key!r} twice for {name}; give it once")
        changes[key] = parse(cls, key, text.strip())
    return method, {**(cls.presets[preset] if preset else {}), **changes}


def split(name: str) -> "tuple[type[Eraser], dict[str, Any]]":
    """As `settings`, with the method's class."""
    method, given = settings(name)
    return find(method), given


def make(name: str, **changes: Any) -> "Eraser":
    """An eraser by name, such as `make("esd-x", steps=100)` or `make("uce:ridge=0.5")`."""
    cls, given = split(name)
    return cls(**{**given, **changes})
