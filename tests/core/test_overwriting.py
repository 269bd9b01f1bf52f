"""What efface did not write is never replaced or deleted; what it wrote itself is made anew."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from efface import api
from efface.core.denoiser import Denoiser
from efface.core.edit import TextMap, load_edit
from efface.core.errors import EffaceError, UsageError
from efface.core.export import export
from efface.core.files import replace_folder, writable
from efface.core.header import wrote
from efface.core.io import write_tensors

SENTENCE = "exists, and this command did not write it; give another name, or delete it first"


def edit(base: Denoiser) -> TextMap:
    return TextMap(torch.ones(64, 1) / 64, torch.ones(64, 1) / 64)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def users(path: Path) -> bytes:
    """Somebody's weights, text or picture, by the name's ending."""
    if path.suffix == ".safetensors":
        save_file({"weight": torch.ones(4)}, path, metadata={"format": "pt"})
    elif path.suffix == ".png":
        Image.new("RGB", (4, 4)).save(path)
    else:
        path.write_text("<html>my own page</html>")
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("model.safetensors", lambda p: api.plan(["tiger"], output=p)),
        ("photo.png", lambda p: api.generate("a tiger", output=p)),
        ("page.html", lambda p: api.report(Path("nowhere"), p)),
        ("page.html", lambda p: api.compare([Path("a"), Path("b")], p)),
        ("page.html", lambda p: api.show_search(Path("e.safetensors"), p)),
        ("lora.safetensors", lambda p: api.export([Path("e.safetensors")], p)),
        ("e.key.safetensors", lambda p: api.plan(["tiger"], method="kpop", output=p.with_name("e.safetensors"))),
    ],
)
def test_a_users_file_is_refused_before_work(name: str, command: Callable[[Path], object], folder: Path) -> None:
    before = users(folder / name)
    with pytest.raises(UsageError, match=SENTENCE):
        command(folder / name)
    assert (folder / name).read_bytes() == before
    assert [p.name for p in folder.iterdir()] == [name]


def test_an_export_is_no_edit_and_an_edit_no_export(base: Denoiser, folder: Path) -> None:
    edit(base).save("e.safetensors")
    edit(base).save("e.safetensors")  # its own kind is made anew
    with pytest.raises(UsageError, match=SENTENCE):
        export(edit(base), base, "e.safetensors")
    export(edit(base), base, "l.safetensors")
    export(edit(base), base, "l.safetensors")
    with pytest.raises(UsageError, match=SENTENCE):
        edit(base).save("l.safetensors")
    assert (wrote(Path("e.safetensors")), wrote(Path("l.safetensors"))) == ("TextMap", "LoRA")
    assert load_edit("e.safetensors").fingerprint == edit(base).fingerprint
    before = users(folder / "mine.safetensors")
    with pytest.raises(UsageError, match=SENTENCE):
        write_tensors(Path("mine.safetensors"), {"a": torch.ones(1)}, {})
    assert Path("mine.safetensors").read_bytes() == before


def test_an_empty_file_may_be_filled(base: Denoiser, folder: Path) -> None:
    Path("e.safetensors").touch()
    edit(base).save("e.safetensors")
    assert wrote(Path("e.safetensors")) == "TextMap"


def test_a_folder_beside_the_output_stays(folder: Path) -> None:
    for name in (".o.part", "o.part", ".o.trial"):
        (folder / name).mkdir()
        (folder / name / "mine").write_text("1")
    replace_folder(folder / "o", lambda part: (part / "new").write_text("2"))
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == [
        ".o.part/mine", ".o.trial/mine", "o.part/mine", "o/new",
    ]  # fmt: skip


def test_of_two_writers_one_wins_and_one_says_so(folder: Path) -> None:
    """Both pass the first check, then both write: nothing of either is left half."""
    gate, errors = threading.Barrier(2), []

    def write(part: Path) -> None:
        gate.wait(10)
        (part / "whole").write_text("x")

    def work() -> None:
        try:
            replace_folder(folder / "o", write)
        except UsageError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert errors == [f"{folder / 'o'}: exists already; give a new folder, or empty this one"]
    assert [p.name for p in folder.iterdir()] == ["o"]
    assert (folder / "o" / "whole").read_text() == "x"


def test_the_trial_of_a_path_leaves_nothing(folder: Path) -> None:
    (folder / ".e.trial").write_text("mine")
    writable(folder / "new" / "e")
    assert (folder / ".e.trial").read_text() == "mine"
    assert [p.name for p in folder.iterdir()] == [".e.trial"]
    with pytest.raises(EffaceError, match="cannot be written"):
        writable(folder / ("e" * 300))
