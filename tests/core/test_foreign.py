"""LoRA files of other tools: what is read equals what diffusers loads; what is not read is one sentence."""

import math
from pathlib import Path

import families
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from efface.cli import app
from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.edit import LowRank, load_edit
from efface.core.errors import EffaceError, UsageError
from efface.core.export import export
from efface.core.families.sdxl import original
from efface.core.foreign import changes, module_names, read_lora
from efface.models import absent


def prediction(model: Denoiser, prompt: str = "tiger") -> torch.Tensor:
    x = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return model.predict(x, torch.tensor([900, 300]), model.embed([prompt]))


def low_rank(base: Denoiser, where: str, rank: int = 3) -> LowRank:
    rng = torch.Generator().manual_seed(2)
    factors = {}
    for name, w in base.params(where).items():
        if w.ndim >= 2:
            n, m = len(w), w[0].numel()
            factors[name] = (torch.randn(n, rank, generator=rng) / n**0.5, torch.randn(rank, m, generator=rng) / m**0.5)
    return LowRank(factors)


def fused(model: Denoiser, folder: Path, file: Path) -> Denoiser:
    """The stock pipeline with the file's LoRA in its weights."""
    model.pipeline.save_pretrained(folder)
    stock = DiffusionPipeline.from_pretrained(folder, **absent(str(folder)))
    stock.load_lora_weights(file.parent, weight_name=file.name)
    stock.fuse_lora()
    stock.unload_lora_weights()
    stock.default_sample_size = 8
    return Denoiser(stock)


@pytest.mark.parametrize("to", ["diffusers", "kohya", "peft"])
def test_our_own_exports_come_back(base: Denoiser, tmp_path: Path, to: str) -> None:
    edit = low_rank(base, "denoiser.layers")
    name = tmp_path / ("lora" if to == "peft" else "lora.safetensors")
    export(edit, base, name, to=to)
    file = name / "adapter_model.safetensors" if to == "peft" else name
    found = read_lora(file, base, [Concept("tiger")])
    assert not found.unmatched
    assert found.edit.factors.keys() == edit.factors.keys()
    torch.testing.assert_close(prediction(found.edit(base)), prediction(edit(base)), atol=1e-4, rtol=1e-3)
    assert found.edit.header.erase == (Concept("tiger"),)
    assert found.edit.header.base == base.fingerprint


@pytest.mark.parametrize("family", ["sdxl", "sd3-no-t5", "flux-schnell"])
def test_files_for_diffusers_are_read_as_diffusers_reads_them(family: str, tmp_path: Path) -> None:
    model = Denoiser(families.MAKERS[family]())
    export(low_rank(model, "denoiser.layers"), model, tmp_path / "lora.safetensors")
    found = read_lora(tmp_path / "lora.safetensors", model)
    assert not found.unmatched
    stock = fused(model, tmp_path / "model", tmp_path / "lora.safetensors")
    torch.testing.assert_close(prediction(found.edit(model)), prediction(stock), atol=1e-3, rtol=1e-3)
    assert not torch.allclose(prediction(found.edit(model)), prediction(model), atol=1e-2)


