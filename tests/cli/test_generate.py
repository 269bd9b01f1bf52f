"""`efface generate` and `bake`: prompts, samplers, sizes, formats, folders; the dtype and the variant of a model."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from PIL import Image

from efface import api, cli
from efface.core.concept import Concept
from efface.core.denoiser import Denoiser, load, stored_as
from efface.core.edit import Header, TextMap
from efface.core.errors import EffaceError, UsageError
from efface.core.log import Log


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a toy model and an edit of it."""
    monkeypatch.chdir(tmp_path)
    toys.pipeline().save_pretrained("toy")
    header = Header("UCE", erase=(Concept("tiger", "cat"),))
    TextMap(torch.ones(64, 1) / 8, torch.ones(64, 1) / 8, header).save("edit.safetensors")
    return tmp_path


FAST = {"model": "toy", "number": 2, "steps": 2}


@pytest.mark.parametrize(
    ("name", "kind"), [("p.png", "PNG"), ("p.jpg", "JPEG"), ("p.JPEG", "JPEG"), ("p.webp", "WEBP")]
)
def test_the_ending_decides_the_format_and_a_picture_of_ours_is_made_anew(folder: Path, name: str, kind: str) -> None:
    for _ in range(2):
        assert api.generate("a tiger", output=Path(name), **FAST) == 1
    with Image.open(name) as picture:
        assert picture.format == kind
    Image.new("RGB", (4, 4)).save(f"mine-{name}")
    with pytest.raises(UsageError, match="this command did not write it"):
        api.generate("a tiger", output=Path(f"mine-{name}"), **FAST)


def test_a_file_of_prompts_draws_a_row_for_each_and_a_folder_a_file_for_each(folder: Path) -> None:
    (folder / "prompts.csv").write_text('concept,prompt\ntiger,a tiger\ncat,"a cat, red"\n')
    edit = Path("edit.safetensors")
    assert api.generate("@prompts.csv", [edit], compare=True, output=Path("sheet.png"), **FAST) == 4
    sheet = np.asarray(Image.open("sheet.png").convert("RGB"))
    assert api.generate("@prompts.csv", [edit], compare=True, output=Path("all"), seed=5, **FAST) == 4
    names = sorted(p.name for p in Path("all").iterdir())
    assert names == [f"{i:03}-{m}-seed{s}.png" for i in (1, 2) for m in ("edited", "unedited") for s in (5, 6)]
    assert sheet.shape == (4 * 128, 2 * 128, 3)
    with pytest.raises(UsageError, match="exists already; give a new folder"):
        api.generate("a tiger", output=Path("all"), **FAST)
    api.generate("a cat, red", output=Path("typed.png"), **FAST)  # a comma is part of a typed prompt
    zoomed = np.asarray(Image.open("typed.png").convert("RGB"))
    assert zoomed.shape == (128, 256, 3)


@pytest.mark.parametrize("name", ["out.v1/", "p.png/", "all"])
def test_a_name_that_ends_in_a_slash_or_has_no_ending_is_a_folder(folder: Path, name: str) -> None:
    api.generate("a tiger", output=name, **{**FAST, "steps": 1})
    assert sorted(p.name for p in Path(name).iterdir()) == ["001-unedited-seed0.png", "001-unedited-seed1.png"]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"output": "p.gif"}, r"ends in .png, .jpg, .jpeg, .webp, or a folder, got 'p.gif'"),
        ({"output": ".png"}, "got '.png'"),
        ({"output": "some/.txt"}, "got 'some/.txt'"),
        ({"output": "edit.safetensors/pictures"}, "cannot be written"),
        ({"output": "edit.safetensors/p.jpg"}, "cannot be written"),
        ({"output": "full"}, "exists already; give a new folder"),
        ({"negative": "a cat", "guidance": 1.0}, "--negative: has no effect at guidance scale 1"),
        ({"prompt": "@none.txt"}, "no such file 'none.txt'"),
        ({"prompt": "@empty.txt"}, "expected names in 'empty.txt', got none"),
    ],
)
def test_what_cannot_be_drawn_or_written_is_refused_before_the_model_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], sentence: str
) -> None:
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    Path("empty.txt").write_text("# nothing\n")
    monkeypatch.setattr(api, "load", lambda *a, **k: pytest.fail("the model was loaded"))
    with pytest.raises(EffaceError, match=sentence):
        api.generate(**{"prompt": "a tiger", **FAST, **wrong})


@pytest.mark.parametrize(("name", "number"), [("p.webp", 128), ("p.jpg", 512)])
def test_a_sheet_beyond_the_limits_of_its_format_is_refused_before_drawing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    monkeypatch.setattr(Denoiser, "images", lambda *a, **k: pytest.fail("it drew"))
    with pytest.raises(UsageError, match=f"pixels a side in a .* file, got {number} pictures in 1 rows, each of 128"):
        api.generate("a tiger", output=name, **{**FAST, "number": number})


