"""Edits: values that apply, scale, compose, travel as one file, and refuse what they were not made for."""

import errno
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from toys import WIDTH, differing, moved, pipeline, probe, snapshot, tiny

from efface.core import io
from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.edit import FORMAT, Delta, Edit, Header, LowRank, Stack, TextMap, load_edit
from efface.core.errors import EffaceError, UsageError

KINDS = ["TextMap", "Delta", "LowRank", "Stack", "nested"]
KV = ".attn2.to_v.weight"


def header(base: Denoiser) -> Header:
    return Header(
        "UCE", {"ridge": 0.5, "tokens": "last", "templates": True, "seed": 3},
        (Concept("tiger", "cat", ("big cat",), "object"), Concept("Ünïcode ε")), (Concept("lion"), Concept("noto", kind="style")),
        base.fingerprint, "toy", 3, "0.1.0", "2024-01-01T00:00:00+00:00", 1.5, {"ESR-1": 0.97},
    )  # fmt: skip


def text_map(base: Denoiser, seed: int = 0) -> TextMap:
    rng = torch.Generator().manual_seed(seed)
    return TextMap(torch.randn(WIDTH, 3, generator=rng) / 8, torch.randn(WIDTH, 3, generator=rng) / 8, header(base))


def delta(base: Denoiser, where: str = "xattn.kv", seed: int = 1) -> Delta:
    rng = torch.Generator().manual_seed(seed)
    return Delta({k: torch.randn(w.shape, generator=rng) * 0.05 for k, w in base.params(where).items()}, header(base))


def low_rank(base: Denoiser, where: str = "denoiser.layers", seed: int = 2) -> LowRank:
    rng = torch.Generator().manual_seed(seed)
    matrices = {k: w for k, w in base.params(where).items() if w.ndim >= 2}  # kernels as well
    factors = {
        k: (torch.randn(len(w), 2, generator=rng) * 0.05, torch.randn(2, w[0].numel(), generator=rng) * 0.1)
        for k, w in matrices.items()
    }
    return LowRank(factors, header(base))


def make(kind: str, base: Denoiser) -> Edit:
    return {
        "TextMap": lambda: text_map(base),
        "Delta": lambda: delta(base, "denoiser"),
        "LowRank": lambda: low_rank(base),
        "Stack": lambda: text_map(base) + delta(base) * 0.5 + low_rank(base),
        "nested": lambda: Stack([Stack([text_map(base), delta(base)]), low_rank(base) * 2.0]),
    }[kind]()


@pytest.fixture(params=KINDS)
def edit(request: pytest.FixtureRequest, base: Denoiser) -> Edit:
    return make(request.param, base)


# -- applying ------------------------------------------------------------------------------------------------------


def test_applying_changes_the_copy_and_nothing_else(base: Denoiser, edit: Edit) -> None:
    before = snapshot(base)
    edited = edit(base)
    changed = differing(before, snapshot(edited))
    assert changed == edit.changes(base).keys() != set()
    assert not differing(before, snapshot(base))
    for name, w in edited.params("denoiser").items():
        assert (w.data_ptr() == base.params([name])[name].data_ptr()) is (name not in changed)
    assert moved(base, edited, "a tiger") > 0.01
    assert not any(w.requires_grad for w in edited.params("denoiser").values())


def test_the_edited_pipeline_is_an_ordinary_one(base: Denoiser, edit: Edit) -> None:
    edited = edit(base)
    assert type(edited.pipeline) is type(base.pipeline)
    plain = edited.pipeline(
        "a tiger", latents=base.noise([1]), num_inference_steps=3, guidance_scale=3.0, output_type="latent"
    ).images
    torch.testing.assert_close(
        edited.sample(edited.embed(["a tiger"]), seeds=[1], steps=3, guidance=3.0), plain, atol=1e-4, rtol=0
    )


def test_a_text_map_is_its_matrix_before_every_cross_attention(base: Denoiser, velocity: Denoiser) -> None:
    for model in (base, velocity):
        edit = replace_header(text_map(model))
        t = torch.eye(WIDTH, dtype=torch.float64) + edit.left.double() @ edit.right.double().T
        x, level, cond = torch.randn(2, *model.latent_shape), torch.tensor([700, 30]), model.embed(["a tiger", "cat"])
        mapped = replace(cond, tokens=(cond.tokens.double() @ t.T).float())
        with torch.no_grad():
            torch.testing.assert_close(
                edit(model).predict(x, level, cond), model.predict(x, level, mapped), atol=2e-4, rtol=0
            )
            assert (model.predict(x, level, cond) - model.predict(x, level, mapped)).abs().max() > 0.1


