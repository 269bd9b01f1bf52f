"""Methods or attacks by name: efface's own table and the entry points of installed packages, with presets and hyper-parameters."""

import importlib
from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from efface.core.declared import declared, docstring
from efface.core.errors import EffaceError, UsageError, nearest
from efface.core.params import parse

T = TypeVar("T")


class Registry(Generic[T]):
    """The classes of one kind by name. A name is a class's own, or a preset's: "esd", "esd-x".

    Args:
        kind: what a sentence calls them, "method" or "attack".
        own: efface's own, name to "module:Class".
        group: entry points with which an installed package adds more, such as `shrink = "shrinkage:Shrink"`.
    """

    def __init__(self, kind: str, own: Mapping[str, str], group: str) -> None:
        """Read nothing yet."""
        self.kind, self.own, self.group = kind, own, group

    @cached_property
    def table(self) -> dict[str, str]:
        """Every name, and where its class is: "module:Class".

        Raises:
            UsageError: an installed package gives a name that is taken.
        """
        found = dict(self.own)
        for point in entry_points(group=self.group):
            if point.name in self.names_of(found):
                package = point.dist.name if point.dist else point.value
                raise UsageError(
                    f"{self.kind}: the installed package {package} adds {point.name!r}, which is taken; "
                    "uninstall it, or rename its entry point"
                )
            found[point.name] = point.value
        return found

    @staticmethod
    def names_of(table: Mapping[str, str]) -> list[str]:
        """Every name of a table, presets included."""
        return [n for name, place in table.items() for n in (name, *(f"{name}-{p}" for p in _declared(place).presets))]

    def names(self) -> list[str]:
        """Every name, presets included."""
        return self.names_of(self.table)

    def place(self, name: str) -> str:
        """Where a class is: "module:Class".

        Raises:
            UsageError: no such name.
        """
        if name not in self.table:
            raise UsageError(f"{self.kind}: unknown {name!r}; {nearest(name, self.names())}")
        return self.table[name]

    def find(self, name: str) -> type[T]:
        """The class of a name.

        Raises:
            UsageError: no such name.
        """
        module, _, cls = self.place(name).partition(":")
        return getattr(importlib.import_module(module), cls)

    def declarations(self, name: str) -> type[T]:
        """A class's declarations (docstring, hyper-parameters, presets), read without importing its module.

        Raises:
            UsageError: no such name.
        """
        return _declared(self.place(name))

    def docstring(self, name: str) -> str:
        """The docstring of a class's module: paper, idea, names, what differs, cost."""
        return docstring(self.place(name).partition(":")[0])

    def settings(self, name: str) -> tuple[str, dict[str, Any]]:
        """A name as that of the class and its settings; hyper-parameters may follow: "uce:ridge=0.5:tokens=last".

        Raises:
            UsageError: no such name, preset or hyper-parameter, one given twice, or text of another type.
        """
        name, *given = name.split(":")
        own = next((n for n in sorted(self.table, key=len, reverse=True) if name == n or name.startswith(f"{n}-")), "")
        preset = name.removeprefix(own).removeprefix("-")
        if not own or (preset and preset not in _declared(self.table[own]).presets) or name.endswith("-"):
            raise UsageError(f"{self.kind}: unknown {name!r}; {nearest(name, self.names())}")
        cls, changes = _declared(self.table[own]), {}
        for one in given:
            key, equals, text = one.partition("=")
            key = key.strip().replace("-", "_")
            if not equals:
                raise UsageError(
                    f"{self.kind}: expected {name}:NAME=VALUE, got {one!r}; give a pair such as {name}:seed=1"
                )
            if key in changes:
                raise UsageError(
                    f"{self.kind}: expected each hyper-parameter once, got {key!r} twice for {name}; give it once"
                )
            changes[key] = parse(cls, key, text.strip())
        return own, {**(cls.presets[preset] if preset else {}), **changes}

    def make(self, name: str, **changes: Any) -> T:
        """An instance by name, such as `make("esd-x", steps=100)` or `make("uce:ridge=0.5")`."""
        own, given = self.settings(name)
        return self.find(own)(**{**given, **changes})


def _declared(place: str) -> Any:
    module, _, cls = place.partition(":")
    try:
        return declared(module, cls)
    except (NameError, TypeError, SyntaxError) as error:
        raise EffaceError(
            f"{place}: its declarations cannot be read ({error}); correct the package that adds it, or uninstall it"
        ) from error
