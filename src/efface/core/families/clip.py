"""What families share that read prompts through CLIP text encoders."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from efface.core.cond import Tokens
from efface.core.hooks import replaced_output

PROMPTS = 256  # maximum batch of prompts for a text encoder
ACTIVATIONS = 2**25  # numbers in the widest activation of a text encoder, for all prompts of a batch


def clip_tokens(tokenizer: Any, encoder: Any, texts: Sequence[str]) -> Tokens:
    """Prompts as CLIP's token ids, padded and truncated to the length of the tokenizer and the encoder."""
    length = min(
        tokenizer.model_max_length, encoder.config.max_position_embeddings
    )  # some tokenizers have no length: 1e30
    given = tokenizer(
        list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
    # Stable Diffusion 1 pads with the end token, 2 with "!", which is a word as well: the first end token ends the text
    end, at = (given == tokenizer.eos_token_id).int().argmax(1, keepdim=True), torch.arange(length)
    ids, mask, words = (t.to(encoder.device) for t in (given, (at <= end).int(), (at > 0) & (at < end)))
    return Tokens(ids, mask, words)


def padded(ids: Int[Tensor, "b n"], mask: Int[Tensor, "b n"], tokenizer: Any) -> Int[Tensor, "b n"]:
    """The same token ids with the padding of `tokenizer`, which has the same words."""
    return torch.where(mask > 0, ids, tokenizer.pad_token_id)


def penultimate(
    encoder: Any, ids: Int[Tensor, "b n"], vectors: Float[Tensor, "b n e"] | None
) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b p"] | None]:
    """The rows before the last layer, and the projected vector of an encoder that has one; `vectors` replace the word vectors."""
    with replaced_output(encoder.get_input_embeddings(), vectors):
        out = encoder(ids, output_hidden_states=True)
    return out.hidden_states[-2], getattr(out, "text_embeds", None)


def projected(
    encoder: Any, ids: Int[Tensor, "b n"], vectors: Float[Tensor, "b n e"] | None
) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b p"]]:
    """As `penultimate`, of an encoder with a projection."""
    rows, pooled = penultimate(encoder, ids, vectors)
    assert pooled is not None
    return rows, pooled


def second(
    encoder: Any, tokenizer: Any, tokens: Tokens, vectors: Float[Tensor, "b n e"] | None
) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b p"]]:
    """As `projected`, for the second encoder, which has the same words and its tokenizer's own padding."""
    ids = padded(tokens.ids, tokens.mask, tokenizer)
    if vectors is not None:
        vectors = torch.where(tokens.mask[..., None] > 0, vectors, encoder.get_input_embeddings()(ids))
    return projected(encoder, ids, vectors)


def unconditional(words: Bool[Tensor, "b n"]) -> Bool[Tensor, "b"]:
    """Which prompts are ""."""
    return ~words.any(1)


def clip_batch(encoders: Sequence[Any]) -> int:
    """Maximum batch of prompts for these text encoders."""
    configs = [e.config for e in encoders]
    widest = max(c.max_position_embeddings * max(c.intermediate_size, c.hidden_size) for c in configs)
    return max(1, min(PROMPTS, ACTIVATIONS // widest))


def clip_words(tokenizer: Any, n: int) -> list[str]:
    """The `n` most frequent words of at least three letters: byte-pair merges are learnt in the order of frequency."""
    known = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    whole = (token.removesuffix("</w>") for token, _ in known if token.endswith("</w>"))
    return [w for w in whole if w.isascii() and w.isalpha() and len(w) >= 3][:n]


def clip_vectors(encoders: Sequence[Any]) -> Float[Tensor, "v e"]:
    """Word vectors of encoders that share a vocabulary, side by side."""
    return torch.cat([e.get_input_embeddings().weight for e in encoders], 1)
