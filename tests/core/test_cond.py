"""What a prompt's positions hold, with padding by the end token (Stable Diffusion 1) and by "!" (Stable Diffusion 2)."""

import pytest
import torch
from toys import LENGTH, WIDTH, tiny

from efface.core.appended_rows import lengthen
from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.erasers.parts.prompt_pairs import prompt_pairs

PROMPTS = ["a tiger", "", "leopard", "a cat !"]  # 2, 0, 7 letters, 3
COUNTS = [2, 0, 7, 3]


@pytest.fixture(params=[None, "!"], ids=["end-padded", "!-padded"])
def model(request: pytest.FixtureRequest) -> Denoiser:
    return tiny(pad=request.param)


def test_words_are_what_stands_between_start_and_end(model: Denoiser) -> None:
    cond, tok = model.embed(PROMPTS), model.pipeline.tokenizer
    alone = [tok(p, add_special_tokens=False).input_ids for p in PROMPTS]
    assert cond.word_ids() == alone
    assert cond.counts.tolist() == COUNTS
    assert cond.end.tolist() == [n + 1 for n in COUNTS]
    assert cond.last.tolist() == COUNTS  # for "" the start token, at 0
    assert (cond.ids.gather(1, cond.end[:, None]) == tok.eos_token_id).all()
    assert not cond.full.any()
    assert cond.from_end.sum(1).tolist() == [LENGTH - 1 - n for n in COUNTS]


def test_end_tokens_are_padding_only_where_padding_is_the_end_token(model: Denoiser) -> None:
    cond = model.embed(PROMPTS)
    pads = model.pipeline.tokenizer.pad_token == model.pipeline.tokenizer.eos_token
    assert cond.end_tokens.sum(1).tolist() == [LENGTH - 1 - n if pads else 1 for n in COUNTS]
    assert cond.end_tokens[torch.arange(len(PROMPTS)), cond.end].all()
    assert torch.equal(cond.end_tokens, cond.ids == model.pipeline.tokenizer.eos_token_id)
    pairs = prompt_pairs(model, Concept("tiger"))
    assert torch.equal(pairs.ends, pairs.prompts.ids == model.pipeline.tokenizer.eos_token_id)


def test_a_truncated_prompt_is_full_and_keeps_its_end(model: Denoiser) -> None:
    cond = model.embed(["leopard leopard leopard", "cat"])
    assert cond.full.tolist() == [True, False]
    assert cond.counts.tolist() == [LENGTH - 2, 1]
    assert cond.end[0] == LENGTH - 1
    assert [model.fits(p) for p in ("leopard leopard leopard", "cat")] == [False, True]


def test_rows_of_a_key_are_no_words(model: Denoiser) -> None:
    cond = model.embed(PROMPTS)
    longer, _ = lengthen(cond, None, torch.zeros(4, 3, WIDTH), torch.tensor([True] * 4))
    assert longer.word_ids() == cond.word_ids()
    assert longer.end.tolist() == cond.end.tolist()
    assert torch.equal(longer.end_tokens[:, :LENGTH], cond.end_tokens)
    assert not longer.end_tokens[:, LENGTH:].any()


def test_no_prompts_are_an_empty_batch(model: Denoiser) -> None:
    none = model.embed([])
    assert none.tokens.shape == (0, LENGTH, WIDTH)
    assert none.word_ids() == []
    assert len(none + model.embed(["cat"])) == 1
