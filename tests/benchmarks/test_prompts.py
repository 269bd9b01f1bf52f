"""Third parties' prompts: every format and every way a file can be wrong; and the lists of names, byte by byte."""

import json
import unicodedata
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from tiny_prompts import write

from efface.benchmarks.prompts import digest, lists, located, names, read_prompts, templated
from efface.benchmarks.spec import PromptFile
from efface.core.errors import UsageError

FILE = PromptFile(
    {"prompt": ("prompt", "caption"), "seed": ("evaluation_seed", "seed"), "guidance": ("evaluation_guidance",)},
    "example.org/p.csv",
)
ROWS = [
    {"prompt": 'an "old" man,\nin two lines', "evaluation_seed": 4290749014, "evaluation_guidance": 7},
    {"prompt": "Chaïm", "evaluation_seed": 2**63 - 1, "evaluation_guidance": 7.5},
    {"prompt": "", "evaluation_seed": 0, "evaluation_guidance": 255},  # as one of I2P's is
]
MEANT = [
    {"prompt": 'an "old" man,\nin two lines', "seed": 4290749014, "guidance": 7.0},
    {"prompt": "Chaïm", "seed": 9223372036854775807, "guidance": 7.5},
    {"prompt": "", "seed": 0, "guidance": 255.0},
]


def put(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def test_every_format_says_the_same(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row) + "\n\n" for row in ROWS)
    files = [
        write(tmp_path / "a.csv", ROWS),
        write(tmp_path / "a.tsv", ROWS, delimiter="\t"),
        write(tmp_path / "unix.CSV", ROWS, lineterminator="\n"),
        put(tmp_path / "a.json", json.dumps(ROWS, ensure_ascii=False)),
        put(tmp_path / "a.jsonl", lines),
    ]
    for path in files:
        got = read_prompts(path, FILE)
        assert got == MEANT, path.name
        assert [(type(row["seed"]), type(row["guidance"])) for row in got] == [(int, float)] * 3
    assert len({digest(path) for path in files}) == 5


def test_a_mark_before_the_first_column_is_no_part_of_its_name(tmp_path: Path) -> None:
    path = put(tmp_path / "bom.csv", "prompt,seed\na,1\n", "utf-8-sig")
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    assert read_prompts(path, PromptFile({"prompt": ("prompt",), "seed": ("seed",)}, "x")) == [
        {"prompt": "a", "seed": 1}
    ]


def test_the_first_known_column_counts_and_others_do_not(tmp_path: Path) -> None:
    path = put(tmp_path / "p.csv", "seed,caption,prompt,evaluation_seed,more\n1,no,yes,2,x\n")
    file = PromptFile({"prompt": ("prompt", "caption"), "seed": ("sd_seed", "evaluation_seed", "seed")}, "x")
    assert read_prompts(path, file) == [{"prompt": "yes", "seed": 2}]


def test_seeds_that_pandas_wrote_as_floats_are_whole(tmp_path: Path) -> None:
    path = put(tmp_path / "p.csv", "prompt,seed\na,7.0\nb, 4261553411.0 \nc,10.0\n")
    assert [r["seed"] for r in read_prompts(path, PromptFile({"seed": ("seed",)}, "x"))] == [7, 4261553411, 10]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.parquet", "", r"p\.parquet: expected a file of \.csv, \.tsv, \.json, \.jsonl, got '\.parquet'; convert it to one of them"),
        ("p.csv", "", r"p\.csv: expected prompts, got an empty file; get it anew from example\.org/p\.csv"),
        ("p.csv", "prompt,evaluation_seed,evaluation_guidance\n", r"expected prompts, got an empty file"),
        ("p.json", "[]", r"expected prompts, got an empty file"),
        ("p.json", '{"prompt": 1}', r"expected a list of objects, one for each prompt; get it anew"),
        ("p.json", '["a"]', r"expected a list of objects"),
        ("p.json", "[", r"p\.json: cannot be read \(.*\); get it anew from example\.org/p\.csv"),
        (
            "p.csv", "text,evaluation_seed\na,1\n",
            r"p\.csv: expected a column 'prompt' or 'caption' for the prompt, got 'text', 'evaluation_seed'; rename the column",
        ),
        (
            "p.csv", "prompt,seed,evaluation_guidance\na,1,7\nb,two,7\n",
            r"p\.csv: row 2: expected a whole number from 0 to 2\^63 - 1 as seed, got 'two'; correct the row",
        ),
        ("p.csv", "prompt,seed,evaluation_guidance\na,-1,7\n", r"row 1: expected a whole number from 0 to 2\^63 - 1 as seed, got '-1'"),
        ("p.csv", f"prompt,seed,evaluation_guidance\na,{2**63},7\n", r"row 1: expected a whole number .* got '9223372036854775808'"),
        ("p.csv", "prompt,seed,evaluation_guidance\na,1.5,7\n", r"row 1: expected a whole number .* got '1\.5'"),
        ("p.csv", "prompt,seed,evaluation_guidance\na,1,7\nb,2,high\n", r"row 2: expected a number as guidance, got 'high'"),
        ("p.csv", "prompt,seed,evaluation_guidance\na,1,7\nb,2\n", r"p\.csv: row 2 has no guidance; complete the row"),
    ],
)  # fmt: skip
def test_a_bad_file_is_a_sentence(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_prompts(put(tmp_path / name, text), FILE)


def test_a_missing_file_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.csv: no such file of prompts; get it from example\.org/p\.csv"):
        read_prompts(tmp_path / "none.csv", FILE)


def test_bytes_that_are_no_utf8_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"p\.csv: cannot be read \(.*utf-8"):
        read_prompts(put(tmp_path / "p.csv", "prompt,seed\nChaïm,1\n", "latin-1"), FILE)


