"""Fingerprints cover everything that can change a picture; signatures tell weights apart and overlook their rounding."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import pipeline, tiny

from efface.core import identity
from efface.core.denoiser import Denoiser, load
from efface.core.edit import Delta, Header, TextMap, load_edit
from efface.core.errors import EffaceError, UsageError
from efface.core.identity import BUCKETS, ROW, Signature, signature
from efface.erasers.uce import UCE


@torch.no_grad()
def put(model: Denoiser, part: str, place: int) -> None:
    """Another number at one place of a part's largest tensor."""
    largest = max(getattr(model.pipeline, part).parameters(), key=lambda p: p.numel())
    largest.view(-1)[place] += 0.5


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
@pytest.mark.parametrize("place", [0, 777, -1])
def test_one_number_of_any_part_changes_the_fingerprint(part: str, place: int) -> None:
    model = tiny()
    before = model.fingerprint
    put(model, part, place)
    assert model.fingerprint != before == tiny().fingerprint


def test_so_does_what_is_no_weight() -> None:
    seen = [tiny().fingerprint]
    for change in (
        lambda pipe: pipe.scheduler.register_to_config(steps_offset=0),
        lambda pipe: pipe.vae.register_to_config(scaling_factor=0.5),
        lambda pipe: pipe.unet.register_to_config(sample_size=16),
        lambda pipe: setattr(pipe.text_encoder.config, "hidden_act", "gelu"),
        lambda pipe: setattr(pipe.tokenizer, "model_max_length", 12),
        lambda pipe: pipe.tokenizer.add_tokens(["blorb"]),
        lambda pipe: pipe.vae.to(torch.bfloat16),
    ):
        pipe = pipeline()
        change(pipe)
        seen.append(Denoiser(pipe).fingerprint)
    seen.append(tiny(pad="!").fingerprint)
    assert len(set(seen)) == len(seen)


def test_reading_a_prompt_does_not(tmp_path: Path) -> None:
    model = tiny()
    before = model.fingerprint
    model.embed(["a tiger"] * 3)
    assert model.fingerprint == before
    model.pipeline.save_pretrained(tmp_path)
    assert load(tmp_path).fingerprint == load(tmp_path).fingerprint == before


def test_an_edit_of_the_token_embeddings_shows() -> None:
    base = tiny()
    ((name, table),) = base.params("text.embeddings").items()
    delta = torch.zeros_like(table)
    delta[3, 5] = 0.1
    assert Delta({name: delta}, Header(""))(base).fingerprint != base.fingerprint


def test_a_tensor_is_hashed_once_and_again_when_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    model, hashed = tiny(), []
    digest = identity._digest
    monkeypatch.setattr(identity, "_digest", lambda t: hashed.append(t) or digest(t))
    first, n = model.fingerprint, len(hashed)
    assert n == len(identity.tensors({**model.modules(), "vae": model.pipeline.vae}))
    assert model.fingerprint == first
    twin = model.fork("xattn.kv")
    assert twin.fingerprint == first
    assert len(hashed) == n + len(model.params("xattn.kv"))
    put(twin, "unet", 0)
    _ = twin.fingerprint
    put(model, "vae", 0)
    assert model.fingerprint != first
    assert len(hashed) <= n + len(model.params("xattn.kv")) + 2


def test_a_folder_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pipeline().save_pretrained(tmp_path / "model")
    first = load(tmp_path / "model").fingerprint
    (kept,) = (tmp_path / "cache").rglob("*.json")
    hashed: list[torch.Tensor] = []
    digest = identity._digest
    monkeypatch.setattr(identity, "_digest", lambda t: hashed.append(t) or digest(t))
    assert load(tmp_path / "model").fingerprint == first
    assert not hashed
    pipeline(seed=1).save_pretrained(tmp_path / "model")  # other weights in the same place
    assert load(tmp_path / "model").fingerprint not in ("", first)
    assert hashed
    kept.write_text("{")  # a damaged file is no answer
    pipeline().save_pretrained(tmp_path / "again")
    assert load(tmp_path / "again").fingerprint == first
    assert json.loads(max((tmp_path / "cache").rglob("*.json"), key=lambda p: p.stat().st_mtime_ns).read_text())


