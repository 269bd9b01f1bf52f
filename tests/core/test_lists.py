"""The grammar of the user's lists: commas, files of lines, tables; what is none is refused with its row."""

from pathlib import Path

import pytest

from efface.core.errors import UsageError
from efface.core.lists import Entry, entries, listed, quoted


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("tiger", ["tiger"]),
        ("tiger, lion ,rose", ["tiger", "lion", "rose"]),
        ("tiger,,lion,", ["tiger", "lion"]),
        ('"snow, ice",rose', ["snow, ice", "rose"]),
        ("Van Gogh", ["Van Gogh"]),
        ("@names.txt", ["tiger", "snow, ice"]),
        ("@names.csv", ["tiger", "snow, ice"]),
        ("@names.tsv", ["tiger", "lion"]),
        ("@windows.txt", ["tiger", "snow, ice"]),  # a table by its first line, whatever its name
    ],
)
def test_lists(text: str, names: list[str], folder: Path) -> None:
    (folder / "names.txt").write_text("# of cats\n\n tiger \nsnow, ice\n", encoding="utf-8-sig")
    (folder / "names.csv").write_text('seed,concept\n1,tiger\n\n# not these\n2,"snow, ice"\n')
    (folder / "names.tsv").write_text("prompt\tseed\ntiger\t1\nlion\t2\n")
    (folder / "windows.txt").write_bytes('\ufeffName,To\r\ntiger,cat\r\n"snow, ice",\r\n'.encode())
    assert listed(text, "--preserve") == names


def test_a_table_says_target_kind_other_words_and_what_to_keep(folder: Path) -> None:
    (folder / "list.csv").write_text(
        'name,to,kind,synonyms,preserve\ntiger,cat,,"big cat|tigress",lion | leopard\nAnsel Adams,"",style,,\n'
    )
    assert entries("@list.csv", "erase") == [
        Entry("tiger", "cat", "", ("big cat", "tigress"), ("lion", "leopard")),
        Entry("Ansel Adams", "", "style"),
    ]
    (folder / "prompts.csv").write_text("concept,prompt\ntiger,a tiger in the snow\n")
    assert listed("@prompts.csv", "generate", "prompt") == ["a tiger in the snow"]
    assert entries("@prompts.csv", "erase") == [Entry("tiger")]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a;b", "expected names separated by commas, got 'a;b'; write a,b,c or give @FILE"),
        ('"a,b', "expected names separated by commas"),
        ("@none.txt", "no such file 'none.txt'"),
        ("@empty.txt", "expected names in 'empty.txt', got none"),
        ("@columns.csv", "expected a column 'name', 'concept', 'prompt' in 'columns.csv', got ['text', 'seed']"),
        ("@bytes.txt", "expected text in UTF-8"),
        ("@semicolons.txt", "semicolons.txt, line 2: expected one name, got 'tiger;cat'"),
        ("@short.csv", "short.csv, row 2: expected 2 fields, got 1: 'rose'"),
        ("@long.csv", "row 1: expected 2 fields, got 3: 'snow,ice,cat'; quote a field that contains ','"),
        ("@nameless.csv", "row 2: expected a name, got none; fill it in or delete the row"),
        ("@kinds.csv", "row 1: unknown kind 'animal'"),
        ("@head.csv", "expected rows below the header of 'head.csv', got none"),
        ("@open.csv", "expected a table, got a broken row"),
    ],
)
def test_lists_that_are_none_are_refused(text: str, sentence: str, folder: Path) -> None:
    files = {
        "empty.txt": "# nothing\n", "columns.csv": "text,seed\ntiger,1\n", "semicolons.txt": "lion\ntiger;cat\n",
        "short.csv": "name,to\ntiger,cat\nrose\n", "long.csv": "name,to\nsnow,ice,cat\n", "nameless.csv": "name,to\ntiger,cat\n,cat\n",
        "kinds.csv": "name,kind\ntiger,animal\n", "head.csv": "name,to\n", "open.csv": 'name,to\n"tiger,cat\n',
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_text(content)
    (folder / "bytes.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(UsageError) as error:
        entries(text, "--preserve")
    assert sentence in str(error.value)


@pytest.mark.parametrize("name", ["tiger", "snow, ice", "Van Gogh"])
def test_a_quoted_name_reads_as_itself(name: str) -> None:
    assert listed(quoted(name), "erase") == [name]
