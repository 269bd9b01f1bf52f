"""Files: whole or not at all, and a sentence for each that cannot be read."""

import errno
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from efface.core import io
from efface.core.errors import EffaceError, UsageError
from efface.core.files import replace_file, write_text
from efface.core.io import KEY, read_tensors, write_tensors

ONE = {"a": torch.arange(6.0).view(2, 3)}


def test_tensors_and_header_come_back_as_they_were(tmp_path: Path) -> None:
    given = {
        **ONE,
        "turned": torch.arange(6.0).view(2, 3).T,
        "same": ONE["a"],
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    write_tensors(tmp_path / "x.safetensors", given, {"é": [1, "ε"]})
    tensors, header = read_tensors(tmp_path / "x.safetensors")
    assert header == {"é": [1, "ε"]}
    assert tensors.keys() == given.keys()
    assert all(torch.equal(tensors[k], given[k]) and tensors[k].dtype == given[k].dtype for k in given)


def test_folders_on_the_way_are_made_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "x.txt", "ε\n")
    assert (tmp_path / "a" / "b" / "x.txt").read_text(encoding="utf-8") == "ε\n"
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["x.txt"]


def test_files_get_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_text(tmp_path / "x.txt", "")
    assert (tmp_path / "x.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x.safetensors"
    write_tensors(target, ONE, {"n": 1})

    def fail(tensors: object, part: Path, metadata: object) -> None:
        Path(part).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(io, "save_file", fail)
    with pytest.raises(EffaceError) as caught:
        write_tensors(target, ONE, {"n": 2})
    assert (
        str(caught.value)
        == f"{target}: cannot be written: no space left on the disk; free some or write elsewhere (nothing was changed)"
    )
    assert read_tensors(target)[1] == {"n": 1}
    assert list(tmp_path.iterdir()) == [target]


def test_an_interrupt_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "x.txt"
    write_text(target, "old")

    def interrupted(part: Path) -> None:
        part.write_text("new, ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(target, interrupted)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_in_the_place_of_a_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EffaceError, match=r"x\.txt: cannot be written: .*/file is a file, not a folder; give"):
        write_text(tmp_path / "file" / "x.txt", "")


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_tensors(tmp_path / "no.safetensors")
    assert (
        str(caught.value)
        == f"{tmp_path}/no.safetensors: no such file; give the path of a .safetensors file that efface wrote"
    )


def _pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": 1}))


def _checkpoint(path: Path) -> None:
    torch.save(ONE, path)


@pytest.mark.parametrize("write", [_pickle, _checkpoint])
def test_a_pickle_is_refused_unopened(tmp_path: Path, write) -> None:  # noqa: ANN001
    path = tmp_path / "x.safetensors"
    write(path)
    with pytest.raises(UsageError) as caught:
        read_tensors(path)
    assert (
        str(caught.value)
        == f"{path}: this is a pickle (.pt, .ckpt, .bin), which can run code; efface reads safetensors only"
    )


@pytest.mark.parametrize("keep", [0, 1, 7, 20, -1])
def test_a_truncated_file_is_one_sentence(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, ONE, {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(EffaceError) as caught:
        read_tensors(path)
    assert str(caught.value).startswith(f"{path}: damaged, or not a safetensors file (")
    assert str(caught.value).endswith("); copy or make it again")
    assert not isinstance(caught.value, UsageError)


def test_a_foreign_safetensors_file_is_a_usage_error(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(ONE, path)
    with pytest.raises(UsageError) as caught:
        read_tensors(path)
    assert (
        str(caught.value) == f"{path}: expected an edit of efface, got a safetensors file without the header 'efface'; "
        "give one that `efface erase` wrote"
    )


def test_a_header_that_is_no_json_is_a_damaged_file(tmp_path: Path) -> None:
    for header in ("{", "[]", "3", "null"):
        save_file(ONE, tmp_path / "x.safetensors", metadata={KEY: header})
        with pytest.raises(EffaceError, match="damaged"):
            read_tensors(tmp_path / "x.safetensors")


def test_a_header_length_that_looks_like_a_pickle_is_read_all_the_same(tmp_path: Path) -> None:
    # the file begins with the length of its header, a multiple of 8: every thirty-second file begins with 0x80, as pickles do
    for padding in range(300):
        blob = save(ONE, metadata={KEY: json.dumps({"model": "m" * padding})})
        if blob[0] == 0x80:
            break
    assert blob[0] == 0x80
    (tmp_path / "x.safetensors").write_bytes(blob)
    assert read_tensors(tmp_path / "x.safetensors")[1] == {"model": "m" * padding}