def test_a_delta_is_added_and_factors_are_multiplied(base: Denoiser) -> None:
    one, two = delta(base), low_rank(base)
    for name, w in one(base).params("xattn.kv").items():
        torch.testing.assert_close(w, base.params([name])[name] + one.deltas[name], atol=1e-7, rtol=0)
    for name, w in two(base).params(two.factors).items():
        up, down = two.factors[name]
        old = base.params([name])[name]
        flat = old.flatten(1) + torch.einsum("or,ri->oi", up, down)
        torch.testing.assert_close(w.flatten(1), flat, atol=1e-6, rtol=0)


# -- strength ------------------------------------------------------------------------------------------------------


def test_strength_zero_is_the_base_bit_for_bit(base: Denoiser, edit: Edit) -> None:
    assert not differing(snapshot(base), snapshot((edit * 0.0)(base)))


def test_half_strength_is_something_between(base: Denoiser, edit: Edit) -> None:
    full, half = edit(base), (0.5 * edit)(base)
    distance = {k: (a - b).norm() for k, a, b in _both(base, full)}
    on_the_way = {k: (a - b).norm() for k, a, b in _both(base, half)}
    touched = [k for k in distance if distance[k] > 0]
    assert touched
    assert all(0.3 * distance[k] < on_the_way[k] < 0.7 * distance[k] for k in touched)
    assert 0 < moved(base, half, "a tiger") < moved(base, full, "a tiger")


def test_strengths_multiply_and_the_edit_itself_keeps_its_own(base: Denoiser, edit: Edit) -> None:
    assert not differing(snapshot((edit * 0.5 * 2.0)(base)), snapshot(edit(base)))
    assert edit.strength == 1.0


def _both(a: Denoiser, b: Denoiser) -> list[tuple[str, Tensor, Tensor]]:
    return [(k, w, b.params([k])[k]) for k, w in a.params("denoiser").items()]


# -- composition ---------------------------------------------------------------------------------------------------


def test_a_stack_is_one_edit_after_the_other(base: Denoiser) -> None:
    one, two = text_map(base), delta(base, "xattn")
    by_hand = two(one(base), any_base=True)
    assert not differing(snapshot((one + two)(base)), snapshot(by_hand))
    assert differing(snapshot((two + one)(base)), snapshot(by_hand))  # a map of changed weights is another edit


def test_a_stack_of_disjoint_deltas_commutes(base: Denoiser) -> None:
    one, two = delta(base, "xattn"), delta(base, "selfattn", seed=7)
    assert not differing(snapshot((one + two)(base)), snapshot((two + one)(base)))
    assert differing(snapshot((one + two)(base)), snapshot(one(base)))


def test_two_maps_compose_as_matrices(base: Denoiser) -> None:
    one, two = text_map(base), text_map(base, seed=9)
    t1, t2 = (torch.eye(WIDTH) + e.left @ e.right.T for e in (one, two))
    for name, w in (one + two)(base).params("xattn.kv").items():
        torch.testing.assert_close(w, base.params([name])[name] @ t1 @ t2, atol=1e-5, rtol=0)


def test_without_takes_one_edit_off(base: Denoiser) -> None:
    one, two = delta(base), low_rank(base)
    stack = one + two
    assert not differing(snapshot(stack.without(0)(base)), snapshot(two(base)))
    assert not differing(snapshot(stack.without(-1)(base)), snapshot(one(base)))
    assert len((one + one).without(0).edits) == 1
    with pytest.raises(UsageError, match="stack: expected an index below 2, got 2; `edits` lists its edits"):
        stack.without(2)
    with pytest.raises(UsageError, match="stack: expected edits of one base, got none"):
        Stack([one]).without(0)


def test_a_stack_names_everything_it_erases(base: Denoiser) -> None:
    other = text_map(base).stamped(replace(header(base), erase=(Concept("car"), Concept("tiger", "cat", ("big cat",)))))
    stack = text_map(base) + other
    assert [c.name for c in stack.header.erase] == ["tiger", "Ünïcode ε", "car"]
    assert (stack.header.base, stack.header.model) == (base.fingerprint, "toy")