def test_a_part_of_a_published_file_is_not_taken_for_it(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", ROWS)
    assert len(read_prompts(path, PromptFile(FILE.columns, "x", rows=3))) == 3
    with pytest.raises(
        UsageError, match=r"expected the 4 rows of the published file, got 3; get the whole file .* --prompts"
    ):
        read_prompts(path, PromptFile(FILE.columns, "x", rows=4))
    with pytest.raises(UsageError, match=r"expected the 2 rows of the published file, got 3"):
        read_prompts(path, PromptFile(FILE.columns, "x", rows=2))


def test_a_digest_is_of_the_bytes(tmp_path: Path) -> None:
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc", FIPS 180-2
    assert digest(put(tmp_path / "p", "abc")) == known


def test_a_path_stays_and_a_hub_address_becomes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repo: str, file: str, *, repo_type: str) -> str:
        asked.append((repo, file, repo_type))
        if file == "none.csv":
            raise LocalEntryNotFoundError("offline")
        return str(tmp_path / "got")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert located("a/b.csv") == located(Path("a/b.csv")) == Path("a/b.csv")
    assert asked == []
    assert located("hf:datasets/AIML-TUDA/i2p/a/i2p.csv") == tmp_path / "got"
    assert asked == [("AIML-TUDA/i2p", "a/i2p.csv", "dataset")]
    with pytest.raises(UsageError, match=r"'hf:datasets/o/n/none.csv' cannot be had from the Hub; check the address"):
        located("hf:datasets/o/n/none.csv")
    for wrong in ("hf:AIML-TUDA/i2p/i2p.csv", "hf:datasets/i2p/i2p.csv", "hf:models/o/n/f"):
        with pytest.raises(UsageError, match=r"expected hf:datasets/OWNER/NAME/FILE, got 'hf:"):
            located(wrong)


def test_lists_have_their_published_lengths() -> None:
    assert {key: len(names(key)) for key in lists()} == {
        "celebrities-erased": 50, "celebrities-kept": 100, "artists-erased": 100, "artists-kept": 100, "characters": 64,
        "unlearncanvas-styles": 51, "unlearncanvas-objects": 20, "imagenette": 10, "styles-advanchor": 9, "artists-five": 5,
    }  # fmt: skip
    with pytest.raises(UsageError, match=r"names: unknown list 'artist'; did you mean .*'artists-five'"):
        names("artist")


def test_names_are_one_each_and_no_list_holds_another_s() -> None:
    for key in lists():
        assert len(set(names(key))) == len(names(key)), key
        assert all(n == n.strip() and n for n in names(key)), key
        assert all(unicodedata.is_normalized("NFC", n) for n in names(key)), key
    for one, other in [("celebrities-erased", "celebrities-kept"), ("artists-erased", "artists-kept")]:
        assert not set(names(one)) & set(names(other))
    assert "Johnny Cash" in names("celebrities-kept")  # in the prompts, not in the paper's table
    assert not {n for n in names("characters") if n in names("celebrities-kept")}


def test_names_keep_what_changes_tokens() -> None:
    assert {"VanGogh", "KeithHaring", "Jackson Pollock"} <= set(names("styles-advanchor"))
    assert "Van Gogh" not in names("styles-advanchor")
    assert {"chain saw", "English springer", "cassette player", "French horn"} <= set(names("imagenette"))
    accented = [n for key in ("artists-erased", "artists-kept") for n in names(key) if not n.isascii()]
    assert accented == ["Briton Rivière", "Chaïm Soutine", "Adolf Hirémy-Hirschl"]
    assert {"Van_Gogh", "Seed_Images", "Ukiyoe"} <= set(names("unlearncanvas-styles"))
    assert names("artists-five")[-1] == "Ajin: Demi Human"
    assert {"A.J.Casson", "C. R. W. Nevinson"} <= {*names("artists-kept"), *names("artists-erased")}


def test_templates_go_round_seeds_first_then_words_then_names() -> None:
    cells = templated("erase", ["A", "B"], ["{} x", "y {}"], [1, 2], "who", "g")
    assert [(c.concept, c.prompt, c.seed) for c in cells] == [
        ("A", "A x", 1), ("A", "A x", 2), ("A", "y A", 1), ("A", "y A", 2),
        ("B", "B x", 1), ("B", "B x", 2), ("B", "y B", 1), ("B", "y B", 2),
    ]  # fmt: skip
    assert {(c.role, c.judge, c.group) for c in cells} == {("erase", "who", "g")}
