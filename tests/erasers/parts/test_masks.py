"""Masks from files and from a segmenter with random weights: what is read, and what each mistake is told."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toys import tokenizer
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

from efface.core.errors import EffaceError, UsageError
from efface.erasers.parts.masks import read_masks

PICTURES = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def save(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray((mask * 255).astype(np.uint8)).save(path)


def half(top: bool) -> np.ndarray:
    mask = np.zeros((32, 48))
    mask[: 16 if top else None, :10] = 1
    return mask


def test_one_mask_for_each_picture_or_one_for_all(tmp_path: Path) -> None:
    save(tmp_path / "b.png", half(True))
    assert np.array_equal(read_masks(str(tmp_path), PICTURES, "tiger"), [half(True)] * 2)
    save(tmp_path / "a.PNG", half(False))
    (tmp_path / "notes.txt").write_text("no mask")
    assert np.array_equal(read_masks(str(tmp_path), PICTURES, "tiger"), [half(False), half(True)])
    save(tmp_path / "lion" / "a.jpg", half(True))  # a concept's own come first
    assert np.abs(read_masks(str(tmp_path), PICTURES, "Lion ").numpy() - np.stack([half(True)] * 2)).mean() < 0.02


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    def said(source: Path | str) -> str:
        with pytest.raises((UsageError, EffaceError)) as caught:
            read_masks(str(source), PICTURES, "tiger")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert said(tmp_path).startswith(f"masks: expected 1 or 2 PNG or JPG files in {tmp_path}, got 0; put one there")
    save(tmp_path / "a.png", half(True).T)
    assert "expected 48 x 32 pixels, got 32 x 48 in" in said(tmp_path)
    save(tmp_path / "a.png", np.zeros((32, 48)))
    assert "expected masks that show 'tiger'" in said(tmp_path)
    (tmp_path / "a.png").write_bytes(b"no picture")
    assert "cannot be read as a picture" in said(tmp_path)
    assert "got 'no/such'" in said("no/such")


def test_a_segmenter_reads_the_name(tmp_path: Path) -> None:
    words = tokenizer()
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3}
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.eos_token_id}
    config = CLIPSegConfig(
        text_config={**tower, **ends, "vocab_size": len(words), "max_position_embeddings": 16},
        vision_config={**tower, "image_size": 16, "patch_size": 4},
        projection_dim=8, reduce_dim=8, extract_layers=[0, 1], decoder_num_attention_heads=2, decoder_intermediate_size=8,
        conditional_layer=0,
    )  # fmt: skip
    model = CLIPSegForImageSegmentation(config).eval()
    with torch.no_grad():
        for p in model.decoder.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    one, two = (read_masks(str(tmp_path), PICTURES, name) for name in ("tiger", "house"))
    assert one.shape == (2, 32, 48)
    assert set(one.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(one, two)
    given = words(["tiger"], return_tensors="pt")
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    seen = torch.nn.functional.interpolate(PICTURES[:1], (16, 16), mode="bilinear", antialias=True)
    with torch.no_grad():
        heat = model(pixel_values=(seen - mean) / deviation, **given).logits.view(16, 16)
    small = torch.nn.functional.interpolate(one[:1, None], (16, 16), mode="area")[0, 0]
    sure = (small == 0) | (small == 1)
    assert ((heat > 0) == (small == 1))[sure].float().mean() > 0.95
