"""Sampling from given latents, from pictures, with a switch of the prompt; tokens and word vectors."""

import pytest
import torch
from torch import Tensor
from toys import tiny

from efface.core.denoiser import Denoiser
from efface.core.errors import UsageError
from efface.core.sampling import Start

SEEDS = [3, 4]


def sampled(base: Denoiser, prompt: str = "a tiger", **how: object) -> Tensor:
    given = base.sample(base.embed([prompt]), seeds=SEEDS, steps=6, **how)  # pyright: ignore[reportArgumentType]
    assert isinstance(given, Tensor)
    return given


def test_given_latents_take_the_place_of_the_seeds_noise(base: Denoiser) -> None:
    assert torch.equal(sampled(base, latents=base.noise(SEEDS)), sampled(base))
    assert not torch.equal(sampled(base, latents=base.noise([5, 6])), sampled(base))


def test_a_switch_reads_the_other_prompt_from_its_step_on(base: Denoiser) -> None:
    other = base.embed(["a cat"])
    assert torch.equal(sampled(base, later=(0, other)), sampled(base, "a cat"))
    assert torch.equal(sampled(base, later=(6, other)), sampled(base))
    path, switched = sampled(base, record=True), sampled(base, later=(3, other), record=True)
    assert torch.equal(path[:4], switched[:4])
    assert not torch.equal(path[4], switched[4])


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpm++"])
def test_a_picture_is_kept_where_the_mask_is_zero(base: Denoiser, sampler: str) -> None:
    clean, mask = sampled(base, "a dog"), torch.zeros(2, 1, *base.latent_shape[1:])
    mask[..., :4] = 1
    drawn = sampled(base, start=Start(clean, 2, mask), sampler=sampler)
    assert torch.equal(drawn[..., 4:], clean[..., 4:])
    assert not torch.allclose(drawn[..., :4], clean[..., :4], atol=0.1)


def test_a_picture_start_is_the_forward_process_of_its_step(base: Denoiser) -> None:
    """An oracle: noising by the schedule's closed form, then the rest of the steps."""
    clean = sampled(base, "a dog")
    t = base.timesteps(6)[2].expand(2)
    path = sampled(base, start=Start(clean, 2), record=True)
    assert len(path) == 5  # the start and four steps
    assert torch.allclose(path[0], base.add_noise(clean, t, base.noise(SEEDS)), atol=1e-6)
    later, sooner = (sampled(base, start=Start(clean, first)) for first in (5, 0))
    assert (later - clean).norm() < (sooner - clean).norm() / 2


def test_rows_can_take_the_place_of_the_negative_prompt(base: Denoiser) -> None:
    assert torch.equal(sampled(base, negative_rows=base.embed(["a cat"])), sampled(base, negative="a cat"))


def test_a_start_of_another_number_or_step_is_refused(base: Denoiser) -> None:
    clean = sampled(base)
    with pytest.raises(UsageError, match="latents: expected 2"):
        sampled(base, latents=clean[:1])
    with pytest.raises(UsageError, match="start: expected a first step below 6, got 6"):
        sampled(base, start=Start(clean, 6))


@pytest.mark.parametrize("pad", [None, "!"])
def test_tokens_and_their_word_vectors_encode_as_the_prompt(pad: str | None) -> None:
    base = tiny(pad=pad)
    tokens = base.tokenize(["a tiger", "a red cat", ""])
    whole, again = base.embed(["a tiger", "a red cat", ""]), base.encode_tokens(tokens)
    assert torch.equal(whole.tokens, again.tokens)
    given = base.encode_tokens(tokens, base.word_vectors[tokens.ids])
    assert torch.equal(given.tokens, whole.tokens)
    assert [base.spell(ids) for ids in whole.word_ids()] == ["a tiger", "a red cat", ""]


def test_gradients_reach_word_vectors(base: Denoiser) -> None:
    tokens = base.tokenize(["a tiger"])
    vectors = base.word_vectors[tokens.ids].clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(base.encode_tokens(tokens, vectors).tokens.square().sum(), vectors)
    assert slope[0, :4].abs().sum() > 0
    assert torch.equal(base.encode_tokens(tokens).tokens, base.embed(["a tiger"]).tokens)  # and nothing stays behind
