"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a U-Net with cross-attention, a KL autoencoder."""

from collections.abc import Callable

import torch
from diffusers import StableDiffusionPipeline
from jaxtyping import Float, Int
from torch import Tensor, nn

CLASSES = (StableDiffusionPipeline,)
PARTS = {"unet": "unet", "text": "text_encoder"}  # what an edit can touch: our name -> the pipeline's component

Rule = Callable[[str, nn.Module], bool]

# Selections by parameter name ("unet.…" or "text.…") and the module that owns the parameter.
SELECTIONS: dict[str, Rule] = {
    "xattn.kv": lambda name, _: ".attn2.to_k." in name or ".attn2.to_v." in name,
    "xattn": lambda name, _: ".attn2." in name,
    "selfattn": lambda name, _: ".attn1." in name,
    "attn": lambda name, _: ".attn1." in name or ".attn2." in name,
    "noxattn": lambda name, _: name.startswith("unet.") and ".attn2." not in name,
    "noxattn.2023": lambda name, _: (
        name.startswith("unet.")
        and ".attn2." not in name
        and not name.startswith(("unet.conv_out", "unet.conv_norm_out", "unet.time_embedding"))
    ),
    "unet": lambda name, _: name.startswith("unet."),
    "unet.layers": lambda name, owner: name.startswith("unet.") and isinstance(owner, nn.Linear | nn.Conv2d),
    "xattn.layers": lambda name, owner: ".attn2." in name and isinstance(owner, nn.Linear),
    "noxattn.layers": lambda name, owner: (
        name.startswith("unet.") and ".attn2." not in name and isinstance(owner, nn.Linear | nn.Conv2d)
    ),
    "text": lambda name, _: name.startswith("text."),
    "text.layers": lambda name, owner: name.startswith("text.") and isinstance(owner, nn.Linear),
    "text.embeddings": lambda name, _: name.endswith("token_embedding.weight"),
}


def embed(
    pipe: StableDiffusionPipeline, prompts: list[str]
) -> tuple[Float[Tensor, "b n d"], Int[Tensor, "b n"], Int[Tensor, "b n"]]:
    """Token rows as the pipeline itself encodes a prompt, with ids and the mask of real tokens (SOS, words, EOS)."""
    tok = pipe.tokenizer
    given = tok(prompts, padding="max_length", max_length=tok.model_max_length, truncation=True, return_tensors="pt")
    ids = given.input_ids.to(pipe.text_encoder.device)
    ends = (
        (given.input_ids == tok.eos_token_id).int().argmax(1, keepdim=True)
    )  # SD 1.x pads with EOS: the first one ends the text
    mask = (torch.arange(ids.shape[1])[None] <= ends).int().to(ids.device)
    uses_mask = getattr(pipe.text_encoder.config, "use_attention_mask", False)
    rows = pipe.text_encoder(ids, attention_mask=mask if uses_mask else None)[0]
    return rows, ids, mask


def words(pipe: StableDiffusionPipeline, n: int) -> list[str]:
    """The tokenizer's `n` most frequent words of at least three letters: byte-pair merges are learnt in the order of frequency."""
    known = sorted(pipe.tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    whole = (token.removesuffix("</w>") for token, _ in known if token.endswith("</w>"))
    return [w for w in whole if w.isascii() and w.isalpha() and len(w) >= 3][:n]
