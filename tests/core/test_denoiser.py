"""The denoiser: exact conversions, diffusers' own sampler, weights that are shared or owned."""

import copy

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler, UNet2DConditionModel, UNet2DModel
from oracles import schedule as oracle
from toys import LENGTH, MixtureDenoiser, differing, pipeline, probe, snapshot, tiny

from efface.core.cond import Cond
from efface.core.denoiser import Denoiser, load
from efface.core.errors import EffaceError, UsageError
from efface.core.families.sd import SAMPLERS, SELECTIONS

KINDS = ["epsilon", "v_prediction"]


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, shared: Denoiser, velocity: Denoiser) -> Denoiser:
    return shared if request.param == "epsilon" else velocity


# -- predictions ---------------------------------------------------------------------------------------------------


def test_the_schedule_is_stable_diffusions(base: Denoiser) -> None:
    alpha, sigma = base.schedule.alpha.numpy(), base.schedule.sigma.numpy()
    np.testing.assert_allclose(alpha**2, oracle.alphas_cumprod(), rtol=1e-5)  # diffusers multiplies in float32
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-6)
    assert len(base.schedule) == 1000


def test_more_steps_than_levels_are_refused(base: Denoiser) -> None:
    assert len(base.timesteps(1000)) == 1000
    sentence = "^steps: expected at most 1000, got 1001; give fewer$"
    with pytest.raises(UsageError, match=sentence):
        base.timesteps(1001)
    with pytest.raises(UsageError, match=sentence):
        base.sample(base.embed(["cat"]), seeds=[0], steps=1001)


def test_predict_is_the_unets_native_output(model: Denoiser) -> None:
    x, t, cond = torch.randn(2, *model.latent_shape), torch.tensor([700, 3]), model.embed(["a tiger", "cat"])
    with torch.no_grad():
        expected = torch.cat(
            [
                model.pipeline.unet(x[i : i + 1], t[i], encoder_hidden_states=cond.tokens[i : i + 1]).sample
                for i in (0, 1)
            ]
        )
        torch.testing.assert_close(model.predict(x, t, cond), expected, atol=1e-5, rtol=0)
        one = model.predict(x, t, cond[:1])
        torch.testing.assert_close(one[0], expected[0], atol=1e-5, rtol=0)
        assert (one[1] - expected[1]).abs().max() > 0.1  # the toy listens to its prompt


# -- words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", [None, "!"])
def test_embed_is_the_pipelines_own_encoding(pad: str | None) -> None:
    model, prompts = tiny(pad=pad), ["a tiger", "", "leopard", "a picture of a happy zebra"]
    expected, null = model.pipeline.encode_prompt(prompts, "cpu", 1, True)
    cond = model.embed(prompts)
    assert torch.equal(cond.tokens, expected)
    torch.testing.assert_close(model.embed([""]).tokens[0], null[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("pad", [None, "!"])
def test_the_mask_covers_start_words_and_one_end(pad: str | None) -> None:
    cond = tiny(pad=pad).embed(["a tiger", "", "leopard", "a picture of a happy zebra"])
    assert cond.mask.sum(1).tolist() == [4, 2, 9, 12]
    assert (cond.mask.diff(dim=1) <= 0).all()


def test_a_prompt_that_is_too_long_ends_in_the_end_token(base: Denoiser) -> None:
    cond = base.embed(["leopard leopard leopard leopard"])
    assert cond.mask.sum() == LENGTH
    assert cond.ids[0, -1] == base.pipeline.tokenizer.eos_token_id


def test_embedding_many_prompts_in_parts_changes_nothing(base: Denoiser) -> None:
    many = base.embed(["a tiger", "cat", ""] * 100)  # more than one part
    torch.testing.assert_close(many.tokens[297:], base.embed(["a tiger", "cat", ""]).tokens, atol=1e-5, rtol=0)


def test_conds_index_expand_and_add(base: Denoiser) -> None:
    cond = base.embed(["a tiger", "cat"])
    assert torch.equal(cond[[1]].tokens, cond.tokens[1:])
    assert torch.equal((cond[:1] + cond[1:]).ids, cond.ids)
    assert len(cond[:1].expand(5)) == 5
    assert cond.expand(2) is cond
    with pytest.raises(UsageError, match="prompts: expected 1 or 5, one for each picture, got 2"):
        base.sample(cond, seeds=range(5), steps=2)


# -- pictures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "guidance"), [(4, 4.0), (7, 1.5), (3, 1.0)])
def test_sampling_is_the_plain_pipeline(model: Denoiser, steps: int, guidance: float) -> None:
    prompts, seeds = ["a tiger", "a picture of a cat"], [3, 8]
    ours = model.sample(model.embed(prompts), seeds=seeds, steps=steps, guidance=guidance)
    plain = model.pipeline(
        prompts, latents=model.noise(seeds), num_inference_steps=steps, guidance_scale=guidance, output_type="latent"
    ).images
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=0)


def test_sampling_another_pipelines_schedule_still_is_ddim() -> None:
    pipe = pipeline()
    plain = Denoiser(pipe)
    expected = plain.sample(plain.embed(["a tiger"]), seeds=[0], steps=3)
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)  # a stock SD ships PNDM
    other = Denoiser(pipe)
    assert torch.equal(other.sample(other.embed(["a tiger"]), seeds=[0], steps=3), expected)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_sampler_is_the_pipelines_own_with_a_negative_prompt(model: Denoiser, sampler: str) -> None:
    pytest.importorskip("scipy")
    name, settings = SAMPLERS[sampler]
    pipe = copy.copy(model.pipeline)
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **settings)
    prompts, seeds = ["a tiger", "a picture of a cat"], [3, 8]
    ours = model.sample(model.embed(prompts), seeds=seeds, steps=6, guidance=4.0, sampler=sampler, negative="a sad dog")
    plain = pipe(
        prompts, negative_prompt=["a sad dog"] * 2, latents=model.noise(seeds), num_inference_steps=6, guidance_scale=4.0,
        output_type="latent",
    ).images  # fmt: skip
    torch.testing.assert_close(ours, plain, atol=2e-4, rtol=1e-4)
    again = model.sample(
        model.embed(prompts), seeds=seeds, steps=6, guidance=4.0, sampler=sampler, negative="a sad dog"
    )
    assert torch.equal(again, ours)  # a sampler with a memory starts anew


