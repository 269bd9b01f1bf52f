"""The table of attacks by name. A new attack is one file and one line in this table."""

import importlib
from typing import TYPE_CHECKING, Any

from efface.core.declared import declared
from efface.core.errors import UsageError, nearest
from efface.core.params import parse

if TYPE_CHECKING:  # imports torch, which a list of attacks does not need
    from efface.attacks.base import Attack

TABLE = {
    "baselines": "efface.attacks.baselines:Baselines",
    "household": "efface.attacks.household:Household",
    "unlearndiffatk": "efface.attacks.unlearndiffatk:UnlearnDiffAtk",
    "soft": "efface.attacks.soft:Soft",
    "rece-rows": "efface.attacks.rece_rows:RECERows",
    "inverse": "efface.attacks.inverse:Inverse",
}


def names() -> list[str]:
    """Every attack and every attack-preset, such as "p4d", "p4d-k"."""
    return [n for attack in TABLE for n in (attack, *(f"{attack}-{p}" for p in declarations(attack).presets))]


def find(name: str) -> "type[Attack]":
    """The class of an attack.

    Raises:
        UsageError: no such attack.
    """
    module, _, cls = _place(name).partition(":")
    return getattr(importlib.import_module(module), cls)


def declarations(name: str) -> "type[Attack]":
    """An attack's declarations (docstring, hyper-parameters, presets), read without importing its module.

    Raises:
        UsageError: no such attack.
    """
    return declared(*_place(name).split(":"))


def settings(name: str) -> tuple[str, dict[str, Any]]:
    """An attack or attack-preset as the attack's name and its settings; hyper-parameters may follow: "soft:radius=0.5".

    Raises:
        UsageError: no such attack, preset or hyper-parameter, one given twice, or text of another type.
    """
    name, *given = name.split(":")
    attack = next((a for a in sorted(TABLE, key=len, reverse=True) if name == a or name.startswith(f"{a}-")), "")
    preset = name.removeprefix(attack).removeprefix("-")
    if not attack or (preset and preset not in declarations(attack).presets):
        raise UsageError(f"attack: unknown {name!r}; {nearest(name, names())}")
    cls, changes = declarations(attack), {}
    for one in given:
        key, equals, text = one.partition("=")
        key = key.strip().replace("-", "_")
        if not equals:
            raise UsageError(f"attack: expected {name}:NAME=VALUE, got {one!r}; give a pair such as {name}:seed=1")
        if key in changes:
            raise UsageError(f"attack: expected each hyper-parameter once, got {key!r} twice for {name}; give it once")
        changes[key] = parse(cls, key, text.strip())
    return attack, {**(cls.presets[preset] if preset else {}), **changes}


def make(name: str, **changes: Any) -> "Attack":
    """An attack by name, such as `make("soft", radius=0.5)` or `make("p4d-k")`."""
    attack, given = settings(name)
    return find(attack)(**{**given, **changes})


def _place(name: str) -> str:
    if name not in TABLE:
        raise UsageError(f"attack: unknown {name!r}; {nearest(name, TABLE)}")
    return TABLE[name]
