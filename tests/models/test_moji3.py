"""Moji-3: a stock Stable Diffusion 3 that draws what Moji draws, so that what is said of multimodal transformers is measured."""

import hashlib
import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from efface.benchmarks.moji import concepts, prompt
from efface.core.denoiser import Denoiser, load
from efface.core.identity import tokenizer
from efface.erasers import make
from efface.metrics.detectors import Classifier
from efface.models import HERE

FOLDER = HERE / "moji3"
PAIRS = [(name, entry["styles"][i % len(entry["styles"])]) for i, (name, entry) in enumerate(concepts().items())][::9]


@pytest.fixture(scope="module")
def moji3() -> Denoiser:
    return load("moji3")


@pytest.fixture(scope="module")
def judge() -> Classifier:
    return Classifier("moji-concept")


def right(judge: Classifier, pictures: list[np.ndarray], names: list[str]) -> int:
    return sum(found["rank"] == 1 for found in judge.rank(pictures, names))


def test_it_is_what_its_card_says(moji3: Denoiser) -> None:
    card = json.loads((FOLDER / "card.json").read_text())
    assert card["fingerprint"] == moji3.fingerprint
    assert {name: hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() for name in card["sha256"]} == card["sha256"]
    assert {k: sum(p.numel() for p in m.parameters()) for k, m in moji3.modules().items()} == card["parameters"]
    assert card["quality"]["concept_top1"]["all"]["value"] >= 0.95
    assert card["quality"]["style_top1"]["value"] >= 0.9
    assert sum(f.stat().st_size for f in FOLDER.rglob("*.safetensors")) < 40 * 2**20
    assert tokenizer(moji3.pipeline.tokenizer) == tokenizer(load("moji").pipeline.tokenizer)


def test_the_stock_pipeline_draws_the_same(moji3: Denoiser, judge: Classifier) -> None:
    stock = StableDiffusion3Pipeline.from_pretrained(FOLDER, text_encoder_3=None, tokenizer_3=None)
    stock.set_progress_bar_config(disable=True)
    names = ["tiger", "bus", "rose"]
    prompts, latents = [prompt(n, "noto") for n in names], moji3.noise([0, 1, 2])
    mine = moji3.images(prompts, [0, 1, 2], steps=8)
    how = {
        "latents": latents,
        "num_inference_steps": 8,
        "guidance_scale": 3.0,
        "height": 64,
        "width": 64,
        "output_type": "np",
    }
    same = stock(prompts, max_sequence_length=32, **how).images
    for a, b in zip(mine, same, strict=True):
        np.testing.assert_allclose(a.astype(int), (b * 255).round().astype(int), atol=1)
    usual = [(p * 255).round().astype(np.uint8) for p in stock(prompts, **how).images]  # with 256 rows in place of T5's
    assert right(judge, usual, names) == right(judge, mine, names) == 3


def test_it_draws_what_it_is_asked_for(moji3: Denoiser, judge: Classifier) -> None:
    """One pair of every ninth concept, ten steps; the card has all 808 pairs at 25."""
    pictures = moji3.images([prompt(*pair) for pair in PAIRS], range(len(PAIRS)), steps=10)
    assert right(judge, pictures, [name for name, _ in PAIRS]) >= len(PAIRS) - 1


def test_a_closed_form_takes_a_concept_out_and_keeps_another(moji3: Denoiser, judge: Classifier) -> None:
    """Where text enters by one embedder: T on the rows, and a map of the pooled vector. Positive control: the unedited model."""
    edited = make("uce").fit(moji3, "guitar", ["violin", "trumpet"], model="moji3")(moji3)
    asked = ["guitar"] * 4 + ["violin", "trumpet", "bus", "rose"]
    prompts = [
        prompt(name, style) for name, style in zip(asked, ["noto", "fluent", "twemoji", "blob"] * 2, strict=True)
    ]
    before, after = (model.images(prompts, range(8), steps=10) for model in (moji3, edited))
    assert right(judge, before[:4], asked[:4]) == 4
    assert right(judge, after[:4], asked[:4]) <= 1
    assert right(judge, after[4:], asked[4:]) >= right(judge, before[4:], asked[4:]) - 1


def test_training_in_velocity_moves_the_concept_and_not_the_rest(moji3: Denoiser) -> None:
    edited = make("esd", where="xattn", steps=8, reuse=8, batch=4, lr=1e-3, sampler_steps=6).fit(
        moji3, "tiger", model="moji3"
    )(moji3)
    x = torch.randn(4, *moji3.latent_shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([900, 700, 500, 300])

    def moved(text: str) -> float:
        with torch.no_grad():
            a, b = (m.predict(x, t, m.embed([text])) for m in (moji3, edited))
        return float((a - b).norm() / a.norm())

    assert moved("a tiger") > 0.05
    assert moved("a tiger") > 1.3 * moved("a bus")