def test_a_projection_is_the_sum_of_signed_values_over_their_norm() -> None:
    values = torch.randn(2 * ROW + 100, generator=torch.Generator().manual_seed(1))
    signs, rows = (part.numpy().astype(float) for part in identity._signs(torch.device("cpu")))
    want = sum(rows[i // ROW] * signs[i % ROW] * float(v) for i, v in enumerate(values))
    assert identity._projection(values) == pytest.approx(want / np.linalg.norm(values.double().numpy()), abs=1e-5)
    assert identity._projection(torch.zeros(5)) == 0


def test_projections_move_as_far_as_the_weights() -> None:
    """Of many random changes of norm δ the projection moves by δ in the root mean square: signs are fair."""
    rng, moved = torch.Generator().manual_seed(2), []
    w = torch.randn(300, generator=rng)
    for _ in range(400):
        step = torch.randn(300, generator=rng)
        step *= 0.01 * w.norm() / step.norm()
        moved.append(identity._projection(w + step) - identity._projection(w))
    assert np.sqrt(np.mean(np.square(moved))) == pytest.approx(0.01, rel=0.15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_edit_fits_the_same_weights_in_another_dtype_and_no_others(dtype: torch.dtype, tmp_path: Path) -> None:
    base, narrow = tiny(), tiny(dtype=dtype)
    assert base.fingerprint != narrow.fingerprint
    edit = UCE().fit(base, "tiger")
    edit.save(tmp_path / "e.safetensors")
    read = load_edit(tmp_path / "e.safetensors")
    read.require(narrow)
    UCE().fit(narrow, "tiger").require(base)
    assert read(narrow).pipeline.unet.dtype == dtype
    for other in (tiny(seed=1), tiny(seed=1, dtype=dtype), tiny("v_prediction", seed=2)):
        with pytest.raises(UsageError, match="made for base"):
            read.require(other)
    both = edit + UCE().fit(narrow, "car")
    assert both.header.signature == edit.header.signature


def test_weights_that_another_edit_changed_are_other_weights() -> None:
    base = tiny()
    edit, first = UCE().fit(base, "tiger"), UCE().fit(base, "car")
    with pytest.raises(UsageError, match="made for base"):
        edit.require(first(base))
    small = {k: 0.01 * w.norm() / w.numel() ** 0.5 * torch.ones_like(w) for k, w in base.params("xattn.kv").items()}
    with pytest.raises(UsageError, match="made for base"):
        edit.require(Delta(small)(base))


@torch.no_grad()
def test_a_change_of_a_hundredth_is_more_than_the_rounding_of_bfloat16() -> None:
    base, tuned = tiny(), tiny()
    rng = torch.Generator().manual_seed(0)
    for part in tuned.modules().values():
        for p in part.parameters():
            noise = torch.randn(p.shape, generator=rng)
            p += 0.015 * p.norm() / noise.norm() * noise
    narrow = Denoiser(tuned.pipeline.to(dtype=torch.bfloat16))
    assert not signature(base.modules()).fits(narrow.signature)


def test_another_autoencoder_is_another_model_that_the_edit_fits() -> None:
    base = tiny()
    edit, other = UCE().fit(base, "tiger"), tiny()
    put(other, "vae", 0)
    assert other.fingerprint != base.fingerprint
    edit.require(other)


def test_layers_wrapped_by_a_lora_or_compiled_are_the_same_layers() -> None:
    peft = pytest.importorskip("peft")
    base, wrapped = tiny(), tiny()
    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False)
    wrapped.pipeline.unet.add_adapter(config)
    assert signature(wrapped.modules()).fits(signature(base.modules()))
    assert wrapped.fingerprint != base.fingerprint
    compiled = copy.copy(base.modules())
    compiled["unet"] = torch.nn.Module()  # as torch.compile wraps a module, without a compiler
    compiled["unet"].add_module("_orig_mod", base.pipeline.unet)
    assert signature(compiled).fits(signature(base.modules()))


def test_a_signature_is_written_and_read_and_anything_else_is_refused(tmp_path: Path) -> None:
    one = signature(tiny().modules())
    again = Signature.read(one.written())
    assert (again.layout, again.dtype, again.counts) == (one.layout, one.dtype, one.counts)
    assert again.values == pytest.approx(one.values, abs=1e-6)
    assert len(one.counts) == len(one.values) == BUCKETS
    for wrong in (
        "",
        "a:b",
        "a:float32:!!",
        f"a:float32:{one.written().split(':')[2][:-8]}",
        "a:pickle:" + one.written().split(":")[2],
    ):
        with pytest.raises(ValueError):
            Signature.read(wrong)
    TextMap(torch.zeros(64, 1), torch.zeros(64, 1), Header("UCE", base="x", signature="a:b")).save(
        tmp_path / "e.safetensors"
    )
    with pytest.raises(EffaceError, match="do not fit together"):
        load_edit(tmp_path / "e.safetensors")


def test_weights_on_the_meta_device_are_refused_in_a_sentence() -> None:
    model = tiny()
    model.pipeline.unet.to("meta")
    for ask in ("fingerprint", "signature"):
        with pytest.raises(EffaceError, match="expected weights in memory, got unet.*offload"):
            getattr(model, ask)
