"""Stable Diffusion XL, 3 and Flux, on tiny random pipelines: pictures are the stock pipeline's own; what a family says is true."""

import families
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from efface.core.appended_rows import AppendedRows
from efface.core.cond import Cond
from efface.core.denoiser import Denoiser, load
from efface.core.edit import TextMap, load_edit
from efface.core.errors import UsageError
from efface.core.export import export
from efface.core.meter import Meter
from efface.core.rows import pair_rows
from efface.erasers import make
from efface.models import absent

PROMPTS = ["a tiger", "a red car"]
every = pytest.mark.parametrize("name", list(families.MAKERS))


@pytest.fixture(scope="module")
def models() -> dict[str, Denoiser]:
    return {name: Denoiser(maker()) for name, maker in families.MAKERS.items()}


def prediction(model: Denoiser, prompt: str) -> torch.Tensor:
    x = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return model.predict(x, torch.tensor([900, 300]), model.embed([prompt]))


# -- pictures ------------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("size", [16, 24])
def test_pictures_are_the_stock_pipelines_own(models: dict[str, Denoiser], name: str, size: int) -> None:
    model = models[name]
    mine = model.images(PROMPTS, [3, 4], steps=3, guidance=2.5, sampler="euler", size=size)
    theirs = families.stock(model.pipeline, PROMPTS, model.noise([3, 4], size=size), 3, 2.5)
    for a, b in zip(mine, theirs, strict=True):
        assert a.shape == (size, size, 3)
        np.testing.assert_allclose(a.astype(int), b.astype(int), atol=1)
    assert np.abs(mine[0].astype(int) - mine[1]).mean() > 10  # the prompt is read


def test_latents_with_statistics_of_each_channel_are_scaled_as_the_stock_pipeline_does() -> None:
    pipe = families.sdxl()
    pipe.vae.register_to_config(latents_mean=[-0.5, 0.2, 0.1, 0.3], latents_std=[0.5, 2.0, 1.5, 0.8])
    model = Denoiser(pipe)
    mine = model.images(PROMPTS, [3, 4], steps=2, guidance=2.5, sampler="euler")
    for a, b in zip(mine, families.stock(pipe, PROMPTS, model.noise([3, 4]), 2, 2.5), strict=True):
        np.testing.assert_allclose(a.astype(int), b.astype(int), atol=1)
    images = torch.rand(2, 3, 16, 16)
    raw = pipe.vae.encode(2 * images - 1).latent_dist.mean
    shift, scale = (torch.tensor(v).view(1, 4, 1, 1) for v in ([-0.5, 0.2, 0.1, 0.3], [0.5, 2.0, 1.5, 0.8]))
    torch.testing.assert_close(model.encode(images), (raw - shift) / scale * pipe.vae.config.scaling_factor)


@pytest.mark.parametrize("name", ["sd3", "flux-dev"])
def test_on_a_rectified_flow_ddim_is_euler(models: dict[str, Denoiser], name: str) -> None:
    model = models[name]
    cond, levels = model.embed(["a tiger"]), model.timesteps(4)
    x = model.noise([7])
    ours = model.sample(cond, seeds=[7], steps=4, guidance=1.0)
    for t, after in zip(levels, [*levels[1:], torch.tensor(0.0)], strict=True):
        with torch.no_grad():
            pred = model.predict(x, t[None], cond, 1.0)
        x0, eps = (convert(x, t[None], pred) for convert in (model.to_x0, model.to_eps))
        x = model.add_noise(x0, after[None], eps)  # the deterministic step of DDIM
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=0)


def test_a_shift_moves_the_levels_towards_noise() -> None:
    def shifted(sigma: torch.Tensor) -> torch.Tensor:
        return 3 * sigma / (1 + 2 * sigma)

    plain, found = (Denoiser(families.sd3(t5=False, shift=s)).timesteps(5) / 1000 for s in (1.0, 3.0))
    torch.testing.assert_close(plain, torch.linspace(1, 0.001, 5))
    least = float(shifted(torch.tensor(0.001)))  # diffusers shifts the smallest level twice
    torch.testing.assert_close(found, shifted(torch.linspace(1, least, 5)))