def test_kohyas_alpha_and_both_text_encoders_of_xl(tmp_path: Path) -> None:
    """alpha / rank scales each pair: as diffusers does, for the text encoders and names of the original code as well."""
    model = Denoiser(families.sdxl())
    known, tensors, rng = module_names(model), {}, torch.Generator().manual_seed(3)
    chosen = (
        "lora_te1_text_model_encoder_layers_0_self_attn_out_proj",
        "lora_te2_text_model_encoder_layers_1_self_attn_out_proj",
    )
    for key in chosen:
        (w,) = model.params([known[key]]).values()
        tensors[f"{key}.lora_down.weight"] = torch.randn(4, w.shape[1], generator=rng) / w.shape[1] ** 0.5
        tensors[f"{key}.lora_up.weight"] = torch.randn(w.shape[0], 4, generator=rng) / w.shape[0] ** 0.5
        tensors[f"{key}.alpha"] = torch.tensor(2.0)
    for key, ours in known.items():
        if key.startswith("lora_unet_down_blocks_1_attentions_0") and key.endswith(("attn2_to_k", "attn2_to_v")):
            (w,) = model.params([ours]).values()
            tensors[f"{key}.lora_down.weight"] = torch.randn(4, w.shape[1], generator=rng) / w.shape[1] ** 0.5
            tensors[f"{key}.lora_up.weight"] = torch.randn(w.shape[0], 4, generator=rng) / w.shape[0] ** 0.5
            tensors[f"{key}.alpha"] = torch.tensor(1.0)
    save_file({k: t.contiguous() for k, t in tensors.items()}, tmp_path / "lora.safetensors")
    found = read_lora(tmp_path / "lora.safetensors", model)
    assert not found.unmatched
    assert {name.partition(".")[0] for name in found.edit.factors} == {"unet", "text", "text2"}
    stock = fused(model, tmp_path / "model", tmp_path / "lora.safetensors")
    torch.testing.assert_close(prediction(found.edit(model)), prediction(stock), atol=1e-3, rtol=1e-3)
    for name, (up, down) in found.edit.factors.items():
        key = next(k for k, ours in found.matched.items() if ours == name)
        scale = 0.25 if key.startswith("lora_unet") else 0.5
        torch.testing.assert_close(
            up @ down, scale * tensors[f"{key}.lora_up.weight"] @ tensors[f"{key}.lora_down.weight"]
        )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [  # as in Stable Diffusion XL's own checkpoint
        ("down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k", "input_blocks.4.1.transformer_blocks.1.attn2.to_k"),
        ("down_blocks.2.attentions.1.proj_in", "input_blocks.8.1.proj_in"),
        ("down_blocks.0.resnets.1.conv1", "input_blocks.2.0.in_layers.2"),
        ("down_blocks.1.downsamplers.0.conv", "input_blocks.6.0.op"),
        ("mid_block.attentions.0.transformer_blocks.9.ff.net.2", "middle_block.1.transformer_blocks.9.ff.net.2"),
        ("mid_block.resnets.1.conv2", "middle_block.2.out_layers.3"),
        ("up_blocks.0.attentions.2.transformer_blocks.0.attn1.to_q", "output_blocks.2.1.transformer_blocks.0.attn1.to_q"),
        ("up_blocks.1.resnets.0.conv_shortcut", "output_blocks.3.0.skip_connection"),
        ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv"),
        ("time_embedding.linear_1", "time_embed.0"),
        ("conv_in", "input_blocks.0.0"),
    ],
)  # fmt: skip
def test_xls_modules_have_the_names_of_the_original_code(ours: str, theirs: str) -> None:
    assert original(ours) == theirs


def test_every_layer_has_a_name_of_each_tool_and_no_two_share_one() -> None:
    for maker in families.MAKERS.values():
        model = Denoiser(maker())
        known = module_names(model)
        layers = {
            f"{part}.{m}.weight" for part, net in model.modules().items() for m, layer in net.named_modules()
            if isinstance(layer, nn.Linear | nn.Conv2d)
        }  # fmt: skip
        assert set(known.values()) == layers
        assert len(known) > 2 * len(layers)


def test_diffusers_old_names_are_read(base: Denoiser, tmp_path: Path) -> None:
    name = next(iter(base.reader_weights())).removesuffix(".attn2.to_k.weight").removeprefix("unet.")
    (w,) = base.params([f"unet.{name}.attn2.to_k.weight"]).values()
    key, down, up = f"unet.{name}.attn2.processor.to_k_lora", torch.randn(2, w.shape[1]), torch.randn(len(w), 2)
    save_file({f"{key}.down.weight": down, f"{key}.up.weight": up}, tmp_path / "old.safetensors")
    ((ours, factors),) = read_lora(tmp_path / "old.safetensors", base).edit.factors.items()
    assert ours == f"unet.{name}.attn2.to_k.weight"
    torch.testing.assert_close(factors[0] @ factors[1], up @ down)


