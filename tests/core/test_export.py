"""LoRA files: what other tools load is the edit, to rounding; what does not fit is told or refused."""

import errno
import hashlib
import json
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from toys import WIDTH, moved, pipeline, probe, tiny

from efface.core.concept import Concept
from efface.core.denoiser import Denoiser, load
from efface.core.edit import Delta, Edit, Header, LowRank, Stack, TextMap, load_edit
from efface.core.errors import EffaceError, UsageError
from efface.core.export import FORMATS, cut, export
from efface.erasers.uce import UCE

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


def header(base: Denoiser) -> Header:
    return Header(
        "UCE", {"ridge": 0.5}, (Concept("tiger", "cat"), Concept("car")), base=base.fingerprint, model="toy",
        created="2024-01-01T00:00:00+00:00", version="0.1.0",
    )  # fmt: skip


def text_map(base: Denoiser, seed: int = 0, rank: int = 3) -> TextMap:
    rng = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(WIDTH, rank, generator=rng) / 6 for _ in range(2))
    return TextMap(left, right, header(base))


def low_rank(base: Denoiser, where: str = "denoiser.layers", ranks: tuple[int, ...] = (2,), seed: int = 2) -> LowRank:
    """Factors for a selection's matrices and kernels, ranks in turn; of layers that differ in an index only, the first."""
    rng = torch.Generator().manual_seed(seed)
    matrices = {k: w for k, w in base.params(where).items() if w.ndim >= 2 and "embedding.weight" not in k}
    if where == "denoiser.layers":
        first = {re.sub(r"\.\d+", "", k): k for k in reversed(matrices)}
        matrices = {k: w for k, w in matrices.items() if k in first.values()}
    factors = {}
    for i, (name, w) in enumerate(matrices.items()):
        r, rest = ranks[i % len(ranks)], w[0].numel()
        up = torch.randn(len(w), r, generator=rng) * 0.3 / r**0.5
        factors[name] = up, torch.randn(r, rest, generator=rng) * 0.5 / rest**0.5
    return LowRank(factors, header(base))


def delta(base: Denoiser, where: str = "xattn.kv", seed: int = 1) -> Delta:
    rng = torch.Generator().manual_seed(seed)
    return Delta({k: torch.randn(w.shape, generator=rng) * 0.05 for k, w in base.params(where).items()}, header(base))


EDITS: dict[str, Callable[[Denoiser], Edit]] = {
    "TextMap": lambda base: text_map(base) * 0.7,
    "LowRank": lambda base: low_rank(base, ranks=(1, 3, 2)) * 1.5,
    "Stack": lambda base: Stack(
        [
            text_map(base) * 0.3,
            low_rank(base, "xattn") * 0.5,
            Stack([text_map(base, 4), low_rank(base, "selfattn")]) * 2.0,
        ]
    ),
}


@pytest.fixture(params=list(EDITS))
def edit(request: pytest.FixtureRequest, base: Denoiser) -> Edit:
    return EDITS[request.param](base)


def target(folder: Path, to: str) -> Path:
    return folder / ("lora" if to == "peft" else "lora.safetensors")


def stored(path: Path) -> dict[str, Tensor]:
    """What a kohya file adds to each weight of the U-Net, by its name without dots; by the format's own definition."""
    tensors, sums = load_file(path), {}
    for key in (k for k in tensors if k.endswith(".lora_down.weight")):
        name = key.removesuffix(".lora_down.weight")
        down, up = tensors[key].double(), tensors[f"{name}.lora_up.weight"].double()
        scale = float(tensors[f"{name}.alpha"]) / len(down)
        sums[name] = scale * np.einsum("or,ri->oi", up.flatten(1).numpy(), down.flatten(1).numpy())
    return {name: torch.from_numpy(s) for name, s in sums.items()}


def differences(base: Denoiser, edit: Edit) -> dict[str, Tensor]:
    """What an edit adds to each weight it changes, under kohya's names."""
    new = edit.changes(base)
    return {
        "lora_" + k.removesuffix(".weight").replace(".", "_"): (new[k].double() - w.double()).flatten(1)
        for k, w in base.params(new).items()
    }


