"""Hyper-parameters that check themselves."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from efface.core.errors import UsageError
from efface.core.params import check, choices, fields, param, parse


@dataclass(frozen=True, kw_only=True)
class Method:
    rate: float = param(0.5, "how fast", above=0, at_most=2)
    steps: int = param(3, "how many", at_least=0)
    loud: bool = param(False, "whether to shout")
    mode: Literal["fast", "slow"] = param("fast", "how")
    level: Literal[1, 2] = param(1, "how high")
    hidden: int = 7  # no help: no hyper-parameter

    def __post_init__(self) -> None:
        check(self)


def test_fields_are_the_declared_ones_in_order() -> None:
    assert [f.name for f in fields(Method)] == ["rate", "steps", "loud", "mode", "level"]
    assert [choices(f) for f in fields(Method)] == [(), (), (), ("fast", "slow"), (1, 2)]


def test_bounds_are_inclusive_except_above() -> None:
    assert Method(rate=2, steps=0).rate == 2  # an int will do where a float is meant
    assert Method(rate=1e-9).rate == 1e-9


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"rate": 0.0}, "Method.rate: expected above 0, got 0.0; how fast"),
        ({"rate": 2.1}, "Method.rate: expected at most 2, got 2.1; how fast"),
        ({"rate": "fast"}, "Method.rate: expected float, got 'fast'; how fast"),
        ({"rate": True}, "Method.rate: expected float, got True; how fast"),
        ({"rate": float("nan")}, "Method.rate: expected float, got nan; how fast"),
        ({"rate": float("inf")}, "Method.rate: expected float, got inf; how fast"),
        ({"steps": -1}, "Method.steps: expected at least 0, got -1; how many"),
        ({"steps": 1.0}, "Method.steps: expected int, got 1.0; how many"),
        ({"steps": False}, "Method.steps: expected int, got False; how many"),
        ({"loud": 1}, "Method.loud: expected bool, got 1; whether to shout"),
        ({"mode": "fats"}, "Method.mode: unknown value 'fats'; did you mean 'fast'? known: fast, slow"),
    ],
)
def test_a_wrong_value_is_one_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        Method(**given)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("rate", "1e-3", 1e-3),
        ("steps", "12", 12),
        ("loud", "True", True),
        ("loud", "false", False),
        ("mode", "slow", "slow"),
        ("level", "2", 2),
    ],
)
def test_a_flag_becomes_a_value_of_the_declared_type(name: str, text: str, value: object) -> None:
    parsed = parse(Method, name, text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("rat", "1", "Method: unknown hyper-parameter 'rat'; did you mean 'rate'?"),
        ("hidden", "1", "Method: unknown hyper-parameter 'hidden'"),
        ("steps", "1.5", "Method.steps: expected int, got '1.5'; how many"),
        ("loud", "yes", "Method.loud: expected bool, got 'yes'; whether to shout"),
    ],
)
def test_a_wrong_flag_is_one_sentence(name: str, text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(Method, name, text)
    assert str(caught.value).startswith(sentence)


def test_an_unknown_choice_is_left_to_the_constructor_which_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="known: fast, slow"):
        Method(mode=parse(Method, "mode", "medium"))
