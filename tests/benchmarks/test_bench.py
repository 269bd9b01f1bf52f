"""A sweep: everything once, the same bytes however it was interrupted, and a leaderboard counted by hand."""

import csv
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

import efface
from efface.benchmarks.bench import SIZES, Fit, bench
from efface.core.denoiser import Denoiser
from efface.core.errors import UsageError
from efface.core.io import read_tensors
from efface.report.leaderboard import write_leaderboard


@pytest.fixture(scope="module")
def moji() -> Denoiser:
    return efface.load("moji")


def test_a_fit_is_named_by_what_it_is(moji: Denoiser) -> None:
    one = Fit("esd-x", "tiger")
    assert one.name(moji) == Fit("esd", "tiger").name(moji)  # the preset is the default
    others = [Fit("esd-u", "tiger"), Fit("esd-x", "lion"), Fit("esd-x", "tiger", seed=1), Fit("uce", "tiger")]
    assert len({f.name(moji) for f in (one, *others)}) == 5
    assert set(one.preserve) == {"cat", "lion", "leopard"}
    assert [c.kind for c in Fit("uce", "noto").erase] == ["style"]


@pytest.mark.slow
def test_a_sweep_shares_the_unedited_pictures_and_makes_nothing_twice(
    moji: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, images = [], Denoiser.images

    def counted(self: Denoiser, *given, **settings):  # noqa: ANN002, ANN003, ANN202
        drawn.append(1)
        return images(self, *given, **settings)

    monkeypatch.setattr(Denoiser, "images", counted)
    rows = bench(moji, ["uce", "uce-2025"], ["tiger"], tmp_path, size="smoke")
    cells = SIZES["smoke"]["pictures"] + SIZES["smoke"]["others"] * (SIZES["smoke"]["near"] + SIZES["smoke"]["far"])
    assert len(rows) == 2 * 3 * cells  # two scores of three models
    assert len(drawn) == 3
    again = bench(moji, ["uce", "uce-2025"], ["tiger"], tmp_path, size="smoke")
    assert again == rows
    assert len(drawn) == 3
    bench(moji, ["uce", "uce-2023"], ["tiger"], tmp_path, size="smoke")
    assert len(drawn) == 4  # one new edit; the unedited model's and the old edit's pictures serve again
    page = write_leaderboard(tmp_path).read_text()
    assert "uce-2023" in page
    assert (tmp_path / "tiger" / "report.html").is_file()
    assert read_tensors(next((tmp_path / "store" / "edits").rglob("*.safetensors")))[1]["erase"][0]["name"] == "tiger"


class Page(HTMLParser):
    """Text of a page by tag, and the tags left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str | None] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.links.append(dict(attrs)["href"])
        if tag not in ("meta", "img", "path", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Closed at once."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def sweep(folder: Path) -> Path:
    """Two methods, two concepts, counted by hand: `a` erases 3 of 4 and keeps all but one neighbour, `b` failed to judge one."""
    found = {
        ("base", "tiger", "erase"): [1, 1], ("base", "rose", "erase"): [1, 1],
        ("a", "tiger", "erase"): [0, 0], ("a", "rose", "erase"): [0, 1],
        ("b", "tiger", "erase"): [1, 1], ("b", "rose", "erase"): [1, None],
    }  # fmt: skip
    rows = []
    for (edit, concept, role), values in found.items():
        for r, given in ((role, values), ("neighbour", [1, 0] if edit == "a" else [1, 1]), ("distant", [1, 1])):
            for seed, value in enumerate(given):
                row = {
                    "erased": concept,
                    "edit": edit,
                    "role": r,
                    "concept": f"{concept}-{r}",
                    "seed": seed,
                    "value": value,
                }
                rows += [{**row, "score": score} for score in ("top1", "top5")]
    edits = [
        {"method": m, "erased": c, "seconds": s, "bytes": 1000 * s, "fingerprint": f"{m}{c}"}
        for m, s in (("a", 1.0), ("b", 3.0)) for c in ("tiger", "rose")
    ]  # fmt: skip
    about = {
        "model": "moji",
        "fingerprint": "f",
        "version": "0",
        "size": "smoke",
        "commands": ["efface bench <x>"],
        "edits": edits,
    }
    (folder / "scores.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "bench.json").write_text(json.dumps(about))
    return folder


def test_the_leaderboard_is_counted_by_hand(tmp_path: Path) -> None:
    text = write_leaderboard(sweep(tmp_path)).read_text()
    page = Page(text)
    assert page.open == []
    assert page.links == ["tiger/report.html", "rose/report.html"]
    assert "efface bench &lt;x&gt;" in text
    assert "1 pictures could not be made or judged" in text
    base, a, b = csv.DictReader((tmp_path / "leaderboard.csv").read_text().splitlines())
    assert [base["method"], a["method"], b["method"]] == ["base", "a", "b"]
    assert [float(a[k]) for k in ("ESR-1", "PSR-1 neighbours", "PSR-1 distant")] == [0.75, 0.5, 1.0]
    assert (b["ESR-1"], b["ESR-1 n"]) == ("0.0", "3")
    assert float(a["harmonic mean"]) == round(3 / (1 / 0.75 + 1 / 0.5 + 1), 4)
    assert float(b["harmonic mean"]) == 0.0
    assert (a["fit seconds"], a["bytes"], base["bytes"]) == ("1.0", "1000", "")
    assert (
        (tmp_path / "leaderboard.md")
        .read_text()
        .splitlines()[3]
        .startswith("| a | 75.0 [30, 95] | 75.0 [30, 95] | 50.0 ")
    )


def test_a_folder_without_a_sweep_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no bench.json; give a folder `efface bench` wrote"):
        write_leaderboard(tmp_path)