def relative(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


# -- other tools do what the edit does -----------------------------------------------------------------------------


def loaded(path: Path, to: str) -> StableDiffusionPipeline:
    """A fresh toy with the file loaded by diffusers or by peft."""
    pytest.importorskip("peft")
    pipe = pipeline()
    if to == "peft":
        from peft import PeftModel

        PeftModel.from_pretrained(pipe.unet, path)  # puts its layers into the U-Net
    else:
        pipe.load_lora_weights(path)
    return pipe


@pytest.mark.parametrize("to", FORMATS)
def test_other_tools_do_what_the_edit_does(base: Denoiser, edit: Edit, tmp_path: Path, to: str) -> None:
    path = target(tmp_path, to)
    export(edit, base, path, to=to)
    pipe, edited = loaded(path, to), edit(base)
    ours = probe(edited, "a tiger")
    assert relative(probe(Denoiser(pipe), "a tiger"), ours) < 2e-5  # float32 through some forty layers
    assert relative(probe(base, "a tiger"), ours) > 0.05
    pipe.fuse_lora()
    fused = {k.replace(".base_layer", ""): w for k, w in pipe.unet.named_parameters() if ".lora_" not in k}
    wanted = edited.params("denoiser")
    assert {f"unet.{k}" for k in fused} == wanted.keys()
    for name, w in fused.items():
        torch.testing.assert_close(w, wanted[f"unet.{name}"], atol=5e-6, rtol=0)


@pytest.mark.parametrize("to", ["diffusers", "kohya"])
def test_the_strength_of_another_tool_is_that_of_the_edit(base: Denoiser, tmp_path: Path, to: str) -> None:
    edit = text_map(base) * 0.8
    export(edit, base, target(tmp_path, to), to=to)
    pipe = loaded(target(tmp_path, to), to)
    pipe.set_adapters(pipe.get_active_adapters(), 0.25)
    assert relative(probe(Denoiser(pipe), "a tiger"), probe((edit * 0.25)(base), "a tiger")) < 2e-5
    assert relative(probe(Denoiser(pipe), "a tiger"), probe(edit(base), "a tiger")) > 0.05


@pytest.mark.parametrize("layers", ["q_proj fc2", "fc1"])
@pytest.mark.parametrize("to", ["diffusers", "kohya"])
def test_the_text_encoder_travels_too(base: Denoiser, tmp_path: Path, to: str, layers: str) -> None:
    pytest.importorskip("peft")
    every = low_rank(base, "text").factors
    kept = {k: f for k, f in every.items() if k.split(".")[-2] in layers.split()}
    edit = LowRank({**kept, f"unet.{ATTENTION}.weight": (torch.ones(16, 1), torch.ones(1, WIDTH))}, header(base)) * 0.2
    export(edit, base, target(tmp_path, to), to=to)
    theirs, ours = Denoiser(loaded(target(tmp_path, to), to)), edit(base)
    words, wanted = (m.embed(["a tiger", "photo of a car"]).tokens for m in (theirs, ours))
    assert relative(words, wanted) < 1e-5
    assert relative(base.embed(["a tiger", "photo of a car"]).tokens, wanted) > 0.02
    assert relative(probe(theirs, "a tiger"), probe(ours, "a tiger")) < 2e-5


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks transformers
def test_a_peft_folder_can_hold_the_text_encoder(base: Denoiser, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from peft import PeftModel

    edit, pipe = low_rank(base, "text"), pipeline()
    export(edit, base, tmp_path / "lora", to="peft")
    pipe.text_encoder = PeftModel.from_pretrained(pipe.text_encoder, tmp_path / "lora").merge_and_unload()
    words, wanted = Denoiser(pipe).embed(["a tiger"]).tokens, edit(base).embed(["a tiger"]).tokens
    assert relative(words, wanted) < 1e-5
    assert relative(base.embed(["a tiger"]).tokens, wanted) > 0.02


def test_a_uce_edit_of_moji_is_the_same_in_diffusers(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    moji = load("moji")
    edit = UCE().fit(moji, [Concept("tiger", "cat")])
    done = export(edit, moji, tmp_path / "x.safetensors", to="kohya")
    assert (done.error, done.rank) == (0.0, edit.tensors()["left"].shape[1])
    ours, before = probe(edit(moji), "a tiger"), probe(moji, "a tiger")
    stock = load("moji")
    stock.pipeline.load_lora_weights(done.path)
    assert relative(probe(stock, "a tiger"), ours) < 2e-5
    assert relative(before, ours) > 0.01


# -- the sums, without any other tool ------------------------------------------------------------------------------


def test_a_kohya_file_adds_what_the_edit_adds(base: Denoiser, edit: Edit, tmp_path: Path) -> None:
    done = export(edit, base, tmp_path / "x.safetensors", to="kohya")
    got, wanted = stored(done.path), differences(base, edit)
    assert got.keys() == wanted.keys()
    assert all(relative(got[k], wanted[k]) < 1e-5 for k in wanted)
    assert done.error == 0
    assert set(done.errors.values()) == {0.0}


def test_the_map_is_exact_without_a_decomposition(base: Denoiser, tmp_path: Path) -> None:
    edit = text_map(base)
    done = export(edit * 0.5, base, tmp_path / "x.safetensors", to="diffusers")
    tensors = load_file(done.path)
    w = base.params([f"unet.{ATTENTION}.weight"])[f"unet.{ATTENTION}.weight"]
    torch.testing.assert_close(tensors[f"unet.{ATTENTION}.lora_A.weight"], edit.right.T, atol=0, rtol=0)
    torch.testing.assert_close(tensors[f"unet.{ATTENTION}.lora_B.weight"], 0.5 * w @ edit.left, atol=1e-6, rtol=0)
    assert done.rank == 3
    assert len(tensors) == 2 * len(base.params("xattn.kv"))


def test_order_in_a_stack_counts(base: Denoiser, tmp_path: Path) -> None:
    one, two = text_map(base), low_rank(base, "xattn.kv")
    kept = {}
    for name, stack in {"one": one + two, "two": two + one}.items():
        export(stack, base, tmp_path / f"{name}.safetensors", to="kohya")
        kept[name] = stored(tmp_path / f"{name}.safetensors")
    key = f"lora_unet_{ATTENTION.replace('.', '_')}"
    assert relative(kept["one"][key], differences(base, one + two)[key]) < 1e-5
    assert relative(kept["one"][key], kept["two"][key]) > 0.02


def test_a_wide_map_takes_no_more_rank_than_its_matrices_have(base: Denoiser, tmp_path: Path) -> None:
    edit = text_map(base, rank=WIDTH) * 0.2
    done = export(edit, base, tmp_path / "x.safetensors", to="kohya")
    got, wanted = stored(done.path), differences(base, edit)
    assert (done.rank, done.error) == (32, 0.0)  # matrices of 16 and 32 rows over 64 columns
    assert all(relative(got[k], wanted[k]) < 1e-5 for k in wanted)


def test_a_bfloat16_model_gets_float32_factors(tmp_path: Path) -> None:
    base = tiny(dtype=torch.bfloat16)
    edit = text_map(base)
    export(edit, base, tmp_path / "x.safetensors", to="kohya")
    got = stored(tmp_path / "x.safetensors")
    assert {t.dtype for t in load_file(tmp_path / "x.safetensors").values()} == {torch.float32}
    for name, w in base.params("xattn.kv").items():
        wanted = w.double() @ edit.left.double() @ edit.right.double().T
        assert relative(got["lora_" + name.removesuffix(".weight").replace(".", "_")], wanted) < 1e-6


# -- deltas: cut, and told -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 5, 16, 32])
def test_a_cut_delta_leaves_out_what_it_says(base: Denoiser, tmp_path: Path, rank: int) -> None:
    kernels = {k: w for k, w in base.params("denoiser.layers").items() if w.ndim >= 2 and ("conv" in k or "attn2" in k)}
    rng = torch.Generator().manual_seed(3)
    edit = Delta({k: torch.randn(w.shape, generator=rng) * 0.05 for k, w in kernels.items()}, header(base)) * 0.5
    done = export(edit, base, tmp_path / "x.safetensors", to="kohya", rank=rank)
    got, lost, size = stored(done.path), 0.0, 0.0
    for name, d in edit.deltas.items():
        matrix = 0.5 * d.double().numpy().reshape(len(d), -1)
        values = np.linalg.svd(matrix, compute_uv=False)
        key = "lora_" + name.removesuffix(".weight").replace(".", "_")
        left_out = np.linalg.norm(matrix - got[key].numpy())
        best = np.sqrt((values[rank:] ** 2).sum())  # Eckart and Young: nothing of this rank is nearer
        assert left_out == pytest.approx(best, abs=2e-6)
        assert done.errors[name] == pytest.approx(best / np.linalg.norm(matrix), abs=1e-6)
        lost, size = lost + best**2, size + (values**2).sum()
    assert done.error == pytest.approx(np.sqrt(lost / size), abs=1e-6)
    assert done.rank == rank
    assert (done.error < 1e-6) is (rank == 32)
    assert max(done.errors.values()) <= 1


def test_more_rank_leaves_out_less_of_what_the_model_does(base: Denoiser, tmp_path: Path) -> None:
    edit = delta(base, "xattn.kv")
    shares = [export(edit, base, tmp_path / "x.safetensors", rank=r).error for r in (1, 4, 8, 16, 32)]
    assert sorted(shares, reverse=True) == shares
    assert 0.5 < shares[0] < 1
    assert shares[-1] == 0


def test_a_stack_with_a_delta_is_cut_as_a_whole(base: Denoiser, tmp_path: Path) -> None:
    edit = text_map(base) + delta(base, "xattn.kv") * 0.3 + text_map(base, 5)
    done = export(edit, base, tmp_path / "x.safetensors", to="kohya", rank=8)
    got, wanted = stored(done.path), differences(base, edit)
    for name, share in done.errors.items():
        key = "lora_" + name.removesuffix(".weight").replace(".", "_")
        values = np.linalg.svd(wanted[key].numpy(), compute_uv=False)
        assert share == pytest.approx(np.sqrt((values[8:] ** 2).sum() / (values**2).sum()), abs=1e-6)
        assert relative(got[key], wanted[key]) == pytest.approx(share, abs=1e-5)
    assert 0 < done.error < 0.5


def test_an_exact_edit_is_cut_when_asked_to(base: Denoiser, tmp_path: Path) -> None:
    edit = low_rank(base, ranks=(4,))
    done = export(edit, base, tmp_path / "x.safetensors", to="kohya", rank=2)
    got, wanted = stored(done.path), differences(base, edit)
    assert done.rank == 2
    assert 0.1 < done.error < 0.9
    for name, share in done.errors.items():
        key = "lora_" + name.removesuffix(".weight").replace(".", "_")
        assert relative(got[key], wanted[key]) == pytest.approx(share, abs=1e-5)


def test_factors_of_a_cut_are_of_one_size() -> None:
    rng = torch.Generator().manual_seed(0)
    up, down = torch.randn(9, 9, generator=rng).double(), torch.randn(9, 30, generator=rng).double()
    kept = cut(up, down, 4)
    torch.testing.assert_close(kept.up.norm(dim=0), kept.down.norm(dim=1))
    assert (kept.up.shape, kept.down.shape) == ((9, 4), (4, 30))
    assert kept.lost**2 + float((kept.up @ kept.down).norm()) ** 2 == pytest.approx(kept.size**2)
    assert cut(up, down).up is up


def test_zero_differences_need_no_place(base: Denoiser, tmp_path: Path) -> None:
    edit = delta(base)
    biases = {"unet.conv_in.bias": torch.zeros(16), "unet.conv_norm_out.weight": torch.zeros(16)}
    whole = Delta({**edit.deltas, **biases}, header(base))
    done = export(whole, base, tmp_path / "x.safetensors", rank=16)
    assert done.errors.keys() == edit.deltas.keys()


# -- biases, norms, embeddings; the default rank ------------------------------------------------------------------


def comfyui(path: Path, base: Denoiser) -> dict[str, Tensor]:
    """What ComfyUI's rules (comfy/lora.py) add to each weight, from the file alone: factors, "diff" and "diff_b" of a known layer."""
    tensors, known = load_file(path), {}
    for name in (*base.params("denoiser"), *base.params("text.layers")):
        if name.endswith(".weight"):
            part, _, module = name.removesuffix(".weight").partition(".")
            clip = f"text_model.{module.removeprefix('text_model.')}"
            known[("lora_te_" + clip if part == "text" else "lora_unet_" + module).replace(".", "_")] = name
    added = {}
    for key, t in tensors.items():
        layer, kind = key.split(".", 1)
        name = known[layer]
        if kind == "alpha":
            up, down = (tensors[f"{layer}.lora_{end}.weight"].double().flatten(1) for end in ("up", "down"))
            added[name] = (up @ down) * (float(t) / len(down))
        elif kind == "diff":
            added[name] = t.double()
        elif kind == "diff_b":
            added[name.removesuffix(".weight") + ".bias"] = t.double()
    return added


SELECTED = {
    "esd-x": "xattn", "esd-u": "noxattn", "esd": "denoiser", "text": "text", "mapping": "xattn.kv", "age": "selfattn",
}  # fmt: skip


@pytest.mark.parametrize("where", SELECTED.values(), ids=SELECTED)
@pytest.mark.parametrize("to", FORMATS)
def test_every_selection_of_weights_is_exported_with_its_error_and_what_is_left_out(
    base: Denoiser, tmp_path: Path, to: str, where: str
) -> None:
    edit = delta(base, where) * 0.5
    done = export(edit, base, target(tmp_path, to), to=to, rank=4)
    linear = {k for k, w in edit.deltas.items() if w.ndim > 1 and "embedding.weight" not in k}
    held = {k for k in edit.deltas if not k.startswith("text.") or (k.endswith(".bias") and "norm" not in k)}
    written = linear | (held if to == "comfyui" else set())
    assert set(done.left_out) == edit.deltas.keys() - written
    if to == "comfyui":
        added = comfyui(done.path, base)
        assert added.keys() == written
        squares = [
            float((0.5 * d.double().view_as(a) - a).square().sum()) for k, a in added.items() for d in [edit.deltas[k]]
        ]
        lost = sum(squares) + sum(float((0.5 * edit.deltas[k].double()).square().sum()) for k in done.left_out)
        size = sum(float((0.5 * d.double()).square().sum()) for d in edit.deltas.values())
        assert done.error == pytest.approx((lost / size) ** 0.5, abs=1e-6)
        for k in written - linear:
            torch.testing.assert_close(added[k], 0.5 * edit.deltas[k].double(), atol=1e-7, rtol=0)


def test_biases_alone_have_a_format(base: Denoiser, tmp_path: Path) -> None:
    done = export(biases(base), base, tmp_path / "x.safetensors", to="comfyui")
    assert (done.error, done.left_out) == (0.0, ())
    added = comfyui(done.path, base)
    assert added.keys() == biases(base).deltas.keys()
    assert all(torch.equal(a, torch.ones(16).double()) for a in added.values())


def test_the_default_rank_keeps_its_share_and_is_the_smallest(
    base: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit = delta(base, "xattn.kv")
    done = export(edit, base, tmp_path / "x.safetensors", to="kohya")
    assert done.error**2 <= 0.01
    assert export(edit, base, tmp_path / "x.safetensors", to="kohya", rank=done.rank - 1).error ** 2 > 0.01
    monkeypatch.setattr("efface.core.export.MOST", 3)
    assert export(edit, base, tmp_path / "x.safetensors", to="kohya").rank == 3


# -- headers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", FORMATS)
def test_every_file_says_what_it_is(base: Denoiser, tmp_path: Path, to: str) -> None:
    edit = text_map(base) * 0.5
    done = export(edit, base, target(tmp_path, to), to=to)
    path = done.path / "adapter_model.safetensors" if to == "peft" else done.path
    with safe_open(path, "pt") as f:
        said = f.metadata()
    raw = path.read_bytes()
    start = 8 + struct.unpack("<Q", raw[:8])[0]
    assert said["modelspec.hash_sha256"] == "0x" + hashlib.sha256(raw[start:]).hexdigest()
    assert said["modelspec.sai_model_spec"] == "1.0.0"
    assert said["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert said["modelspec.implementation"] == "diffusers"
    assert said["modelspec.title"] == "UCE: tiger, car"
    assert said["modelspec.description"] == "Erases tiger, car from toy; made with UCE; strength 1 is the edit."
    assert said["modelspec.date"] == "2024-01-01T00:00:00+00:00"
    assert said["modelspec.resolution"] == "16x16"
    assert said["modelspec.prediction_type"] == "epsilon"
    assert said["efface.base"] == base.fingerprint
    assert (said["efface.rank"], said["efface.error"]) == ("3", "0.0")
    assert said["format"] == "pt"
    recipe = json.loads(said["efface.recipe"])
    assert recipe["strength"] == 0.5
    assert recipe["kind"] == "TextMap"
    assert Header.read(recipe) == edit.header
    assert said.get("ss_v2") == ("False" if to in ("kohya", "comfyui") else None)


def test_velocity_models_say_so(velocity: Denoiser, tmp_path: Path) -> None:
    export(text_map(velocity), velocity, tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", "pt") as f:
        assert f.metadata()["modelspec.prediction_type"] == "v"


@pytest.mark.parametrize(("prediction", "kind"), [("epsilon", "v2-512"), ("v_prediction", "v2-768-v")])
def test_stable_diffusion_2_is_told_from_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prediction: str, kind: str
) -> None:
    monkeypatch.setattr("toys.WIDTH", 1024)
    wide = tiny(prediction)
    edit = TextMap(torch.ones(1024, 1), torch.ones(1024, 1))
    export(edit, wide, tmp_path / "x.safetensors", to="kohya")
    with safe_open(tmp_path / "x.safetensors", "pt") as f:
        said = f.metadata()
    assert (said["modelspec.architecture"], said["ss_v2"]) == (f"stable-diffusion-{kind}/lora", "True")
    assert said["modelspec.title"] == "x"
    assert "modelspec.date" not in said


def test_the_same_edit_is_the_same_file(base: Denoiser, tmp_path: Path) -> None:
    files = [export(text_map(base), base, tmp_path / name / "x.safetensors").path for name in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_an_exported_file_is_not_taken_for_an_edit(base: Denoiser, tmp_path: Path) -> None:
    export(text_map(base), base, tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match="got a LoRA that efface exported; give the edit"):
        load_edit(tmp_path / "x.safetensors")


# -- refused -------------------------------------------------------------------------------------------------------


class Gate(Edit):
    """An edit that no matrix describes."""

    header = Header("")

    def changes(self, base: Denoiser) -> dict[str, Tensor]:
        return {}

    def tensors(self) -> dict[str, Tensor]:
        return {}

    @classmethod
    def build(cls, tensors: object, header: Header, raw: object) -> "Gate":
        return cls()


Edit.kinds.pop("Gate")  # the class is no kind that a file may name


def embedding(base: Denoiser) -> LowRank:
    return LowRank({"text.embeddings.token_embedding.weight": (torch.ones(600, 1), torch.ones(1, WIDTH))}, header(base))


def biases(base: Denoiser) -> Delta:
    return Delta({"unet.conv_in.bias": torch.ones(16), "unet.conv_norm_out.weight": torch.ones(16)}, header(base))


KINDS = "edit: expected a TextMap, LowRank, Delta or a Stack of them, got Gate, which a LoRA cannot represent; "
PARTS = "edit: expected weights of linear layers and convolutions, since a LoRA has no others, got "
REMEDY = "; bake it into the pipeline, or export biases and norms of the U-Net to 'comfyui'"
BOTH = (
    "to: expected an edit of one network, since a peft folder holds one model, got one of text and unet; "
    "export to 'diffusers' or 'kohya'"
)


@pytest.mark.parametrize(
    ("make", "options", "sentence"),
    [
        (text_map, {"to": "lyco"}, "to: unknown format 'lyco'; known: comfyui, diffusers, kohya, peft"),
        (delta, {"rank": 33}, "rank: expected 1 to 32, the most a matrix of this edit has, got 33; give one of them"),
        (delta, {"rank": 0}, "rank: expected 1 to 32, the most a matrix of this edit has, got 0; give one of them"),
        (
            text_map,
            {"rank": -1},
            "rank: expected 1 to 32, the most a matrix of this edit has, got -1; give one of them",
        ),
        (lambda base: Gate(), {}, KINDS + "save it as efface's own file"),
        (lambda base: text_map(base) + Gate(), {}, KINDS + "save it as efface's own file"),
        (embedding, {}, f"{PARTS}only text.embeddings.token_embedding.weight (1 such){REMEDY}"),
        (embedding, {"to": "comfyui"}, f"{PARTS}only text.embeddings.token_embedding.weight (1 such){REMEDY}"),
        (biases, {"to": "kohya"}, f"{PARTS}only unet.conv_in.bias (2 such){REMEDY}"),
        (lambda base: Delta({}), {"rank": 1}, f"{PARTS}none that changes{REMEDY}"),
        (lambda base: low_rank(base, "text") + text_map(base), {"to": "peft"}, BOTH),
        (
            lambda base: text_map(base).stamped(replace(header(base), base="77c1")),
            {},
            "edit: made for base 77c1 (toy), this model is ",
        ),
        (
            lambda base: TextMap(torch.ones(32, 1), torch.ones(32, 1)),
            {},
            f"edit: expected unet.{ATTENTION}.weight of shape (16, 32), this model's has (16, 64); give the model it was made for",
        ),
        (
            lambda base: Delta({f"unet.{ATTENTION}.weight": torch.ones(16, 1)}),
            {"rank": 1},
            f"edit: expected unet.{ATTENTION}.weight of shape (16, 1), this model's has (16, 64); give the model it was made for",
        ),
        (
            lambda base: LowRank({"unet.x.weight": (torch.ones(2, 1),) * 2}),
            {},
            "weights: this model has no 'unet.x.weight'",
        ),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(
    base: Denoiser, tmp_path: Path, make: Callable[[Denoiser], Edit], options: dict[str, object], sentence: str
) -> None:
    path = target(tmp_path, str(options.get("to", "diffusers")))
    with pytest.raises(UsageError) as caught:
        export(make(base), base, path, **options)  # pyright: ignore[reportArgumentType]
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_another_base_only_when_asked_for(base: Denoiser, tmp_path: Path) -> None:
    other, edit = tiny(seed=1), text_map(base)
    done = export(edit, other, tmp_path / "x.safetensors", to="kohya", any_base=True)
    wanted = {k: w.double() @ edit.left.double() @ edit.right.double().T for k, w in other.params("xattn.kv").items()}
    got = stored(done.path)
    assert moved(base, other, "a tiger") > 0.1
    for name, change in wanted.items():
        assert relative(got["lora_" + name.removesuffix(".weight").replace(".", "_")], change) < 1e-6


def test_a_file_needs_its_ending_and_a_folder_its_place(base: Denoiser, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        export(text_map(base), base, tmp_path / "x.bin", to="kohya")
    assert str(caught.value) == "path: expected a name that ends in .safetensors, got 'x.bin'; kohya reads only those"
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists already; give a new folder, or empty this one"):
        export(text_map(base), base, tmp_path, to="peft")
    assert [p.name for p in tmp_path.iterdir()] == ["kept.txt"]


@pytest.mark.parametrize("to", FORMATS)
def test_a_full_disk_leaves_what_was_there(
    base: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    path = target(tmp_path, to)
    if to != "peft":
        export(text_map(base), base, path, to=to)
    before = [p.read_bytes() for p in tmp_path.iterdir()]

    def fail(self: Path, data: bytes) -> int:
        with self.open("wb") as f:
            f.write(data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(EffaceError, match="nothing was changed"):
        export(text_map(base), base, path, to=to)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == before
    assert len(before) == (to != "peft")


def test_exporting_changes_neither_edit_nor_base(base: Denoiser, tmp_path: Path) -> None:
    edit = text_map(base) + low_rank(base)
    before = edit.fingerprint
    export(edit, base, tmp_path / "x.safetensors")  # the fixture watches the base
    assert edit.fingerprint == before
