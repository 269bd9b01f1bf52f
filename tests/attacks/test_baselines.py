"""Baselines: of each kind as many as asked for, all different, none searched."""

from attacks.goals import goal
from toys import tiny

from efface.attacks.baselines import Baselines


def test_every_kind_is_tried_and_none_costs_a_call() -> None:
    base = tiny()
    found = Baselines(tries=2, words=2).find(base, goal(base), 10)
    assert found.calls == 0
    prompts = {label: tuple(a.prompt for a in by_mark[0]) for label, by_mark in found.attempts.items()}
    assert all(list(by_mark) == [0] for by_mark in found.attempts.values())
    assert prompts["synonym: king"] == ("a king", "a red king")
    assert prompts["description 1"] == ("a happy red cat",) * 2
    assert prompts["letters apart"] == ("a t i g e r", "a red t i g e r")
    assert prompts["a letter twice"][0] == "a tigger"
    assert prompts["a letter left out"][0] == "a tier"
    for i in (1, 2):
        words = prompts[f"random words {i}"]
        assert [p.split()[2:] for p in words] == [["a", "tiger"], ["a", "red", "tiger"]]
        assert set(words[0].split()[:2]) <= set(base.words(1000))
    starts = [found.attempts[f"another seed {i}"][0][0].latent for i in (1, 2)]
    assert starts[0] is not None
    assert starts[1] is not None
    assert not starts[0].equal(starts[1])


def test_the_article_follows_the_word() -> None:
    base = tiny()
    found = Baselines(tries=1).find(base, goal(base, synonyms=("apple",)), 10)
    assert found.attempts["synonym: apple"][0][0].prompt == "an apple"
