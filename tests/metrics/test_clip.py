"""CLIP scores against NumPy cosines of transformers' own embeddings."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles.sheet import THINGS, sheet
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

from efface.core.errors import UsageError
from efface.metrics.clip import ClipScorer
from efface.metrics.trunks import SCORERS

TEXTS = ["a tiger", "a very small red rose in noto style", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model with random weights, eight tokens long, and Moji's tokenizer."""
    where = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**size, "vocab_size": 1800, "max_position_embeddings": 12, "bos_token_id": 1798, "eos_token_id": 1799}
    vision = {**size, "image_size": 64, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(where)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SCORERS["moji"] / name, where)
    return where


def pictures(n: int) -> list[np.ndarray]:
    return list(np.random.default_rng(2).integers(0, 256, (n, 64, 64, 3), dtype=np.uint8))


def cosines(folder: Path, images: list[np.ndarray], texts: list[str]) -> list[float]:
    """One picture and one unpadded text at a time."""
    net, words = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    out = []
    for image, text in zip(images, texts, strict=True):
        x = torch.from_numpy(image.transpose(2, 0, 1)[None] / np.float32(127.5) - 1)
        ids = words([text], truncation=True, max_length=12, return_tensors="pt").input_ids
        with torch.no_grad():
            a = net.get_image_features(pixel_values=x).pooler_output.numpy()[0].astype(float)
            b = net.get_text_features(input_ids=ids).pooler_output.numpy()[0].astype(float)
        out.append((a @ b) / (a @ a) ** 0.5 / (b @ b) ** 0.5)
    return out


def test_a_score_is_a_hundred_cosines(folder: Path):
    images = pictures(3)
    expected = np.array(cosines(folder, images, TEXTS))
    assert expected.min() < 0 < expected.max()  # so that the clamp shows
    np.testing.assert_allclose(ClipScorer(str(folder)).score(images, TEXTS), 100 * expected, atol=1e-4)
    np.testing.assert_allclose(ClipScorer(str(folder), scale=1.0).score(images, TEXTS), expected, atol=1e-6)
    clamped = ClipScorer(str(folder), clamp=True).score(images, TEXTS)
    np.testing.assert_allclose(clamped, 100 * expected.clip(0), atol=1e-4)
    assert min(clamped) == 0


def test_the_id_names_model_weights_scale_and_clamp(folder: Path):
    scorer = ClipScorer(str(folder))
    assert scorer.id == f"{scorer.pictures.id}-x100"
    assert scorer.id.startswith("clip-tiny-")
    assert ClipScorer(str(folder), scale=2.5, clamp=True).id == f"{scorer.pictures.id}-x2.5-clamped"


def test_long_texts_are_cut_with_a_warning(folder: Path):
    scorer, images = ClipScorer(str(folder)), pictures(2)
    long = "a tiger and a lion and a cat and a dog and a rose and an apple and a car"
    with pytest.warns(UserWarning, match="1 of 2 are longer than 12 tokens and were cut"):
        scores = scorer.score(images, [long, "a cat"])
    np.testing.assert_allclose(scores, 100 * np.array(cosines(folder, images, [long, "a cat"])), atol=1e-4)


def test_other_pictures_change_no_bit(folder: Path):
    scorer, images = ClipScorer(str(folder)), pictures(18)
    texts = [f"a {thing}" for thing in (*THINGS, *THINGS[:4])]
    scores = scorer.score(images, texts)
    assert scorer.score(images[::-1], texts[::-1]) == scores[::-1]
    assert scorer.score(images[7:8], texts[7:8]) == scores[7:8]


def test_each_picture_has_its_text(folder: Path):
    with pytest.raises(UsageError, match="one for each of 2 pictures, got 1"):
        ClipScorer(str(folder)).score(pictures(2), ["a tiger"])


def test_a_missing_model_is_a_sentence(tmp_path: Path):
    with pytest.raises(UsageError, match="expected a folder or Hub id with config.json and safetensors weights, got"):
        ClipScorer(str(tmp_path))


def test_mojis_scorer_mostly_tells_the_right_name_from_another():
    scorer, cells = ClipScorer("moji"), sheet()[: 2 * len(THINGS)]
    images = [picture for _, _, picture in cells]
    right = np.array(scorer.score(images, [f"a {thing} in {style} style" for thing, style, _ in cells]))
    wrong = np.array(
        scorer.score(images, [f"a {THINGS[i % 14 - 5]} in {style} style" for i, (_, style, _) in enumerate(cells)])
    )
    assert (right > wrong).mean() > 0.9
    asked = [
        (image, f"a {t} in {style} style") for image, (_, style, _) in zip(images, cells, strict=True) for t in THINGS
    ]
    named = np.array(scorer.score([i for i, _ in asked], [t for _, t in asked])).reshape(len(cells), -1).argmax(1)
    assert (named == [THINGS.index(thing) for thing, _, _ in cells]).mean() > 0.75
    assert right.mean() > wrong.mean() + 20