def test_distilled_guidance_is_an_input_and_costs_one_pass(models: dict[str, Denoiser]) -> None:
    model = models["flux-dev"]
    cond = model.embed(["a tiger"])
    with Meter([model], 100) as meter:
        one = model.sample(cond, seeds=[1, 2], steps=3, guidance=[1.5, 4.0])
    assert meter.calls == 6
    assert torch.allclose(one[1:], model.sample(cond, seeds=[2], steps=3, guidance=4.0), atol=1e-5)
    assert not torch.allclose(one[1:], model.sample(cond, seeds=[2], steps=3, guidance=1.5), atol=1e-2)
    with pytest.raises(UsageError, match="negative: Flux with distilled guidance has no negative prompt"):
        model.sample(cond, seeds=[1], steps=2, negative="red")
    with Meter([models["flux-schnell"]], 100) as meter:  # guidance by two passes
        models["flux-schnell"].sample(models["flux-schnell"].embed(["a tiger"]), seeds=[1], steps=3, guidance=2.0)
    assert meter.calls == 6


# -- text ----------------------------------------------------------------------------------------------------------


@every
def test_a_prompts_rows_are_told_apart(models: dict[str, Denoiser], name: str) -> None:
    model = models[name]
    cond = model.embed(["a red tiger", "", "xy"])
    for segment in cond.segments:
        assert segment.counts[:2].tolist() == [3, 0]
        assert (segment.end == segment.first + segment.counts).all()
        assert segment.mask.sum(1).tolist() == (segment.end + 1).tolist()
    assert cond.first == (0 if name.startswith("flux") else 1)
    assert len(cond.vector) == 3
    assert (cond.more is not None) == (name == "sd3")
    again = Cond.from_named(cond[[0]].named())
    assert all(torch.equal(a, b) for a, b in zip(again.named().values(), cond[[0]].named().values(), strict=True))
    both = cond[[0]] + cond[[2]]
    assert torch.equal(both.vector, cond.vector[[0, 2]])


@every
def test_words_put_together_read_as_the_same_text(models: dict[str, Denoiser], name: str) -> None:
    """Tokens without those of the other tokenizer, as a search makes them; and with word vectors of their own."""
    model = models[name]
    whole = model.tokenize(["a red tiger"])
    bare = type(whole)(whole.ids, whole.mask, whole.words)
    vectors = model.word_vectors[bare.ids]
    expected = model.embed(["a red tiger"])
    for found in (model.encode_tokens(bare), model.encode_tokens(bare, vectors)):
        for a, b in zip(found.named().values(), expected.named().values(), strict=True):
            torch.testing.assert_close(a, b)
    assert model.spell(expected.ids[0, expected.words[0]].tolist()) == "a red tiger"
    leaf = vectors.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(model.encode_tokens(bare, leaf).tokens[0].square().sum(), leaf)
    widths = [families.JOINT] if name.startswith("flux") else list(families.WIDTHS)
    assert all(part.any() for part in slope.split(widths, 2))  # of each encoder


@every
def test_a_prompt_without_words_is_the_unconditional_one(models: dict[str, Denoiser], name: str) -> None:
    cond = models[name].embed(["", "tiger"])
    assert bool(cond.tokens[0].any()) is (name != "sdxl")  # zeros, as the pipeline's configuration says
    assert bool(cond.vector[0].any()) is (name != "sdxl")
    assert cond.tokens[1].any()


@every
def test_text_readers_are_the_layers_that_get_the_rows_and_the_pooled_vector(
    models: dict[str, Denoiser], name: str
) -> None:
    model = models[name]
    cond, got = model.embed(["tiger"]), {}
    predicts = model.modules()[model.family.denoiser]
    handles = [
        m.register_forward_pre_hook(lambda m, given, at=at: got.update({at: given[0]}))
        for at, m in predicts.named_modules() if isinstance(m, torch.nn.Linear)
    ]  # fmt: skip
    with torch.no_grad():
        model.predict(torch.zeros(1, *model.latent_shape), torch.tensor([500]), cond)
    for handle in handles:
        handle.remove()
    n, rows, pooled = cond.tokens.shape[1], cond.tokens[0], cond.vector[0]
    reads = {at for at, x in got.items() if x.ndim == 3 and x.shape[2] == len(rows[0]) and torch.equal(x[0, :n], rows)}
    vector = {at for at, x in got.items() if x.ndim == 2 and torch.equal(x[0, : len(pooled)], pooled)}
    prefix = f"{model.family.denoiser}."
    assert {f"{prefix}{at}.weight" for at in reads} == model.reader_weights().keys()
    assert {f"{prefix}{at}.weight" for at in vector} == model.pooled_weights().keys() != set()


