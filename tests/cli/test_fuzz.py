"""Random arguments, files and damage through the command line: one sentence and an exit code, never a traceback.

`make fuzz` runs it for longer: EFFACE_FUZZ is how many examples each test tries.
"""

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

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
    ["erase", "tiger", "--model", "none/{}/none"], ["erase", "@{}"], ["generate", "a", "-n", "x{}"], ["generate", "a", "--edit", "none{}"],
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


@fuzz
@given(cuts=FLIPS, length=LENGTHS, which=st.integers(0, 2), mark=st.binary(max_size=30) | st.just(b'{"format": 1}'))
def test_a_damaged_store_ends_in_a_sentence_and_is_repaired(
    folder: Path, cuts: list[tuple[int, int]], length: int, which: int, mark: bytes
) -> None:
    where = folder / "store"
    (where / MARK).unlink(missing_ok=True)
    (where / MARK).parent.mkdir(exist_ok=True)
    (where / MARK).write_bytes(b'{"format": 1}')
    store = Store(where)
    store.put_scores("d", [{"picture": "a", "top": []}, {"picture": "b", "top": []}])
    store.put_error({"model": "m", "edit": "", "seed": 1}, "RuntimeError: no")
    files = sorted(p for p in where.rglob("*") if p.is_file() and p.name != MARK)
    path = files[which % len(files)]
    path.write_bytes(changed(path.read_bytes(), cuts, length))
    (where / MARK).write_bytes(mark)
    for command in (["--verify"], ["--repair"], ["--retry", "--compact"], []):
        assert ends("runs", "store", *command)[0] in (0, 1, 2)


HEADS = ["", "name,to\n", "name\tto\n", "kind,concept\n"]


@fuzz
@given(text=TEXT, name=st.sampled_from(["list.txt", "list.csv", "list.tsv"]), head=st.sampled_from(HEADS))
def test_a_list_of_anything_is_read_or_refused(folder: Path, text: str, name: str, head: str) -> None:
    (folder / name).write_text(head + text, encoding="utf-8", errors="ignore")
    for words in (text, f"@{folder / name}"):
        assert refused(entries, words, "erase").startswith(("erase: ", f"{folder / name}"))