def drawn(**changes: object) -> np.ndarray:
    api.generate("a tiger", output=Path("one.png"), **{**FAST, **changes})  # pyright: ignore[reportArgumentType]
    return np.asarray(Image.open("one.png").convert("RGB"))


def test_sampler_size_and_negative_prompt_change_the_picture(folder: Path) -> None:
    plain = drawn()
    assert np.array_equal(plain, drawn())
    assert not np.array_equal(plain, drawn(negative="a cat"))
    assert not np.array_equal(plain, drawn(sampler="euler"))
    assert drawn(size=32).shape == (4 * 32, 2 * 4 * 32, 3)  # shown four times as large
    for wrong, sentence in (
        ({"sampler": "zzz"}, "sampler: unknown 'zzz'"), ({"size": 33}, "size: expected a multiple of 2 pixels, got 33; 16 is usual"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=sentence):
            drawn(**wrong)


@pytest.mark.parametrize(("dtype", "variant"), [("float16", "fp16"), ("bfloat16", None), ("float32", None)])
def test_bake_keeps_dtype_and_variant_and_an_edit_fits_every_dtype(
    folder: Path, dtype: str, variant: str | None
) -> None:
    toys.pipeline(dtype=getattr(torch, dtype)).save_pretrained("theirs", variant=variant)
    assert stored_as(Path("theirs")) == (dtype, variant)
    made = TextMap(torch.ones(64, 1) / 8, torch.ones(64, 1) / 8)
    base = load("toy")
    fitted = made.stamped(Header("UCE", base=base.fingerprint, model="toy", signature=base.signature.written()))
    fitted.save("fitted.safetensors")
    api.bake([Path("fitted.safetensors")], Path("out"), model="theirs")
    assert stored_as(Path("out")) == (dtype, variant)
    baked, edited = load("out", dtype=dtype), fitted(load("theirs", dtype=dtype))
    for name, w in edited.params("xattn.kv").items():
        assert torch.equal(w, baked.params([name])[name])
    api.bake([Path("fitted.safetensors")], Path("wide"), model="theirs", dtype="float32")
    assert stored_as(Path("wide"))[0] == "float32"


def test_bake_keeps_the_dtype_of_the_variant_it_was_told_to_load(folder: Path) -> None:
    toys.pipeline().save_pretrained("both")
    toys.pipeline(dtype=torch.float16).save_pretrained("both", variant="fp16")
    for variant, stored in (("fp16", ("float16", "fp16")), (None, ("float32", None))):
        output = Path(f"baked-{variant}")
        api.bake([Path("edit.safetensors")], output, model="both", variant=variant, any_base=True)
        assert stored_as(output) == stored


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "a tiger", "-n", "1", "--steps", "1"],
        ["erase", "tiger", "-o", "new.safetensors"],
        ["bake", "edit.safetensors", "-o", "baked", "--any-base"],
        ["export", "edit.safetensors", "-o", "lora.safetensors", "--any-base"],
    ],
)
def test_a_choice_that_loading_made_is_printed(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    toys.pipeline(dtype=torch.float16).save_pretrained("half", variant="fp16")
    monkeypatch.setattr(sys, "argv", ["efface", *words, "--model", "half"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 0
    loaded = "float16" if words[0] == "bake" else "float32"
    assert f"the folder has only fp16 weights; they were loaded as {loaded}.\n" in capsys.readouterr().err


def test_evaluate_and_bench_tell_of_a_choice_as_well(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toys.pipeline(dtype=torch.float16).save_pretrained("half", variant="fp16")
    told: list[str] = []
    log = Log()
    monkeypatch.setattr(log, "say", told.append)
    monkeypatch.setattr("efface.benchmarks.run.bench", lambda *a, **k: pytest.fail("stop here"))
    monkeypatch.setattr("efface.benchmarks.run.evaluate", lambda *a, **k: pytest.fail("stop here"))
    with pytest.raises(pytest.fail.Exception, match="stop here"):
        api.evaluate([Path("edit.safetensors")], model="half", log=log, any_base=True)
    with pytest.raises(pytest.fail.Exception, match="stop here"):
        api.bench(api.sweep("uce", model="half"), log=log)
    assert sum("only fp16 weights" in said for said in told) == 2


def test_a_path_is_printed_as_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["generate", "a [red] :cat:", "-o", ":cat:[red].png", "--model", "toy", "--steps", "1", "-n", "1"]
    monkeypatch.setattr(sys, "argv", ["efface", *words])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().out == ":cat:[red].png: 1 pictures of 'a [red] :cat:' from seed 0 on.\n"
