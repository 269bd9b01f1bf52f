"""Stand-ins of real models: what Stable Diffusion has and a toy has not. Each goes the whole way, from a folder to an edit and back.

Models of full size are tried by benchmarks/real_size.py.
"""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from toys import WIDTH, moved, pipeline, probe
from transformers import CLIPConfig, CLIPImageProcessor

from efface.core.concept import Concept
from efface.core.denoiser import Denoiser, load
from efface.core.edit import load_edit
from efface.erasers.uce import UCE

LARGEST = 29_491_200  # values of Stable Diffusion 1.4's largest weight, the kernel of up_blocks.1.resnets.0.conv1


def goes_the_whole_way(base: Denoiser, folder: Path) -> None:
    """Fits a closed form, applies it, and applies it again from its file to the model of the folder, loaded again."""
    edit = UCE().fit(base, Concept("tiger", "cat"), ["lion"])
    edited = edit(base)
    assert moved(base, edited, "tiger") > 0.1
    assert moved(base, edited, "lion") < 0.5 * moved(base, edited, "tiger")
    edit.save(folder / "edit.safetensors")
    again = read(folder, base.pipeline.unet.dtype)
    assert again.fingerprint == base.fingerprint == edit.header.base
    assert torch.equal(probe(load_edit(folder / "edit.safetensors")(again), "tiger"), probe(edited, "tiger"))
    pictures = edited.images(["a tiger", "a lion"], [0, 1], steps=2)
    assert [p.shape for p in pictures] == [(16, 16, 3)] * 2


def read(folder: Path, dtype: torch.dtype = torch.float32) -> Denoiser:
    """`load`, which may warn of what it leaves aside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load(folder, dtype=dtype)


def test_a_weight_as_large_as_the_largest_real_one(tmp_path: Path) -> None:
    """Positions in it are beyond what float32 counts exactly (2^24). A table of words is the cheapest weight to enlarge: 59 MB."""
    pipe = pipeline(dtype=torch.bfloat16)
    text = pipe.text_encoder
    small = text.get_input_embeddings()
    large = torch.zeros(LARGEST // WIDTH, WIDTH, dtype=torch.bfloat16)
    large[: small.num_embeddings] = small.weight
    text.set_input_embeddings(torch.nn.Embedding(*large.shape, _weight=large))
    text.config.vocab_size = len(large)
    pipe.save_pretrained(tmp_path)
    base = read(tmp_path, torch.bfloat16)
    assert max(p.numel() for p in base.params("text").values()) == LARGEST
    goes_the_whole_way(base, tmp_path)
    with torch.no_grad():
        text.get_input_embeddings().weight[-1, -1] = 1.0
    assert Denoiser(pipe).fingerprint != base.fingerprint  # the last value counts as well


def test_a_pipeline_in_bfloat16(tmp_path: Path) -> None:
    pipeline(dtype=torch.bfloat16).save_pretrained(tmp_path)
    base = read(tmp_path, torch.bfloat16)
    assert {p.dtype for p in base.params("denoiser").values()} == {torch.bfloat16}
    goes_the_whole_way(base, tmp_path)


@pytest.mark.parametrize("pad", [None, "!"])  # Stable Diffusion 1.x pads with the end token, 2.x with "!"
def test_a_pipeline_that_pads_with(tmp_path: Path, pad: str | None) -> None:
    pipeline(pad=pad).save_pretrained(tmp_path)
    base = read(tmp_path)
    padded = base.embed(["tiger"])
    tok = base.pipeline.tokenizer
    assert set(padded.ids[0, int(padded.mask.sum()) :].tolist()) == {tok.convert_tokens_to_ids(pad or tok.eos_token)}
    goes_the_whole_way(base, tmp_path)


def test_a_pipeline_with_a_safety_checker(tmp_path: Path) -> None:
    """It judges what the pipeline draws. It is no part of the denoiser: an edit and a picture do not depend on it."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CLIPConfig(projection_dim=8, vision_config={**sizes, "image_size": 16, "patch_size": 8}, text_config=sizes)
    plain = pipeline()
    pipe = StableDiffusionPipeline(
        **{**plain.components, "safety_checker": StableDiffusionSafetyChecker(config), "feature_extractor": CLIPImageProcessor()}
    )  # fmt: skip
    pipe.save_pretrained(tmp_path / "judged")
    plain.save_pretrained(tmp_path / "plain")
    base, without = read(tmp_path / "judged"), read(tmp_path / "plain")
    assert base.fingerprint == without.fingerprint
    assert np.array_equal(*(model.images(["a tiger"], [3], steps=2)[0] for model in (base, without)))
    goes_the_whole_way(base, tmp_path / "judged")


def test_a_folder_saved_with_a_variant(tmp_path: Path) -> None:
    """As most Hub models are: the files are named diffusion_pytorch_model.fp16.safetensors, and there are no others."""
    pipeline(dtype=torch.float16).save_pretrained(tmp_path, variant="fp16")
    assert [p.name for p in (tmp_path / "unet").glob("*.safetensors")] == ["diffusion_pytorch_model.fp16.safetensors"]
    base = read(tmp_path)
    assert {p.dtype for p in base.params("denoiser").values()} == {torch.float32}
    assert torch.equal(probe(base, "tiger"), probe(Denoiser(pipeline(dtype=torch.float16).to(torch.float32)), "tiger"))
    goes_the_whole_way(base, tmp_path)
