"""Stage 3: the tokenizer, and a CLIP model trained contrastively on drawings and captions.

The CLIP model stays apart as the scorer; its text tower is also where the generator's own text encoder starts.
Writes tokenizer/, clip.safetensors.
"""

import argparse
import random

import torch
import torch.nn.functional as F
from common import BACKGROUNDS, DEVICE, STYLES, WORK, Log, Renderings, caption, load_state, named, save_state, schedule
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

LENGTH = 32  # positions; captions use a dozen, attacks need room
SPECIAL = ["<|startoftext|>", "<|endoftext|>"]


def build_tokenizer(data: Renderings, size: int = 3000) -> CLIPTokenizer:
    """CLIP's byte-level BPE trained on captions and every name and keyword."""
    rng = random.Random(0)
    words = [w for c in data.concepts for w in (c["name"], c["label"].lower(), *c["synonyms"], *c["implicit"])]
    texts = [
        caption(rng.choice(data.concepts), rng.choice(STYLES), rng.choice(list(BACKGROUNDS)), rng)
        for _ in range(30_000)
    ]
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])  # fmt: skip
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts + words * 20, trainer)
    bpe.model.save(str(WORK))
    merges = (WORK / "merges.txt").read_text().splitlines()[1:]
    vocab = bpe.get_vocab()
    for letter in alphabet:  # a byte may end a word
        vocab.setdefault(letter + "</w>", len(vocab))
    for token in SPECIAL:
        vocab[token] = len(vocab)
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[tuple(m.split(" ")) for m in merges], model_max_length=LENGTH)
    tokenizer.save_pretrained(WORK / "tokenizer")
    return tokenizer


def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(WORK / "tokenizer")


def tokens(tok: CLIPTokenizer, texts: list[str]) -> Tensor:
    return tok(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt").input_ids


def clip_config(tok: CLIPTokenizer) -> CLIPConfig:
    ids = {"bos_token_id": tok.bos_token_id, "eos_token_id": tok.eos_token_id, "pad_token_id": tok.pad_token_id}
    text = {
        "vocab_size": len(tok), "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 3,
        "num_attention_heads": 6, "max_position_embeddings": LENGTH, "projection_dim": 128, **ids,
    }  # fmt: skip
    vision = {
        "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
        "image_size": 64, "patch_size": 8, "projection_dim": 128,
    }  # fmt: skip
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=256)
    args = parser.parse_args()
    torch.manual_seed(0)
    data = Renderings()
    tok = tokenizer() if (WORK / "tokenizer").exists() else build_tokenizer(data)
    clip = CLIPModel._from_config(clip_config(tok), attn_implementation="eager").to(
        DEVICE
    )  # sdpa's CPU backward is slow
    opt = torch.optim.AdamW(clip.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    start = load_state(WORK / "clip.safetensors", named(clip, "clip"), {"opt": opt})
    log, colours = Log("clip", args.steps, start, every=20), list(BACKGROUNDS)
    for step in range(start, args.steps):
        rng = random.Random(step)
        for group in opt.param_groups:
            group["lr"] = 1e-3 * schedule(step, args.steps, warm=40)
        picked = torch.tensor([rng.randrange(len(data)) for _ in range(args.batch)])
        named_as = [rng.choice(colours) for _ in picked]
        x = data.on(picked, torch.tensor([BACKGROUNDS[b] for b in named_as], dtype=torch.float32))
        shift = (rng.randint(-4, 4), rng.randint(-4, 4))
        said = []
        for i, b in zip(picked.tolist(), named_as, strict=True):
            text = ""
            while not text:
                text = caption(data.concepts[data.concept[i]], STYLES[data.style[i]], b, rng)
            said.append(text)
        with torch.autocast(DEVICE, torch.bfloat16):
            out = clip(input_ids=tokens(tok, said).to(DEVICE), pixel_values=x.roll(shift, (2, 3)).to(DEVICE))
        logits, labels = out.logits_per_text.float(), torch.arange(len(x), device=DEVICE)
        loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        opt.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=4.6052)  # CLIP's own cap: a temperature of 1/100
        log(step, loss=loss.detach(), accuracy=(logits.argmax(1) == labels).float().mean())
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            save_state(WORK / "clip.safetensors", step + 1, named(clip, "clip"), {"opt": opt})


if __name__ == "__main__":
    main()