@every
def test_a_text_map_is_the_map_on_the_rows_and_the_pooled_vector(models: dict[str, Denoiser], name: str) -> None:
    """T on the weights, against T on what they read: exact, also for a strength and where T5's rows follow CLIP's."""
    model, rng = models[name], torch.Generator().manual_seed(1)
    cond = model.embed(["a tiger"])
    d, p = cond.tokens.shape[2], cond.vector.shape[1]
    left, right, a, b = (0.3 * torch.randn(k, 3, generator=rng) for k in (d, d, p, p))
    edit = TextMap(left, right, pooled=(a, b)) * 0.5
    t, u = torch.eye(d) + 0.5 * left @ right.T, torch.eye(p) + 0.5 * a @ b.T
    mapped = Cond(cond.tokens @ t.T, cond.ids, cond.mask, cond.words, cond.vector @ u.T, cond.more)
    if cond.more is not None:
        more = cond.more
        mapped = Cond(
            mapped.tokens,
            cond.ids,
            cond.mask,
            cond.words,
            mapped.pooled,
            Cond(more.tokens @ t.T, more.ids, more.mask, more.words),
        )
    x, level = torch.randn(1, *model.latent_shape, generator=rng), torch.tensor([600])
    with torch.no_grad():
        found, expected, before = (
            edit(model).predict(x, level, cond),
            model.predict(x, level, mapped),
            model.predict(x, level, cond),
        )
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)
    assert float((before - expected).abs().max()) > 1e-2


def test_pairs_of_a_second_tokenizer_have_no_start_and_their_own_prefix(models: dict[str, Denoiser]) -> None:
    model = models["sd3"]
    source, target = model.embed(["a picture of a tiger"]), model.embed(["a picture of a cat"])
    rows, aims, weights = pair_rows(source, target, "content", (4, 4))
    n, m = source.ids.shape[1] - 1, source.segments[1].ids.shape[1]  # CLIP without its start token, then all of T5
    assert len(rows) == len(aims) == len(weights) == n + m
    assert torch.equal(rows[:4], aims[:4])
    assert not torch.equal(rows[4], aims[4])
    assert torch.equal(rows[n : n + 4], aims[n : n + 4])
    assert torch.equal(aims[n + 4], target.segments[1].tokens[0, 4])
    empty = pair_rows(source, model.embed([""]), "content", (4, 4))
    assert torch.equal(
        empty[1][n + 4], model.embed([""]).segments[1].tokens[0, 0]
    )  # to the end token, which is T5's first


@pytest.mark.parametrize("name", ["sd3", "sd3-no-t5", "flux-dev"])
def test_appended_rows_are_read_by_those_prompts_only(models: dict[str, Denoiser], name: str) -> None:
    model, rng = models[name], torch.Generator().manual_seed(2)
    rows = torch.randn(2, 3, model.embed([""]).tokens.shape[2], generator=rng)
    x, t, cond = torch.randn(2, *model.latent_shape, generator=rng), torch.tensor([700, 200]), model.embed(PROMPTS)
    keyed = model.fork(())
    keyed.keys = (AppendedRows(rows, torch.tensor([True, False])),)
    with torch.no_grad():
        found, plain = keyed.predict(x, t, cond), model.predict(x, t, cond)
    torch.testing.assert_close(found[1], plain[1])
    assert float((found[0] - plain[0]).abs().max()) > 1e-3


# -- weights and files ---------------------------------------------------------------------------------------------