def test_edits_of_different_bases_do_not_stack(base: Denoiser) -> None:
    other = delta(base).stamped(replace(header(base), base="77c1"))
    with pytest.raises(UsageError, match="stack: expected edits of one base, got for different bases"):
        delta(base) + other


# -- baking --------------------------------------------------------------------------------------------------------


def test_bake_writes_what_apply_gives(base: Denoiser, edit: Edit) -> None:
    pipe = pipeline()
    assert edit.bake(pipe) is None
    assert not differing(snapshot(Denoiser(pipe)), snapshot(edit(base)))


def test_a_baked_pipeline_is_another_base(base: Denoiser, edit: Edit) -> None:
    pipe = pipeline()
    edit.bake(pipe)
    with pytest.raises(UsageError, match="edit: made for base"):
        edit.bake(pipe)  # the same edit twice


# -- the base it was made for --------------------------------------------------------------------------------------


def test_another_base_is_refused_unless_asked_for(base: Denoiser, edit: Edit) -> None:
    other = tiny(seed=1)
    with pytest.raises(UsageError) as caught:
        edit(other)
    assert str(caught.value) == (
        f"edit: made for base {base.fingerprint} (toy), this model is {other.fingerprint}; "
        "give that model, or any_base=True (--any-base) to apply the edit anyway"
    )
    assert moved(other, edit(other, any_base=True), "a tiger") > 0.01


