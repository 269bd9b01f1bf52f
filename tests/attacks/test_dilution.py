"""Dilution: details are added one by one, as far as the text encoder reads them."""

from attacks.goals import goal
from toys import tiny

from efface.attacks.dilution import Dilution


def test_details_are_added_one_by_one_before_and_after() -> None:
    base = tiny()
    found = Dilution(details=2).find(base, goal(base, others=("apple", "moon", "car")), 1)
    assert found.calls == 0
    assert {label: [a.prompt for a in marks[0]] for label, marks in found.attempts.items()} == {
        "1 detail after it": ["a tiger, an apple", "a red tiger, an apple"],
        "1 detail before it": ["an apple, a tiger", "an apple, a red tiger"],
        "2 details after it": ["a tiger, an apple, a moon", "a red tiger, an apple, a moon"],
        "2 details before it": ["an apple, a moon, a tiger", "an apple, a moon, a red tiger"],
    }


def test_what_the_encoder_does_not_read_is_left_out_and_nothing_to_add_is_a_reason() -> None:
    base = tiny()
    long = goal(base, others=("apple", "a very long name of some thing"))
    assert set(Dilution().find(base, long, 1).attempts) == {"1 detail after it", "1 detail before it"}
    assert "names none" in Dilution().applies(base, goal(base))
