"""What families share that read prompts through a T5 encoder."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from efface.core.cond import Cond, Tokens
from efface.core.hooks import replaced_output

ACTIVATIONS = 2**25  # numbers in the widest activation of a text encoder, for all prompts of a batch


def t5_tokens(tokenizer: Any, encoder: Any, texts: Sequence[str], length: int) -> Tokens:
    """Prompts as T5's token ids: words, end, padding; no start token."""
    given = tokenizer(
        list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
    end, at = (given == tokenizer.eos_token_id).int().argmax(1, keepdim=True), torch.arange(length)
    ids, mask, words = (t.to(encoder.device) for t in (given, (at <= end).int(), at < end))
    return Tokens(ids, mask, words)


def t5_rows(encoder: Any, tokens: Tokens, vectors: Float[Tensor, "b n e"] | None = None) -> Cond:
    """The rows of T5's last layer. As in the pipelines, words attend to the padding."""
    with replaced_output(encoder.encoder.embed_tokens, vectors):
        rows = encoder(tokens.ids)[0]
    return Cond(rows, tokens.ids, tokens.mask, tokens.words)


def t5_batch(encoder: Any, length: int) -> int:
    """Maximum batch of prompts of this length."""
    return max(1, ACTIVATIONS // (length * max(encoder.config.d_ff, encoder.config.d_model)))


def t5_words(tokenizer: Any, n: int) -> list[str]:
    """The `n` most frequent words of at least three letters: SentencePiece sorts its pieces by frequency."""
    known = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    whole = (token.removeprefix("▁") for token, _ in known if token.startswith("▁"))
    return [w for w in whole if w.isascii() and w.isalpha() and w.islower() and len(w) >= 3][:n]
