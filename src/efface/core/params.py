"""Declaration of hyper-parameters: `param` gives default, help, bounds, command-line flag and error message in one place."""

import dataclasses
import math
from dataclasses import Field, field
from typing import Any, Literal, cast, get_args, get_origin

from efface.core.errors import UsageError, nearest

Bound = float | int | None


def param(default: Any, help: str, *, above: Bound = None, at_least: Bound = None, at_most: Bound = None) -> Any:
    """A dataclass field with its one-line help and bounds; a Literal annotation gives its choices."""
    return field(default=default, metadata={"help": help, "above": above, "at_least": at_least, "at_most": at_most})


def fields(cls: type) -> list[Field[Any]]:
    """The hyper-parameters of a method, in the order of their declaration."""
    return [f for f in dataclasses.fields(cls) if "help" in f.metadata]


def choices(f: Field[Any]) -> tuple[Any, ...]:
    """Allowed values of a Literal field; empty for every other type."""
    return get_args(f.type) if get_origin(f.type) is Literal else ()


def type_of(f: Field[Any]) -> type:
    """The annotation of a field that is not a Literal; annotations are never strings here."""
    return cast(type, f.type)


def check(instance: Any) -> None:
    """Refuse a value of the wrong type or out of bounds.

    Raises:
        UsageError: the message names method, argument, expected and got.
    """
    who = type(instance).__name__
    for f in fields(type(instance)):
        value, low, strict, high = getattr(instance, f.name), *(f.metadata[k] for k in ("at_least", "above", "at_most"))
        if allowed := choices(f):
            if value not in allowed:
                raise UsageError(f"{who}.{f.name}: unknown value {value!r}; {nearest(str(value), map(str, allowed))}")
            continue
        kind = type_of(f)
        right = isinstance(value, int | float if kind is float else kind) and (
            kind is bool or not isinstance(value, bool)
        )
        if not right or (kind is float and not math.isfinite(value)):  # nan is within every bound
            raise UsageError(f"{who}.{f.name}: expected {kind.__name__}, got {value!r}; {f.metadata['help']}")
        for wrong, bound in (
            (low is not None and value < low, f"at least {low}"),
            (strict is not None and value <= strict, f"above {strict}"),
            (high is not None and value > high, f"at most {high}"),
        ):
            if wrong:
                raise UsageError(f"{who}.{f.name}: expected {bound}, got {value!r}; {f.metadata['help']}")


def parse(cls: type, name: str, text: str) -> Any:
    """The value of hyper-parameter `name` of `cls` from a flag's text.

    Raises:
        UsageError: no such hyper-parameter, or the text is not of its type.
    """
    known = {f.name: f for f in fields(cls)}
    if name not in known:
        raise UsageError(f"{cls.__name__}: unknown hyper-parameter {name!r}; {nearest(name, known)}")
    f = known[name]
    if allowed := choices(f):
        return next((a for a in allowed if str(a) == text), text)
    kind = type_of(f)
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        sentence = f"{cls.__name__}.{name}: expected {kind.__name__}, got {text!r}; {f.metadata['help']}"
        raise UsageError(sentence) from None