def test_how_much_changes_is_the_norm_of_the_change(base: Denoiser) -> None:
    edit = low_rank(base, "xattn")
    moved = math.hypot(*(float((up @ down).norm()) for up, down in edit.factors.values()))
    whole = math.hypot(*(float(w.norm()) for w in base.params(edit.factors).values()))
    assert changes(edit, base) == pytest.approx({"xattn": moved / whole}, rel=1e-5)


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"lora_unet_x.dora_scale": 1, "lora_unet_x.lora_up.weight": 1}, "got DoRA, which efface does not read"),
        ({"lora_unet_x.lokr_w1": 1}, "got LoKr"),
        ({"lora_unet_x.hada_w1_a": 1}, "got LoHa"),
        ({"weight": 1}, "expected a LoRA, got tensors such as 'weight'"),
        ({"lora_unet_single.lora_up.weight": 1, "lora_unet_single.lora_down.weight": 1}, "none of its 1 modules is one of this model"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_one_sentence(
    base: Denoiser, tmp_path: Path, tensors: dict[str, int], sentence: str
) -> None:
    save_file({k: torch.ones(n, 1) for k, n in tensors.items()}, tmp_path / "odd.safetensors")
    with pytest.raises(UsageError) as caught:
        read_lora(tmp_path / "odd.safetensors", base)
    assert sentence in str(caught.value)


def test_another_shape_and_a_damaged_file_are_one_sentence(base: Denoiser, tmp_path: Path) -> None:
    key = "unet.conv_in"
    save_file(
        {f"{key}.lora_A.weight": torch.ones(1, 5), f"{key}.lora_B.weight": torch.ones(7, 1)},
        tmp_path / "odd.safetensors",
    )
    with pytest.raises(
        UsageError,
        match=r"odd.safetensors: expected factors of unet.conv_in.weight for 16 x 36, got \(7, 1\) and \(1, 5\)",
    ):
        read_lora(tmp_path / "odd.safetensors", base)
    (tmp_path / "broken.safetensors").write_bytes(b"{}")
    with pytest.raises(EffaceError, match="broken.safetensors: damaged"):
        read_lora(tmp_path / "broken.safetensors", base)


def test_check_says_what_a_file_does_and_makes_an_edit_of_it(base: Denoiser, tmp_path: Path) -> None:
    base.pipeline.save_pretrained(tmp_path / "model")
    export(low_rank(base, "xattn"), base, tmp_path / "lora.safetensors", to="kohya")
    tensors = load_file(tmp_path / "lora.safetensors") | {
        "lora_unet_none.lora_up.weight": torch.ones(2, 1),
        "lora_unet_none.lora_down.weight": torch.ones(1, 2),
    }
    save_file(tensors, tmp_path / "theirs.safetensors")
    run = lambda *words: CliRunner().invoke(app, ["check", *map(str, words), "--model", str(tmp_path / "model")])  # noqa: E731
    said = run(tmp_path / "theirs.safetensors", "--concept", "tiger", "-o", tmp_path / "edit.safetensors")
    assert said.exit_code == 0, said.output
    count = len(base.params("xattn.layers")) - sum(k.endswith("bias") for k in base.params("xattn.layers"))
    assert f"a LoRA; {count} of {count + 1} changed weights are in" in said.output
    assert "left out: 1, such as lora_unet_none" in said.output
    assert "xattn: changed by" in said.output
    assert "It changes the predictions for 'a tiger'" in said.output
    edit = load_edit(tmp_path / "edit.safetensors")
    assert [c.name for c in edit.header.erase] == ["tiger"]
    assert not torch.allclose(prediction(edit(base)), prediction(base), atol=1e-2)
    assert "an edit; " in run(tmp_path / "edit.safetensors").output
    nothing = {k: torch.zeros_like(t) if "up" in k else t for k, t in load_file(tmp_path / "lora.safetensors").items()}
    save_file(nothing, tmp_path / "nothing.safetensors")
    assert "Warning: this edit changes pictures of" in run(tmp_path / "nothing.safetensors").output
