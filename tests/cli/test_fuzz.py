"""Random arguments, files and damage through the command line: one sentence and an exit code, never a traceback.

`make fuzz` runs it for longer: EFFACE_FUZZ is how many examples each test tries.
"""

import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from efface import cli
from efface.benchmarks.store import MARK, Store
from efface.core.concept import Concept
from efface.core.edit import Header, TextMap, load_edit
from efface.core.errors import EffaceError
from efface.core.lists import entries
from efface.models import HERE
from tests.report.made import info, save, scores

TRIES = int(os.environ.get("EFFACE_FUZZ", "25"))
fuzz = settings(
    max_examples=TRIES, deadline=None, derandomize=TRIES == 25, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
ODD = [
    "", " ", "nan", "inf", "-1", "1e400", "0", "٣", "²", "9" * 40, "x" * 300, "@", "@none", "a;b", '"', "--", "-", "..", "/", "\x00",
    "a\nb", ":cat:", "[red]",
]  # fmt: skip
TEXT = st.text(max_size=40) | st.sampled_from(ODD)
COMMANDS = [  # with one value each that is wrong, or of no use
    ["erase", "tiger", "--method", "{}"], ["erase", "tiger", "--ridge", "{}x"], ["erase", "tiger", "--kind", "x{}"],
    ["erase", "tiger", "--preserve", "tiger,{}"], ["erase", "tiger", "-o", "{}.txt"], ["erase", "tiger", "--seed", "x{}"],
    ["erase", "tiger", "--model", "none/{}/none"],
    ["erase", "tiger", "--device", "x{}"], ["generate", "a", "--device", "cpu:7{}"], ["generate", "a", "--device", "meta"],
    ["generate", "a", "--device", "hpu"], ["show", "."], ["bench", "-o", "edit.safetensors/{}"],
    ["erase", "@{}"], ["generate", "a", "-n", "x{}"], ["generate", "a", "--edit", "none{}"],
    ["generate", "a", "-o", "{}.txt"], ["generate", "a", "--guidance", "nan{}"], ["show", "none{}"], ["show", "{}"], ["runs", "none{}"],
    ["runs", "none://{}"], ["report", "none{}"], ["report", ".", "-o", "{}.csv"], ["compare", "none{}", "none"], ["evaluate", "none{}"],
    ["evaluate", "edit.safetensors", "--size", "x{}"], ["bake", "none{}", "-o", "o"], ["bake", "edit.safetensors", "-o", "{}.safetensors"],
    ["export", "edit.safetensors", "-o", "{}.txt"], ["export", "edit.safetensors", "-o", "l.safetensors", "--to", "x{}"],
    ["bench", "--methods", "none{}"], ["bench", "--methods", "uce:{}"], ["bench", "--concepts", "none{}"],
    ["bench", "--concepts", "many-x{}"], ["bench", "--seeds", "x{}"], ["bench", "--benchmark", "x{}"], ["bench", "--judge", "{}"],
    ["bench", "--measures", "x{}"],
    ["methods", "x{}"], ["benchmarks", "x{}"], ["x{}"], ["--x{}"], ["demo", "x{}"],
]  # fmt: skip


pytestmark = pytest.mark.usefixtures("untyped")  # a user's values meet no type checks of the tests


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with an edit."""
    monkeypatch.chdir(tmp_path)
    edit = TextMap(torch.ones(192, 1), torch.ones(192, 1) / 1000, Header("UCE", erase=(Concept("tiger", "cat"),)))
    edit.save("edit.safetensors")
    return tmp_path


def ends(*words: str) -> tuple[int, str]:
    """The exit code of a command and what it printed; it must be a sentence."""
    printed, argv = io.StringIO(), sys.argv
    sys.argv, cli.out.file, cli.err.file = ["efface", *words], printed, printed
    try:
        cli.main()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
    finally:
        sys.argv, cli.out.file, cli.err.file = argv, None, None
    said = printed.getvalue()
    assert code in (0, 1, 2), (words, code, said)
    assert "this is a bug" not in said, (words, said)
    assert "Traceback" not in said, (words, said)
    assert code == 0 or said.strip(), words
    return code, said


def refused(function: Callable[..., object], *given: object) -> str:
    """The sentence of a refusal; what all tests want to see where there is none."""
    try:
        function(*given)
    except EffaceError as error:
        return str(error)
    return f"erase: {given[0]}"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@settings(fuzz, max_examples=max(2, TRIES // 8))
@given(text=TEXT)
@example(text="")
def test_a_wrong_value_ends_in_a_sentence(folder: Path, command: list[str], text: str) -> None:
    code, said = ends(*(word.replace("{}", text) for word in command))
    assert code in (1, 2) or command[0] in ("show", "methods", "benchmarks"), (command, text, said)


@fuzz
@given(
    words=st.lists(
        TEXT | st.sampled_from(["erase", "show", "runs", "--to", "--help", "-o", "methods", "report"]), max_size=4
    )
)
def test_random_words_end_in_a_sentence(folder: Path, words: list[str]) -> None:
    if words[:1] not in (["demo"], ["doctor"], ["bench"]) and "tiger" not in words:
        assert ends(*(["show"] * (words[:1] == ["erase"])), *words)[0] in (0, 1, 2)


def changed(data: bytes, cuts: list[tuple[int, int]], length: int) -> bytes:
    """Bytes with some of them flipped, cut to a length in thousandths."""
    flipped = bytearray(data)
    for at, value in cuts:
        flipped[at * len(data) // 100_000] ^= value
    return bytes(flipped[: len(data) * length // 1000])


FLIPS = st.lists(st.tuples(st.integers(0, 99_999), st.integers(1, 255)), max_size=4)
LENGTHS = st.just(1000) | st.integers(0, 1000)


@fuzz
@given(
    cuts=FLIPS,
    length=LENGTHS,
    command=st.sampled_from([["show"], ["evaluate", "--size", "x"], ["export", "-o", "l.txt"]]),
)
def test_a_damaged_edit_ends_in_a_sentence_that_names_it(
    folder: Path, cuts: list[tuple[int, int]], length: int, command: list[str]
) -> None:
    whole = (folder / "edit.safetensors").read_bytes()
    (folder / "damaged.safetensors").write_bytes(changed(whole, cuts, length))
    ends(command[0], "damaged.safetensors", *command[1:])
    assert "damaged.safetensors" in refused(load_edit, folder / "damaged.safetensors")


PLAIN = st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5)
JSON = st.recursive(
    PLAIN, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3), max_leaves=6
)
KEYS = [
    "kind", "strength", "erase", "preserve", "settings", "method", "notes", "seconds", "memory", "effect", "format", "signature", "base",
    "",
]  # fmt: skip


@fuzz
@given(header=JSON, key=st.sampled_from(KEYS))
def test_a_header_of_anything_ends_in_a_sentence(folder: Path, header: object, key: str) -> None:
    edit = TextMap(torch.ones(192, 1), torch.ones(192, 1) / 1000, Header("UCE", erase=(Concept("tiger", "cat"),)))
    raw = {**edit.record(), key: header} if key else header
    save_file(edit.tensors(), folder / "odd.safetensors", metadata={"efface": json.dumps(raw)})
    ends("show", "odd.safetensors")
    ends("evaluate", "odd.safetensors", "--size", "x")
    assert "odd.safetensors" in refused(load_edit, folder / "odd.safetensors")


WRITTEN = st.sampled_from(
    [b"", b"[" * 5000, b"5", b"{}", b'{"cell": {}}', b'{"picture": 5}', b'{"format": 2}', b"\x89PNG\r\n\x1a\n"]
)
DAMAGE = st.tuples(FLIPS, LENGTHS).map(lambda how: lambda data: changed(data, *how)) | (
    WRITTEN | JSON.map(lambda value: json.dumps(value).encode())
).map(lambda data: lambda _: data)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a file of each kind."""
    where = tmp_path_factory.mktemp("whole") / "store"
    store, cell = Store(where), {"model": "m", "edit": "", "seed": 1}
    store.put_picture(cell, np.zeros((8, 8, 3), np.uint8))
    store.put_error({**cell, "seed": 2}, "RuntimeError: no")
    store.put_scores("d", [{"picture": "a", "top": []}, {"picture": "b", "error": "no"}])
    store.put_features("t", {"a": np.zeros(3)})
    save_file({"left": torch.zeros(3)}, where.parent / "e.safetensors")
    store.put_edit("a" * 32, where.parent / "e.safetensors")
    (where / "claims").mkdir()
    (where / "claims" / f"{'b' * 32}.json").write_text(json.dumps({"host": "elsewhere", "pid": 1, "at": 4e9}))
    return where


@fuzz
@given(damage=DAMAGE, which=st.integers(0, 6))
def test_a_damaged_store_ends_in_a_sentence_and_is_repaired(
    folder: Path, stored: Path, damage: Callable[[bytes], bytes], which: int
) -> None:
    shutil.rmtree("store", ignore_errors=True)
    shutil.copytree(stored, "store")
    path = sorted(p for p in (folder / "store").rglob("*") if p.is_file())[which]
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    found, said = ends("runs", "store", "--verify")
    for command in (["--remove", ""], ["--retry"], []):
        ends("runs", "store", *command)
    if path.name == MARK and b'"format": 2' in path.read_bytes():
        assert "upgrade" in said
        return
    assert (found == 1) == (path.name in said or MARK in said)
    for command in (["--repair"], ["--verify"], ["--compact", "--retry"]):
        assert ends("runs", "store", *command)[0] == 0


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run."""
    return save(tmp_path_factory.mktemp("run") / "run", info(), scores())


@fuzz
@given(damage=DAMAGE, name=st.sampled_from(["run.json", "scores.jsonl"]))
def test_a_damaged_run_ends_in_a_sentence(
    folder: Path, measured: Path, damage: Callable[[bytes], bytes], name: str
) -> None:
    shutil.rmtree("run", ignore_errors=True)
    shutil.copytree(measured, "run")
    (folder / "run" / name).write_bytes(damage((measured / name).read_bytes()))
    code, said = ends("report", "run", "-o", "page.html")
    assert code == 0 or "run/" in said


@fuzz
@given(damage=DAMAGE)
def test_a_damaged_index_of_a_model_ends_in_a_sentence(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    (folder / "model").mkdir(exist_ok=True)
    whole = (HERE / "moji" / "model_index.json").read_bytes()
    (folder / "model" / "model_index.json").write_bytes(damage(whole))
    assert ends("erase", "tiger", "--model", "model")[0] in (1, 2)


HEADS = ["", "name,to\n", "name\tto\n", "kind,concept\n"]


@fuzz
@given(text=TEXT, name=st.sampled_from(["list.txt", "list.csv", "list.tsv"]), head=st.sampled_from(HEADS))
def test_a_list_of_anything_is_read_or_refused(folder: Path, text: str, name: str, head: str) -> None:
    (folder / name).write_text(head + text, encoding="utf-8", errors="ignore")
    for words in (text, f"@{folder / name}"):
        assert refused(entries, words, "erase").startswith(("erase: ", f"{folder / name}"))
