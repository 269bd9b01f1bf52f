"""Rows for training on words alone: pairs of prompts, a pool of anchors, noise and mixtures of it."""

import pytest
import torch

from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.erasers.parts.anchors import anchor_pool, concept_rows, mixed

TIGER, NOTO = Concept("tiger", "cat"), Concept("noto", kind="style")


def test_each_concept_has_its_prompts_and_what_they_shall_read_as(base: Denoiser) -> None:
    said, aims, counts = concept_rows(base, [TIGER, NOTO])
    assert counts.tolist() == [3, 7]
    assert said.shape == aims.shape == (2, 7, 16, 64)
    for i, prompts in enumerate(
        [
            (("tiger", "cat"), ("a tiger", "a cat"), ("a picture of a tiger", "a picture of a cat")),
            (("noto", ""), ("noto style", ""), ("a picture in noto style", ""), ("a dog in noto style", "a dog")),
        ]
    ):
        for k, (one, other) in enumerate(prompts):
            torch.testing.assert_close(said[i, k], base.embed([one]).tokens[0])
            torch.testing.assert_close(aims[i, k], base.embed([other]).tokens[0])


def test_a_pool_is_the_empty_prompt_what_is_kept_and_frequent_words(base: Denoiser) -> None:
    said = concept_rows(base, [TIGER])[0]
    pool, nearest = anchor_pool(base, [TIGER], [Concept("lion")], said, 5, 100)
    words = [w for w in base.words(40) if w not in {"tiger", "picture"}][:5]
    texts = [
        "",
        "lion",
        "a lion",
        "a picture of a lion",
        *(t for w in words for t in (w, f"a{'n' * (w[0] in 'aeiou')} {w}")),
    ]
    texts = list(dict.fromkeys(texts))  # a word that is preserved is no likelier for it
    assert len(texts) == 12
    torch.testing.assert_close(pool, base.embed(texts).tokens)
    close = torch.cosine_similarity(said[0, :1].flatten(1), pool.flatten(1))
    assert sorted(nearest[0].tolist()) == list(range(12))
    assert close[nearest[0]].diff().max() < 1e-6  # nearest first, as far as float32 tells cosines apart
    few = anchor_pool(base, [TIGER], [Concept("lion")], said, 5, 3)[1]
    assert few[0].tolist() == nearest[0, :3].tolist()


def test_nothing_to_keep_leaves_the_empty_prompt(base: Denoiser) -> None:
    said = concept_rows(base, [TIGER, NOTO])[0]
    pool, nearest = anchor_pool(base, [TIGER, NOTO], [], said, 0, 9)
    torch.testing.assert_close(pool, base.embed([""]).tokens)
    assert nearest.tolist() == [[0], [0]]


@pytest.fixture
def pool() -> torch.Tensor:
    return torch.randn(6, 4, 8, generator=torch.Generator().manual_seed(1))


def test_plain_anchors_are_of_the_concepts_own(pool: torch.Tensor) -> None:
    rows = mixed(pool, torch.tensor([[1, 2], [4, 5]]), 40, 0.0, False, torch.Generator().manual_seed(0))
    assert rows.shape == (2, 41, 4, 8)
    assert torch.equal(rows[:, -1], pool[:1].expand(2, -1, -1))  # the empty prompt is always there
    for mine, known in zip(rows[:, :-1], ({1, 2}, {4, 5}), strict=True):
        assert {int((pool - r).flatten(1).norm(dim=1).argmin()) for r in mine} == known
        assert all(any(torch.equal(r, p) for p in pool) for r in mine)


def test_noise_is_in_units_of_the_anchors(pool: torch.Tensor) -> None:
    rows = mixed(3 * pool, torch.zeros(1, 1).long(), 3000, 0.5, False, torch.Generator().manual_seed(0))
    off = rows[0, :-1] - 3 * pool[0]
    assert float(off.std()) == pytest.approx(0.5 * 3 * float(pool.square().mean().sqrt()), rel=0.02)
    assert abs(float(off.mean())) < 0.05
    torch.testing.assert_close(rows[0, -1], 3 * pool[0])  # the empty prompt is as it is


def test_mixtures_are_convex_and_uniform(pool: torch.Tensor) -> None:
    rows = mixed(pool, torch.tensor([[2, 3]]), 3000, 0.0, True, torch.Generator().manual_seed(0))
    way = pool[3] - pool[2]
    share = ((rows[0, :-1] - pool[2]) * way).sum((1, 2)) / way.square().sum()
    torch.testing.assert_close(rows[0, :-1], pool[2] + share[:, None, None] * way, atol=1e-5, rtol=0)
    inner = share[(share > 1e-4) & (share < 1 - 1e-4)]
    assert 0.4 < len(inner) / 3000 < 0.6  # half of the pairs are of one anchor with itself
    assert float(inner.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(inner.std()) == pytest.approx(12**-0.5, abs=0.03)
