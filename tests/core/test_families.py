"""Pipelines as people have them: what a family says of each, and that a denoiser works with it."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from toys import pipeline, probe, safety_checker
from transformers import CLIPImageProcessor, CLIPTextConfig

from efface.core.denoiser import DTYPES, Denoiser, _only_variant, load
from efface.core.errors import UsageError
from efface.core.families import FAMILIES, family_of
from efface.core.families.sd import StableDiffusion
from efface.core.sampling import batch_size

SAMPLE = {"steps": 2, "guidance": 3.0}


# -- what a family says --------------------------------------------------------------------------------------------


def test_every_family_has_the_selections_and_parts_that_methods_name() -> None:
    for family in FAMILIES:
        assert family.denoiser in family.parts
        assert not family.kohya or family.kohya.keys() == family.parts.keys()
        assert (
            {"xattn.kv", "xattn", "selfattn", "text", "denoiser"}
            <= family.selections.keys()
            == FAMILIES[0].selections.keys()
        )
        assert "ddim" in family.samplers


def test_text_readers_are_all_layers_that_read_text_rows(base: Denoiser) -> None:
    """Found by what they read: with other rows exactly these get another input in the first block of each transformer."""
    readers = base.text_readers()
    assert {f"{name}.weight" for name in readers} == base.params("xattn.kv").keys()
    assert list(readers) == [name.removesuffix(".weight") for name in base.params("xattn.kv")]
    rows, got = base.embed(["tiger"]), {}
    handles = [
        m.register_forward_pre_hook(lambda m, given, name=name: got.update({name: given[0]}))
        for name, m in base.pipeline.unet.named_modules() if isinstance(m, torch.nn.Linear)
    ]  # fmt: skip
    with torch.no_grad():
        base.predict(torch.zeros(1, *base.latent_shape), torch.tensor([500]), rows)
    for handle in handles:
        handle.remove()
    reads = {f"unet.{name}" for name, x in got.items() if x.shape == rows.tokens.shape and torch.equal(x, rows.tokens)}
    assert reads == readers.keys()


def test_cross_attentions_stand_in_the_transformers_with_the_norm_of_their_queries(base: Denoiser) -> None:
    found = base.cross_attentions()
    assert len(found) * 2 == len(base.text_readers())
    assert all(any(name.startswith(f"{outer}.") for outer in base.transformers()) for name in found)
    for name, attention in found.items():
        assert attention.norm.normalized_shape == (attention.layer.to_q.in_features,), name


def test_a_part_that_is_missing_is_named() -> None:
    for part in ("tokenizer", "text_encoder", "vae"):
        pipe = pipeline()
        setattr(pipe, part, None)
        with pytest.raises(UsageError, match=f"model: expected a pipeline with {part}, got one without"):
            family_of(pipe)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_weights_that_are_not_in_memory_are_a_sentence() -> None:
    with pytest.raises(UsageError, match="model: expected weights in memory, got some on the device 'meta'"):
        Denoiser(pipeline().to("meta"))


# -- words ---------------------------------------------------------------------------------------------------------


def test_a_tokenizer_without_a_length_takes_the_encoders(base: Denoiser) -> None:
    pipe = pipeline()
    pipe.tokenizer.model_max_length = int(1e30)
    assert torch.equal(Denoiser(pipe).embed(["a tiger"]).tokens, base.embed(["a tiger"]).tokens)


def test_a_word_of_several_vectors_is_read_as_the_pipeline_reads_it() -> None:
    pipe = pipeline()
    pipe.load_textual_inversion({"<thing>": torch.randn(3, pipe.text_encoder.config.hidden_size)})
    model = Denoiser(pipe)
    cond = model.embed(["a <thing>"])
    assert torch.equal(cond.tokens, pipe.encode_prompt(["a <thing>"], "cpu", 1, False)[0])
    assert cond.counts.tolist() == [4]


@pytest.mark.usefixtures("untyped")
def test_prompts_at_once_follow_the_text_encoders_size() -> None:
    def at_once(**config: int) -> int:
        text = type("Text", (), {"config": CLIPTextConfig(**config)})()
        return StableDiffusion().prompt_batch(type("Pipe", (), {"text_encoder": text})())

    assert at_once(hidden_size=192, intermediate_size=768, max_position_embeddings=32) == 256  # Moji: at most 256
    assert at_once(hidden_size=768, intermediate_size=3072, max_position_embeddings=77) == 2**25 // (77 * 3072) == 141
    assert at_once(hidden_size=4096, intermediate_size=10240, max_position_embeddings=512) == 6
    assert at_once(hidden_size=2**20, intermediate_size=2**22, max_position_embeddings=77) == 1


# -- sizes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("places", "memory", "itemsize", "expected"),
    [
        (8 * 8, None, 4, 16),  # Moji: 64 pixels
        (16 * 16, None, 4, 16), (32 * 32, None, 4, 4), (45 * 45, None, 4, 2), (64 * 64, None, 4, 1), (96 * 96, None, 4, 1),
        (64 * 64, 22 * 2**30, 2, 16),  # a GPU of 24 GiB
        (64 * 64, 5 * 2**30, 2, 5), (64 * 64, 5 * 2**30, 4, 2), (64 * 64, 2**20, 4, 1), (8 * 8, 22 * 2**30, 4, 16),
    ],
)  # fmt: skip
def test_pictures_at_once_follow_size_and_device(places: int, memory: int | None, itemsize: int, expected: int) -> None:
    assert batch_size(places, memory, itemsize) == expected


def test_a_denoiser_takes_as_many_pictures_as_the_rule_says(base: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    assert base.batch_size == 16
    pipe = copy.copy(base.pipeline)
    pipe.unet = copy.deepcopy(pipe.unet)
    pipe.unet.register_to_config(sample_size=32)
    large, seen = Denoiser(pipe), []
    assert large.batch_size == 4
    large.sample(large.embed(["cat"]), seeds=range(5), steps=1, tick=seen.append)
    assert seen == [4, 1]
    given: list[int] = []
    for name in ("encode", "decode"):
        plain = getattr(pipe.vae, name)
        monkeypatch.setattr(pipe.vae, name, lambda x, plain=plain: given.append(len(x)) or plain(x))
    large.decode(large.encode(torch.rand(5, 3, 16, 16)))
    assert given == [4, 1, 4, 1]


@pytest.mark.parametrize(
    ("size", "expected"), [(8, (4, 8, 8)), ([4, 8], (4, 4, 8)), ((8, 4), (4, 8, 4)), (None, (4, 8, 8))]
)
def test_the_size_of_latents_is_the_unets_or_the_autoencoders(size: object, expected: tuple[int, int, int]) -> None:
    pipe = pipeline()
    pipe.unet.register_to_config(sample_size=size)
    model = Denoiser(pipe)
    assert model.latent_shape == expected
    assert model.images(["cat"], [0], **SAMPLE)[0].shape == (2 * expected[1], 2 * expected[2], 3)


def test_a_size_that_nobody_says_is_a_sentence() -> None:
    pipe = pipeline()
    pipe.unet.register_to_config(sample_size=None)
    pipe.vae.register_to_config(sample_size=None)
    with pytest.raises(
        UsageError, match="model: expected a sample_size, got null in the configurations of both unet and vae"
    ):
        Denoiser(pipe).noise([0])


# -- guidance ------------------------------------------------------------------------------------------------------


def test_a_guidance_of_numpy_is_the_number(base: Denoiser) -> None:
    cond = base.embed(["a tiger"])
    expected = base.sample(cond, seeds=[0, 1], steps=2, guidance=3.0)
    for scale in (np.float32(3), np.float64(3), 3):
        assert torch.equal(base.sample(cond, seeds=[0, 1], steps=2, guidance=scale), expected)


def test_a_guidance_that_is_no_number_or_of_another_count_is_a_sentence(base: Denoiser) -> None:
    cond = base.embed(["a tiger"])
    with pytest.raises(UsageError, match="guidance: expected finite scales, got nan"):
        base.sample(cond, seeds=[0], steps=2, guidance=float("nan"))
    with pytest.raises(UsageError, match="guidance: expected 1 scale or 2, one for each picture, got 3"):
        base.sample(cond, seeds=[0, 1], steps=2, guidance=[1.0, 2.0, 3.0])


# -- folders -------------------------------------------------------------------------------------------------------


def test_a_pipeline_with_a_safety_checker_works(base: Denoiser, tmp_path: Path) -> None:
    pipe = StableDiffusionPipeline(
        **{**base.pipeline.components, "safety_checker": safety_checker(), "feature_extractor": CLIPImageProcessor(size=8, crop_size=8)}
    )  # fmt: skip
    pipe.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.pipeline.safety_checker is not None
    assert loaded.note == ""
    twin = loaded.fork("xattn.kv")
    for a, b in zip(twin.images(["cat"], [1], **SAMPLE), base.images(["cat"], [1], **SAMPLE), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_folder_of_variant_files_loads_and_says_so(base: Denoiser, tmp_path: Path) -> None:
    base.pipeline.save_pretrained(tmp_path, variant="fp16")
    assert not (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").exists()
    found, asked = load(tmp_path), load(tmp_path, variant="fp16")
    assert found.note == f"model {str(tmp_path)!r}: the folder has only fp16 weights; they were loaded as float32"
    assert asked.note == ""  # nothing that was not asked for
    assert torch.equal(probe(found, "a tiger"), probe(base, "a tiger"))
    assert torch.equal(probe(asked, "a tiger"), probe(base, "a tiger"))
    base.pipeline.save_pretrained(tmp_path)  # plain files beside them are preferred
    assert load(tmp_path).note == ""


def test_shards_of_a_variant_are_found_by_name(tmp_path: Path) -> None:
    for name in ("model-00001-of-00002.fp16.safetensors", "model.bf16-00001-of-00002.safetensors", "model.safetensors"):
        part = tmp_path / name / "unet"
        part.mkdir(parents=True)
        (part / name).touch()
    found = [_only_variant(folder) for folder in sorted(tmp_path.iterdir())]
    assert found == ["fp16", "bf16", None]


@pytest.mark.usefixtures("untyped")
def test_dtypes_have_names_and_others_are_a_sentence(base: Denoiser, tmp_path: Path) -> None:
    base.pipeline.save_pretrained(tmp_path)
    assert load(tmp_path, dtype="torch.bfloat16").dtype == load(tmp_path, dtype="bf16").dtype == torch.bfloat16
    assert set(DTYPES.values()) == {torch.float32, torch.bfloat16, torch.float16}
    for wrong in ("int8", "float", "Tensor", torch.int8):
        with pytest.raises(UsageError, match="dtype: expected float32, bfloat16 or float16, got"):
            load(tmp_path, dtype=wrong)


def test_a_folder_without_its_tokenizer_is_one_sentence(base: Denoiser, tmp_path: Path) -> None:
    base.pipeline.save_pretrained(tmp_path)
    for file in (tmp_path / "tokenizer").iterdir():
        file.unlink()
    (tmp_path / "tokenizer").rmdir()
    with pytest.raises(UsageError, match="model: expected a tokenizer with a vocabulary, got one without"):
        load(tmp_path)


def test_a_tiny_autoencoder_works() -> None:
    pipe = pipeline()
    with torch.random.fork_rng():
        torch.manual_seed(2)
        pipe.vae = AutoencoderTiny(
            encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1), latent_channels=4,
        )  # fmt: skip
    model, images = Denoiser(pipe), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        expected = pipe.vae.encode(2 * images - 1).latents
    torch.testing.assert_close(model.encode(images), expected, atol=1e-6, rtol=0)
    assert model.images(["cat"], [0], **SAMPLE)[0].shape == (16, 16, 3)