@every
def test_selections_are_disjoint_and_whole(models: dict[str, Denoiser], name: str) -> None:
    model = models[name]
    count = {where: len(model.params(where)) for where in model.family.selections}
    assert count["denoiser"] == len(list(model.modules()[model.family.denoiser].named_parameters()))
    assert count["denoiser"] == count["noxattn"] + count["xattn"]
    assert count["attn"] == count["xattn"] + count["selfattn"]
    assert count["denoiser.layers"] == count["noxattn.layers"] + count["xattn.layers"]
    assert 0 < count["xattn.kv"] < count["xattn"]
    assert 0 < count["noxattn.2023"] < count["noxattn"]
    assert count["text.embeddings"] == (1 if name.startswith("flux") else 2)
    assert count["text"] > count["text.layers"] > 0


@every
def test_a_fork_owns_what_it_says_and_a_folder_is_the_same_model(
    models: dict[str, Denoiser], name: str, tmp_path
) -> None:
    model = models[name]
    twin = model.fork("xattn.kv")
    own = {k for k, w in twin.params("denoiser").items() if w.data_ptr() != model.params([k])[k].data_ptr()}
    assert own == model.params("xattn.kv").keys()
    model.pipeline.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.fingerprint == model.fingerprint
    assert again.signature.fits(model.signature)
    other = Denoiser(DiffusionPipeline.from_pretrained(tmp_path, **absent(str(tmp_path))))
    with torch.no_grad():
        next(iter(other.pooled_weights().values())).mul_(1.001)
    assert other.fingerprint != model.fingerprint


@every
def test_a_closed_form_survives_its_file_baking_and_diffusers(models: dict[str, Denoiser], name: str, tmp_path) -> None:
    model = models[name]
    edit = make("uce").fit(model, "tiger", ["lion"], model="tiny")
    assert isinstance(edit, TextMap)
    assert edit.pooled is not None
    edit.save(tmp_path / "edit.safetensors")
    loaded = load_edit(tmp_path / "edit.safetensors")
    edited = prediction(edit(model), "tiger")
    assert torch.equal(prediction(loaded(model), "tiger"), edited)
    model.pipeline.save_pretrained(tmp_path / "pipeline")
    baked = DiffusionPipeline.from_pretrained(tmp_path / "pipeline", **absent(str(tmp_path / "pipeline")))
    edit.bake(baked)
    baked.default_sample_size = 8  # Flux's latents have no size in a file
    torch.testing.assert_close(prediction(Denoiser(baked), "tiger"), edited)
    done = export(edit, model, tmp_path / "lora.safetensors")
    assert done.error == 0
    stock = DiffusionPipeline.from_pretrained(tmp_path / "pipeline", **absent(str(tmp_path / "pipeline")))
    stock.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    stock.fuse_lora()
    stock.unload_lora_weights()
    stock.default_sample_size = 8
    torch.testing.assert_close(prediction(Denoiser(stock), "tiger"), edited, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(prediction(model, "tiger"), edited, atol=1e-2)


def test_kohyas_names_are_written_where_they_are_known(models: dict[str, Denoiser], tmp_path) -> None:
    edit = make("uce").fit(models["sd3"], "tiger", model="tiny")
    with pytest.raises(
        UsageError, match="to: expected diffusers or peft for Stable Diffusion 3, got 'kohya'; ComfyUI reads"
    ):
        export(edit, models["sd3"], tmp_path / "lora.safetensors", to="kohya")
    model = models["sdxl"]
    edit = make("uce").fit(model, "tiger", model="tiny")
    export(edit, model, tmp_path / "xl.safetensors", to="kohya")
    model.pipeline.save_pretrained(tmp_path / "pipeline")
    stock = DiffusionPipeline.from_pretrained(tmp_path / "pipeline", **absent(str(tmp_path / "pipeline")))
    stock.load_lora_weights(tmp_path, weight_name="xl.safetensors")
    stock.fuse_lora()
    stock.unload_lora_weights()
    torch.testing.assert_close(
        prediction(Denoiser(stock), "tiger"), prediction(edit(model), "tiger"), atol=1e-4, rtol=1e-3
    )
