"""Ring-A-Bell: the concept's vector, a planted optimum, and that the best is never lost."""

import pytest
import torch
from attacks.goals import goal
from toys import tiny

from efface.attacks.parts.words import Slots, random_words, word_tokens
from efface.attacks.ring_a_bell import RingABell


def test_the_vector_is_the_mean_difference_over_pairs() -> None:
    base = tiny()
    own = goal(base)
    others = [w for w in base.words(4) if w != "tiger"][:3]
    found = RingABell(pairs=3).vector(base, own)
    slow = []
    for prompt in own.prompts:
        for word in others:
            plain = prompt.replace("a tiger", f"an {word}" if word[0] in "aeiou" else f"a {word}").replace(
                "tiger", word
            )
            slow.append(base.embed([prompt]).tokens[0] - base.embed([plain]).tokens[0])
    assert torch.allclose(found, torch.stack(slow).mean(0), atol=1e-5)


@pytest.mark.parametrize("by", ["genetic", "gradient"])
def test_a_planted_prompt_is_found(by: str) -> None:
    """With η = 0 the words of the prompt itself are the optimum, at distance 0."""
    base = tiny()
    own = goal(base, prompts=("lion cat", "red boat"))
    attack = RingABell(tokens=2, strength=0.0, by=by, population=100)
    found = attack.find(base, own, 3000)
    assert [a.prompt for a in found.attempts[""][0]] == ["lion cat", "red boat"]
    assert found.calls == 0
    assert 0 < found.texts <= 3000 * 10 * 2 + 200


def test_the_best_of_a_generation_is_kept_unless_as_released() -> None:
    base, rng = tiny(), torch.Generator().manual_seed(0)
    allowed, slots = word_tokens(base), Slots.of(base, [[None] * 4])
    wish, lost = base.embed(["a red tiger cat"]).tokens[0], 0
    for elitism in (True, False):
        attack = RingABell(tokens=4, population=20, mutate=0.9, elitism=elitism)
        distance = attack.distance(base, slots, wish)
        ids = random_words(allowed, 80, rng).view(20, 4)
        for _ in range(15):
            before = float(distance(ids).min())
            ids = attack.bred(base, slots, wish, ids, distance, allowed, rng)
            assert ids.shape == (20, 4)
            assert allowed[ids].all()
            if elitism:
                assert float(distance(ids).min()) <= before
            else:
                lost += float(distance(ids).min()) > before
    assert lost > 0


def test_the_distance_is_that_of_the_texts_own_encoding() -> None:
    base = tiny()
    ids = torch.tensor(base.embed(["king lion", "a boat"]).word_ids())
    wish = base.embed(["a tiger"]).tokens[0]
    found = RingABell(tokens=2).distance(base, Slots.of(base, [[None] * 2]), wish)(ids)
    slow = (base.embed(["king lion", "a boat"]).tokens - wish).square().sum((1, 2))
    assert torch.allclose(found, slow, rtol=1e-5)


def test_the_encoding_itself_can_be_given() -> None:
    base = tiny()
    own, attack = goal(base), RingABell(by="rows", strength=2.0)
    for prompt, attempt in zip(own.prompts, attack.find(base, own, 10).attempts[""][0], strict=True):
        assert attempt.rows is not None
        wanted = base.embed([prompt]).tokens[0] + 2 * attack.vector(base, own)
        assert torch.allclose(attempt.rows.tokens[0], wanted, atol=1e-6)
