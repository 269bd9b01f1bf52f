"""Concepts: words, checked."""

import pytest

from efface.core.concept import Concept, article, concepts, same
from efface.core.errors import EffaceError, UsageError, nearest


def test_phrases_are_the_name_and_other_ways_without_repetition() -> None:
    assert Concept("tiger", prompts=("big cat", "tiger", "big cat")).phrases == ("tiger", "big cat")


@pytest.mark.usefixtures("untyped")
def test_a_concept_is_a_value() -> None:
    assert Concept("tiger", "cat", ["big cat"]) == Concept("tiger", "cat", ("big cat",))
    assert len({Concept("tiger", prompts=["x"]), Concept("tiger", prompts=("x",))}) == 1


@pytest.mark.usefixtures("untyped")
def test_one_way_to_say_it_is_one_phrase_not_its_letters() -> None:
    assert Concept("tiger", prompts="big cat").phrases == ("tiger", "big cat")


@pytest.mark.parametrize(
    ("a", "b", "equal"), [("Van  Gogh", "van gogh ", True), ("tiger", "tigers", False), ("", " ", True)]
)
def test_same_ignores_case_and_spacing_only(a: str, b: str, equal: bool) -> None:
    assert same(a, b) is equal


def test_an_article_is_put_before_words_that_bring_none() -> None:
    assert [article(words) for words in ("tiger", "owl", "Icy cow")] == ["a tiger", "an owl", "an Icy cow"]
    assert [article(words) for words in ("a tiger", "An owl", "the cat")] == ["a tiger", "An owl", "the cat"]


def test_names_become_concepts_with_the_target_and_concepts_keep_theirs() -> None:
    assert concepts("tiger", "cat") == (Concept("tiger", "cat"),)
    assert concepts(Concept("car", "bus"), "cat") == (Concept("car", "bus"),)
    assert concepts(n for n in ["a", "b"]) == (Concept("a"), Concept("b"))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Concept(" "), "concept: the name is empty; give the words to erase or preserve, such as 'tiger'"),
        (
            lambda: Concept("tiger", prompts=("big cat", " ")),
            "concept: expected text in `prompts`, got ('big cat', ' '); leave the empty one out",
        ),
        (
            lambda: Concept("Tiger", " tiger"),
            "concept: 'Tiger' is its own target; give another target, or '' for nothing",
        ),
        (lambda: Concept("tiger", kind="objekt"), "concept: unknown kind 'objekt'; did you mean 'object'?"),
        (lambda: concepts(["tiger", 3]), "concepts[1]: expected a string or a Concept, got int; give its name"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_bad_input_is_one_sentence(make, sentence: str) -> None:  # noqa: ANN001
    with pytest.raises(UsageError) as caught:
        make()
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_exit_codes_tell_usage_from_failure() -> None:
    assert (EffaceError.exit_code, UsageError.exit_code) == (1, 2)
    assert issubclass(UsageError, EffaceError)


def test_nearest_offers_close_names_then_all() -> None:
    assert nearest("ucee", ["esd", "uce"]) == "did you mean 'uce'? known: esd, uce"
    assert nearest("zzz", ["esd", "uce"]) == "known: esd, uce"
