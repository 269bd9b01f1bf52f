"""Token sequences with free places."""

import pytest
import torch
from toys import tiny

from efface.attacks.parts.words import Slots, random_words, without, word_tokens


@pytest.mark.parametrize("pad", [None, "!"])
def test_filled_places_are_as_the_tokenizer_reads_the_text(pad: str | None) -> None:
    model = tiny(pad=pad)
    red, king, lion = (ids[0] for ids in model.embed(["red", "king", "lion"]).word_ids())
    (tiger,) = model.embed(["tiger"]).word_ids()
    slots = Slots.of(model, [[None, *tiger, None], [None]])
    picked = torch.tensor([red, king, lion])
    wanted = model.tokenize(["red tiger king", "lion"])
    found = slots.filled(picked)
    for name in ("ids", "mask", "words"):
        assert torch.equal(getattr(found, name), getattr(wanted, name))
    assert slots.texts(model, picked) == ("red tiger king", "lion")
    vectors = model.word_vectors.detach()
    own = torch.randn(3, vectors.shape[1])
    mixed = slots.vectors(vectors, own)
    assert torch.equal(mixed[slots.free], own)
    assert torch.equal(mixed[~slots.free], vectors[wanted.ids][~slots.free])
    assert torch.equal(
        model.encode_tokens(found, slots.vectors(vectors, vectors[picked])).tokens,
        model.embed(["red tiger king", "lion"]).tokens,
    )


def test_start_and_end_are_no_words_and_too_long_a_sequence_is_cut() -> None:
    model = tiny()
    allowed = word_tokens(model)
    assert int((~allowed).sum()) == 2
    assert allowed[random_words(allowed, 500, torch.Generator().manual_seed(0))].all()
    slots = Slots.of(model, [[None] * 40])
    assert int(slots.free.sum()) == slots.ids.shape[1] - 2


@pytest.mark.parametrize(
    ("sequence", "name", "found"),
    [([1, 2, 3], [2], [1, None, None, 3]), ([1, 2, 3], [2, 3], [1, None, None]), ([1, 2], [7], [1, 2, None, None])],
)
def test_free_places_stand_where_the_name_was(sequence: list[int], name: list[int], found: list[int | None]) -> None:
    assert without(sequence, name, 2) == found