def test_a_model_of_another_shape_is_refused_even_then(base: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toys.WIDTH", 32)
    narrow = tiny()
    with pytest.raises(
        UsageError,
        match=r"^edit: maps embeddings of width 64, unet\..* reads 32; give the model it was made for$",
    ):
        text_map(base)(narrow, any_base=True)
    name = next(iter(base.params("xattn.kv")))
    rows = len(base.params([name])[name])
    for one, shape in (
        (Delta({name: torch.ones(1, 1)}), r"\(1, 1\)"),  # torch would spread it over the weight
        (LowRank({name: (torch.ones(rows, 1), torch.ones(1, 64))}), rf"\({rows}, 64\)"),
    ):
        with pytest.raises(
            UsageError, match=rf"^edit: changes {name} of shape {shape}, here it has \({rows}, 32\); give"
        ):
            one(narrow, any_base=True)


# -- files ---------------------------------------------------------------------------------------------------------


def test_a_file_holds_an_equal_edit(base: Denoiser, edit: Edit, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    edit.save(path)
    again = load_edit(path)
    assert type(again) is type(edit)
    assert again.header == edit.header
    assert again.tensors().keys() == edit.tensors().keys()
    assert all(torch.equal(t, again.tensors()[k]) for k, t in edit.tensors().items())
    assert not differing(snapshot(again(base)), snapshot(edit(base)))
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_header_survives_json(base: Denoiser) -> None:
    given = header(base)
    edit = delta(base)
    assert Header.read(json.loads(json.dumps(edit.record()))) == given == edit.header


def test_strength_is_kept_in_the_file(base: Denoiser, edit: Edit, tmp_path: Path) -> None:
    (edit * 0.25).save(tmp_path / "x.safetensors")
    assert not differing(snapshot(load_edit(tmp_path / "x.safetensors")(base)), snapshot((edit * 0.25)(base)))


CHILD = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from toys import probe, tiny
from efface.core.edit import load_edit
torch.set_num_threads(1)
base, folder = tiny(), Path(sys.argv[1])
save_file({p.stem: probe(load_edit(p)(base), "a tiger") for p in folder.glob("*.safetensors")}, folder / "out.bin")
"""


def test_another_process_predicts_the_same(base: Denoiser, tmp_path: Path, child) -> None:  # noqa: ANN001
    expected = {}
    for kind in KINDS:
        edit = make(kind, base)
        edit.save(tmp_path / f"{kind}.safetensors")
        expected[kind] = probe(edit(base), "a tiger")
    got = child(CHILD, tmp_path)
    assert got.keys() == expected.keys()
    for kind in KINDS:
        assert torch.equal(got[kind], expected[kind]), kind
    assert not torch.equal(got["Delta"], got["TextMap"])


def test_a_newer_file_is_refused(base: Denoiser, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for raw in ({"format": FORMAT + 1, "kind": "Delta"}, {"kind": "Miracle"}):
        io.write_tensors(path, delta(base).tensors(), {**delta(base).record(), "version": "9.0", **raw})
        with pytest.raises(UsageError) as caught:
            load_edit(path)
        assert (
            str(caught.value)
            == f"{path}: written by efface 9.0 as {raw['kind']}, which this efface cannot read; upgrade it"
        )


def test_entries_of_a_newer_minor_version_are_left_out(base: Denoiser, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    io.write_tensors(path, delta(base).tensors(), {**delta(base).record(), "licence": "CC0"})
    assert load_edit(path).header == header(base)


@pytest.mark.parametrize("spoilt", [{"format": "1"}, {"format": None}, {"kind": ["TextMap"]}, {"strength": "nan"}])
def test_a_header_of_other_types_is_one_sentence(base: Denoiser, tmp_path: Path, spoilt: dict[str, Any]) -> None:
    io.write_tensors(tmp_path / "x.safetensors", text_map(base).tensors(), {**text_map(base).record(), **spoilt})
    with pytest.raises(EffaceError, match="x.safetensors: "):
        load_edit(tmp_path / "x.safetensors")


def test_a_strength_is_a_number(base: Denoiser) -> None:
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(UsageError, match="^strength: expected a finite number, got (nan|inf); 0 changes nothing"):
            _ = text_map(base) * wrong


def test_header_and_tensors_that_do_not_fit_are_one_sentence(base: Denoiser, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    io.write_tensors(path, {"left": torch.ones(4, 1)}, text_map(base).record())
    with pytest.raises(EffaceError, match="the header and the tensors do not fit together .*; copy or make it again"):
        load_edit(path)


def _missing(path: Path) -> None:
    path.unlink()


def _pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"left": 1}))


def _foreign(path: Path) -> None:
    save_file({"left": torch.ones(2, 2)}, path)


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize(
    ("spoil", "kind", "sentence"),
    [
        (_missing, UsageError, "no such file; give the path of a .safetensors file that efface wrote"),
        (
            _pickled,
            UsageError,
            "this is a pickle (.pt, .ckpt, .bin), which can run code; efface reads safetensors only",
        ),
        (
            _foreign,
            UsageError,
            "expected an edit of efface, got a safetensors file without the header 'efface'; give one that `efface erase` wrote",
        ),
        (_truncated, EffaceError, "damaged, or not a safetensors file ("),
    ],
)
def test_a_bad_file_is_one_sentence(
    base: Denoiser, tmp_path: Path, spoil, kind: type[EffaceError], sentence: str
) -> None:  # noqa: ANN001
    path = tmp_path / "x.safetensors"
    text_map(base).save(path)
    spoil(path)
    with pytest.raises(kind) as caught:
        load_edit(path)
    assert type(caught.value) is kind
    assert str(caught.value).startswith(f"{path}: {sentence}")
    assert "\n" not in str(caught.value)


def test_a_full_disk_keeps_the_old_edit(base: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    text_map(base).save(path)

    def fail(tensors: object, part: Path, metadata: object) -> None:
        Path(part).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(io, "save_file", fail)
    with pytest.raises(EffaceError, match="no space left on the disk; free some or write elsewhere"):
        delta(base).save(path)
    assert isinstance(load_edit(path), TextMap)
    assert list(tmp_path.iterdir()) == [path]


# -- precision -----------------------------------------------------------------------------------------------------


def test_edits_stay_float32_beside_a_bfloat16_model() -> None:
    base = tiny(dtype=torch.bfloat16)
    edit = Delta({k: torch.full(w.shape, 1e-3, dtype=torch.bfloat16) for k, w in base.params("xattn.kv").items()})
    assert {t.dtype for t in edit.tensors().values()} == {torch.float32}
    edited = edit(base)
    assert {w.dtype for w in edited.params("xattn.kv").values()} == {torch.bfloat16}
    for name, w in edited.params("xattn.kv").items():
        old = base.params([name])[name]
        assert torch.equal(w, (old.float() + edit.deltas[name]).bfloat16())


def replace_header(edit: TextMap) -> TextMap:
    return edit.stamped(Header(""))