def test_samplers_differ_and_an_unknown_one_is_a_sentence(base: Denoiser) -> None:
    pytest.importorskip("scipy")
    cond = base.embed(["a tiger"])
    drawn = [base.sample(cond, seeds=[1], steps=4, sampler=s) for s in SAMPLERS]
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate(drawn) for b in drawn[:i])
    with pytest.raises(UsageError, match="sampler: unknown 'ddmi'; did you mean 'ddim'"):
        base.sample(cond, seeds=[1], steps=4, sampler="ddmi")
    with pytest.raises(UsageError, match="rng: this machine cannot draw noise on 'cuda'"):
        base.sample(cond, seeds=[1], steps=4, rng="cuda") if not torch.cuda.is_available() else base.noise(
            [1], "cuda:99"
        )


def test_each_picture_has_its_own_guidance(base: Denoiser) -> None:
    scales = [1.0, 7.5, 3.0] * 7  # more than one chunk
    prompts = ["a tiger", "cat", "a red house"] * 7
    together = base.sample(base.embed(prompts), seeds=range(21), steps=3, guidance=scales)
    for i in (0, 1, 2, 19):
        alone = base.sample(base.embed(prompts[i : i + 1]), seeds=[i], steps=3, guidance=scales[i])
        torch.testing.assert_close(together[i], alone[0], atol=1e-4, rtol=0)
    assert torch.equal(
        base.sample(base.embed(prompts), seeds=range(21), steps=3, guidance=[3.0] * 21),
        base.sample(base.embed(prompts), seeds=range(21), steps=3, guidance=3.0),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_sampling_exact_predictions_is_ddim_in_numpy(kind: str, guidance: float) -> None:
    model = MixtureDenoiser(pipeline(kind))
    cond, null = model.embed(["a tiger"]), model.embed([""])
    mean, mean_null = (model.means(c)[0].double().numpy() for c in (cond, null))

    def eps(x: np.ndarray, t: int) -> np.ndarray:
        bar = oracle.alphas_cumprod()[t]
        said, nothing = (
            (1 - bar) ** 0.5 * (x - bar**0.5 * m) / (bar * model.spread**2 + 1 - bar) for m in (mean, mean_null)
        )
        return nothing + guidance * (said - nothing)

    expected = oracle.ddim(model.noise([5])[0].double().numpy(), eps, steps=10)
    path = model.sample(cond, seeds=[5], steps=10, guidance=guidance, record=True)
    np.testing.assert_allclose(path[:, 0].numpy(), np.stack(expected), atol=2e-4)  # float32 against float64
    assert model.timesteps(10).tolist() == oracle.ddim_levels(10)


def test_many_steps_of_exact_predictions_end_in_the_prompts_gaussian() -> None:
    model = MixtureDenoiser(pipeline())
    cond = model.embed(["a tiger"])
    drawn = model.sample(cond, seeds=range(16), steps=100, guidance=1.0)
    error = drawn - model.means(cond)
    assert abs(float(error.mean())) < 0.02  # 4096 numbers of deviation 0.5
    assert 0.45 < float(error.std()) < 0.55


def test_noise_depends_on_its_seed_alone(base: Denoiser) -> None:
    assert torch.equal(base.noise([4, 9])[1], base.noise([9, 1, 2])[0])
    drawn = base.noise([*range(40), 2**31 - 1])
    assert len({tuple(one.flatten()[:4].tolist()) for one in drawn}) == 41
    assert torch.equal(drawn[-1], torch.randn(base.latent_shape, generator=torch.Generator().manual_seed(2**31 - 1)))


def test_a_picture_depends_neither_on_batch_size_nor_order_nor_neighbours(model: Denoiser) -> None:
    prompts = ["a tiger", "cat", "", "a red house"] * 5  # more than one chunk
    assert len(prompts) > model.batch_size
    cond = model.embed(prompts)
    together = model.sample(cond, seeds=range(20), steps=4)
    backwards = model.sample(cond[torch.arange(19, -1, -1)], seeds=range(19, -1, -1), steps=4).flip(0)
    alone = torch.cat([model.sample(cond[i : i + 1], seeds=[i], steps=4) for i in range(20)])
    # BLAS and oneDNN choose their kernels by shape, and another kernel adds in another order: equal to rounding, not to the bit
    torch.testing.assert_close(together, backwards, atol=1e-4, rtol=0)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
    neighbours = model.sample(model.embed(["a tiger", "dog", "moon"]), seeds=[0, 77, 78], steps=4)
    torch.testing.assert_close(together[0], neighbours[0], atol=1e-4, rtol=0)
    assert (together[0] - together[4]).abs().max() > 0.1  # the same prompt with another seed is another picture


def test_the_same_call_gives_the_same_bits(base: Denoiser) -> None:
    cond = base.embed(["a tiger", "cat"])
    assert torch.equal(base.sample(cond, seeds=[1, 2], steps=3), base.sample(cond, seeds=[1, 2], steps=3))


def test_sampling_reads_and_leaves_no_global_seed(base: Denoiser) -> None:
    cond, state = base.embed(["a tiger"]), torch.get_rng_state()
    one = base.sample(cond, seeds=[1], steps=2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(base.sample(cond, seeds=[1], steps=2), one)


@pytest.mark.parametrize("until", [0, 2, 4])
def test_stopping_early_is_the_start_of_the_full_trajectory(base: Denoiser, until: int) -> None:
    cond, seeds = base.embed(["a tiger"]), range(18)
    full = base.sample(cond, seeds=seeds, steps=5, record=True)
    part = base.sample(cond, seeds=seeds, steps=5, until=until, record=True)
    assert full.shape == (6, 18, *base.latent_shape)
    assert torch.equal(part, full[: until + 1])
    assert torch.equal(base.sample(cond, seeds=seeds, steps=5, until=until), part[-1])
    assert torch.equal(full[0], base.noise(seeds))


def test_one_more_step_from_where_sampling_stopped_is_the_next_latent(base: Denoiser) -> None:
    cond, k = base.embed(["a tiger"]), 2
    path = base.sample(cond, seeds=[0], steps=5, guidance=3.0, record=True)
    t = base.timesteps(5)[k].expand(1)
    with torch.no_grad():
        null = base.predict(path[k], t, base.embed([""]))
        eps = null + 3.0 * (base.predict(path[k], t, cond) - null)
    x0 = base.to_x0(path[k], t, eps)
    torch.testing.assert_close(
        base.add_noise(x0, base.timesteps(5)[k + 1].expand(1), eps), path[k + 1], atol=1e-4, rtol=0
    )


def test_ticks_count_pictures_and_steps(base: Denoiser) -> None:
    seen: list[int] = []
    base.sample(base.embed(["cat"]), seeds=range(18), steps=3, tick=seen.append)
    assert seen == [16] * 3 + [2] * 3


def test_encode_and_decode_are_the_autoencoders(base: Denoiser) -> None:
    vae: AutoencoderKL = base.pipeline.vae
    images = torch.rand(18, 3, 16, 16)
    latents = base.encode(images)
    with torch.no_grad():
        expected = torch.cat([vae.encode(2 * im[None] - 1).latent_dist.mode() * 0.18215 for im in images])
        torch.testing.assert_close(latents, expected, atol=1e-5, rtol=0)
        out = vae.decode(latents / 0.18215).sample
    torch.testing.assert_close(base.decode(latents), ((out + 1) / 2).clamp(0, 1), atol=1e-5, rtol=0)


def test_images_are_the_plain_pipelines_pictures(base: Denoiser) -> None:
    ours = base.images(["a tiger", "cat"], [1, 2], steps=3, guidance=4.0)
    plain = base.pipeline(
        ["a tiger", "cat"], latents=base.noise([1, 2]), num_inference_steps=3, guidance_scale=4.0, output_type="np"
    ).images
    assert ours[0].shape == (16, 16, 3)
    assert np.abs(np.stack(ours).astype(float) - plain * 255).max() <= 0.51  # rounding to a byte


def test_an_infinite_picture_is_an_error_and_not_white(base: Denoiser) -> None:
    pipe = copy.copy(base.pipeline)
    pipe.vae = copy.deepcopy(pipe.vae)
    pipe.vae.decoder.conv_out.bias.data[:] = torch.inf
    with pytest.raises(EffaceError, match="images: 2 of 2 pictures came out as NaN or infinite"):
        Denoiser(pipe).images(["a tiger", "cat"], [0, 1], steps=2)


# -- weights -------------------------------------------------------------------------------------------------------


def test_selections_hold_what_their_names_say(base: Denoiser) -> None:
    count = {where: len(base.params(where)) for where in SELECTIONS}
    blocks = 1 + 1 + 1 + 2 + 2  # down, down, middle, up, up
    everything = len(dict(base.pipeline.unet.named_parameters()))
    assert count["xattn.kv"] == 2 * blocks
    assert count["xattn"] == count["selfattn"] == 5 * blocks  # q, k, v, out and its bias
    assert count["xattn.layers"] == count["xattn"]
    assert count["attn"] == 10 * blocks
    assert count["denoiser"] == everything == count["noxattn"] + count["xattn"]
    assert count["noxattn"] - count["noxattn.2023"] == 2 + 2 + 4  # conv_out, its norm, time embedding
    assert count["text"] == len(dict(base.pipeline.text_encoder.named_parameters()))
    assert count["text.embeddings"] == 1
    assert not any("norm" in k for k in base.params("denoiser.layers"))
    assert (
        base.params("denoiser.layers").keys()
        == base.params("noxattn.layers").keys() | base.params("xattn.layers").keys()
    )


@pytest.mark.slow
def test_stable_diffusion_has_as_many_weights_to_edit_as_the_papers_say() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            cross_attention_dim=768, sample_size=64
        )  # SD 1.x's shape is diffusers' default but for these
    named = {f"unet.{k}": p for k, p in unet.named_parameters()}

    def pick(where: str) -> list[int]:
        return [p.numel() for k, p in named.items() if SELECTIONS[where](k, unet)]

    assert (len(pick("xattn.kv")), sum(pick("xattn.kv"))) == (32, 19_169_280)  # 2.2 % of 860 M
    assert len(pick("xattn")) == 80
    assert 43e6 < sum(pick("xattn")) < 45e6
    assert sum(p.numel() for p in named.values()) == 859_520_964


def test_exact_names_are_taken_as_they_are_and_unknown_ones_refused(base: Denoiser) -> None:
    name = next(iter(base.params("xattn.kv")))
    assert list(base.params([name])) == [name]
    assert base.params([name])[name] is dict(base.pipeline.unet.named_parameters())[name.removeprefix("unet.")]
    with pytest.raises(
        UsageError, match=r"^weights: this model has no 'unet.x' \(1 such\); the edit was made for another model$"
    ):
        base.params(["unet.x", name])
    with pytest.raises(UsageError, match=r"^selection: unknown 'xatn'; did you mean 'xattn'"):
        base.fork("xatn")


@pytest.mark.parametrize("where", ["xattn.kv", "noxattn", "denoiser", "text", "text.embeddings"])
def test_a_fork_owns_its_weights_and_shares_every_other_tensor(base: Denoiser, where: str) -> None:
    twin = base.fork(where)
    owned = base.params(where).keys()
    for ours in ("unet", "text"):
        mine = {
            f"{ours}.{k}": v
            for k, v in [*twin.modules()[ours].named_parameters(), *twin.modules()[ours].named_buffers()]
        }
        theirs = {
            f"{ours}.{k}": v
            for k, v in [*base.modules()[ours].named_parameters(), *base.modules()[ours].named_buffers()]
        }
        assert mine.keys() == theirs.keys()
        assert {k for k in mine if mine[k].data_ptr() != theirs[k].data_ptr()} == {
            k for k in owned if k.startswith(f"{ours}.")
        }
    assert twin.pipeline.vae is base.pipeline.vae
    assert not differing(snapshot(base), snapshot(twin))
    assert torch.equal(probe(twin, "a tiger"), probe(base, "a tiger"))


def test_writing_into_a_fork_leaves_the_base_alone(base: Denoiser) -> None:
    before, fingerprint, picture = snapshot(base), base.fingerprint, probe(base, "a tiger")
    twin = base.fork("xattn")
    for w in twin.params("xattn").values():
        w.data.add_(1)
    assert not differing(before, snapshot(base))
    assert differing(before, snapshot(twin)) == base.params("xattn").keys()
    assert torch.equal(probe(base, "a tiger"), picture)
    assert not torch.equal(probe(twin, "a tiger"), picture)
    assert twin.fingerprint != fingerprint == base.fingerprint
    assert type(twin.pipeline) is type(base.pipeline)
    assert twin.pipeline.unet is twin.modules()["unet"]


def test_a_fork_of_a_fork_stands_on_its_own(base: Denoiser) -> None:
    first = base.fork("xattn")
    second = first.fork("xattn.kv")
    for w in second.params("xattn.kv").values():
        w.data.zero_()
    assert not differing(snapshot(base), snapshot(first))


def test_the_fingerprint_names_the_weights() -> None:
    assert tiny().fingerprint == tiny().fingerprint
    assert tiny(seed=1).fingerprint != tiny().fingerprint
    model = tiny()
    next(iter(model.params("text.embeddings").values())).data[0, 0] += 1
    assert model.fingerprint != tiny().fingerprint


def test_weights_are_frozen_and_in_evaluation_mode(base: Denoiser) -> None:
    parts = (base.pipeline.unet, base.pipeline.text_encoder, base.pipeline.vae)
    assert not any(p.requires_grad for part in parts for p in part.parameters())
    assert not any(part.training for part in parts)


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("untyped")
def test_another_pipeline_is_refused_by_name() -> None:
    other = DDPMPipeline(
        UNet2DModel(
            sample_size=8,
            block_out_channels=(8,),
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
            norm_num_groups=4,
        ),
        DDPMScheduler(),
    )
    with pytest.raises(UsageError) as caught:
        load(other)
    assert (
        str(caught.value)
        == "model: expected a text-to-image pipeline (StableDiffusionPipeline, StableDiffusionXLPipeline, StableDiffusion3Pipeline, "
        "FluxPipeline), got DDPMPipeline; give another model"
    )


def test_another_prediction_type_is_refused() -> None:
    with pytest.raises(
        UsageError, match="model: expected prediction_type epsilon or v_prediction, got 'sample'; give another model"
    ):
        Denoiser(pipeline("sample"))


def test_a_folder_loads_and_predicts_the_same(base: Denoiser, tmp_path) -> None:  # noqa: ANN001
    base.pipeline.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.fingerprint == base.fingerprint
    assert not differing(snapshot(base), snapshot(again))
    # weights of a mapped file lie unaligned in memory, where BLAS may add in another order: predictions are equal to rounding
    torch.testing.assert_close(probe(again, "a tiger"), probe(base, "a tiger"), atol=1e-5, rtol=0)
    (tmp_path / "unet" / "config.json").write_text("{")
    with pytest.raises(EffaceError) as caught:
        load(tmp_path)
    assert "diffusers cannot load it" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_load_passes_a_denoiser_and_wraps_a_pipeline(base: Denoiser) -> None:
    assert load(base) is base
    assert load(base.pipeline).pipeline is base.pipeline


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("/no/such/folder", "model: the folder '/no/such/folder' does not exist"),
        ("x.safetensors", "model: 'x.safetensors' is neither a folder nor a Hub id"),
    ],
)
def test_a_wrong_path_is_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(name)
    assert str(caught.value).startswith(sentence)


def test_cond_is_a_value_that_cannot_be_changed(base: Denoiser) -> None:
    cond: Cond = base.embed(["cat"])
    with pytest.raises(AttributeError):
        cond.tokens = cond.tokens + 1  # type: ignore[misc]


def test_a_name_that_the_hub_does_not_give_may_be_a_mistyped_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> None:
        raise OSError("no such repository\nCheck your connection")

    monkeypatch.setattr("efface.core.denoiser.DiffusionPipeline.from_pretrained", absent)
    with pytest.raises(EffaceError) as caught:
        load("my/model")
    assert str(caught.value).startswith(
        "model 'my/model': no such folder, and diffusers cannot get it from the Hub (no"
    )
    assert "\n" not in str(caught.value)
