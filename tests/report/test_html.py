"""The report of a small run folder whose every number is counted by hand."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from efface.core.errors import EffaceError, UsageError
from efface.report.html import COLUMNS, NO_ATTACK, write_report
from efface.report.tables import percent, read_run, verdict

# top-1 of each seed, in order; None: the detector failed. top-5 is top-1 with the first miss turned into a hit.
FOUND = {
    ("base", "tiger"): [1, 1, 1, 1],
    ("uce", "tiger"): [0, 0, 1, None],
    ("base", "lion"): [1, 1, 1, 1],
    ("uce", "lion"): [1, 1, 1, 1],
    ("base", "leopard"): [1, 1, 1, 0],
    ("uce", "leopard"): [0, 0, 0, 1],
    ("base", "rose"): [1, 1, 1, 1],
    ("uce", "rose"): [1, 1, 1, None],
}
ROLES = {"tiger": "erase", "lion": "neighbour", "leopard": "neighbour", "rose": "distant"}


def scores():
    for (edit, concept), found in FOUND.items():
        first_miss = found.index(0) if 0 in found else None
        for seed, value in enumerate(found):
            name = f"images/{edit}/{concept}{seed}.png"
            row = {"edit": edit, "concept": concept, "role": ROLES[concept], "prompt": f"a {concept}", "seed": seed}
            row |= {"image": name, "seen": concept if value else "cat"}
            yield row | {"score": "top1", "value": value}
            yield row | {"score": "top5", "value": 1 if seed == first_miss else value}


def info():
    edit = {"id": "uce", "method": "UCE", "settings": {"ridge": 0.5}, "seconds": 0.4, "bytes": 123456}
    return {
        "title": "Erasing tiger",
        "model": "moji",
        "fingerprint": "3f9a",
        "created": "2025-11-22T01:20:00+00:00",
        "version": "0.1.0",
        "steps": 20,
        "guidance": 3.0,
        "seeds": 4,
        "concept": {"name": "tiger", "kind": "object", "target": "cat"},
        "edits": [edit | {"file": "uce.safetensors", "preserve": ["lion"]}],
        "detector": {"name": "moji-concept", "held_out_top1": 0.98},
        "commands": ["efface erase moji tiger --to cat"],
        "seconds": 61.2,
    }


def save(folder, about, rows):
    rows = list(rows)
    for i, row in enumerate(rows):
        path = folder / row["image"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (i % 256, 90, 120)).save(path)
    (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")
    (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "run", info(), scores())


class Page(HTMLParser):
    """Opening tags with attributes, text, and the tags left open."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "path", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def read(folder):
    return Page(write_report(folder).read_text(encoding="utf-8"))


def table(text, css):
    """Rows of cells as plain text, small print after a slash."""
    inside = re.search(f'<table class="{css}">(.*?)</table>', text)[1]
    rows = re.findall("<tr>(.*?)</tr>", inside)
    plain = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
    clean = [[re.sub("<[^>]+>", "", re.sub("<small>", "/", cell)) for cell in row] for row in plain]
    return [[cell.replace("\u00a0", " ").replace("&ndash;", "-") for cell in row] for row in clean]


def test_rates_leave_out_what_the_detector_could_not_judge(folder):
    run = read_run(folder)
    esr1, esr5 = run.rate("uce", "erase", "top1"), run.rate("uce", "erase", "top5")
    psr1, psr5 = run.rate("uce", "neighbour", "top1"), run.rate("uce", "neighbour", "top5")
    assert [(r.hits, r.n, r.failed) for r in (esr1, esr5, psr1, psr5)] == [(2, 3, 1), (1, 3, 1), (5, 8, 0), (6, 8, 0)]
    assert run.rate("base", "erase", "top1").hits == 0
    assert run.rate("uce", "distant", "top1").value == 1
    assert run.seen_instead("uce") == {"cat": 2}


def test_a_cell_that_failed_is_shown_without_a_picture_and_never_counted(tmp_path):
    rows = list(scores())
    folder = save(tmp_path / "run", info(), rows)
    for row in rows:
        if row["value"] is None:
            row["image"] = ""
    (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    text = write_report(folder).read_text(encoding="utf-8")
    assert text.count("? not drawn") == 2  # one of tiger, one of rose
    assert read_run(folder).rate("uce", "erase", "top1").failed == 1
    rows[0]["image"] = ""  # a judged row must have its picture
    (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(UsageError, match="expected a picture"):
        read_run(folder)


def test_a_loss_is_chance_unless_the_pairs_say_otherwise(tmp_path):
    """Six of six changed pairs lost: p = 2 / 2⁶ = 3 %; five of five: 6 %."""
    base, edit = [1] * 6 + [1] * 6, [0] * 6 + [1] * 6
    rows = [
        {"edit": e, "concept": c, "role": r, "prompt": f"a {c}", "seed": i, "image": f"{e}{c}{i}.png", "seen": "", "value": v, "score": k}
        for e, found in (("base", base), ("uce", edit))
        for c, r in (("tiger", "erase"), ("lion", "neighbour")) for i, v in enumerate(found) for k in ("top1", "top5")
    ]  # fmt: skip
    says = verdict(read_run(save(tmp_path / "six", info(), rows)), "uce").replace("\u00a0", " ")
    assert "lion appears less often than before (50 % against 100 %)" in says
    for row in rows:
        if row["edit"] == "uce" and row["seed"] == 5:
            row["value"] = 1
    says = verdict(read_run(save(tmp_path / "five", info(), rows)), "uce").replace("\u00a0", " ")
    assert "lion appears less often than before (58 % against 100 %, which may be chance)" in says


def test_score_table(folder):
    head, base, uce = table(write_report(folder).read_text(encoding="utf-8"), "scores")
    assert head[1:4] == ["ESR-1/erased", "ESR-5/erased", "PSR-1/neighbours"]
    # Wilson for 0 of 4: 0 to z²/(4 + z²) = 49 %; for 2 of 3: 57.3 ± 36.5 %
    assert base == [
        "unedited",
        *["0 %/0-49 %/n = 4"] * 2,
        "88 %/53-98 %/n = 8",
        "100 %/68-100 %/n = 8",
        *["100 %/51-100 %/n = 4"] * 2,
        "-",
        "-",
    ]
    assert uce[:4] == ["UCE", "67 %/21-94 %/n = 3/1 not judged", "33 %/6-79 %/n = 3/1 not judged", "63 %/31-86 %/n = 8"]
    assert uce[7:] == ["0.4 s", "123 kB"]


def test_verdict_says_what_was_counted_and_never_safe(folder):
    said = verdict(read_run(folder), "uce").replace("\u00a0", " ")
    assert said == (
        "tiger does not appear in 2 of 3 pictures asked for by name (unedited model: absent from 0 of 4); "
        "lion and leopard appear less often than before (63 % against 88 %, which may be chance), "
        "leopard suffers most (1 of 4 against 3 of 4); rose appears about as often as before (100 % against 100 %); "
        "left out because the detector could not judge them: 2."
    )
    text = write_report(folder).read_text(encoding="utf-8")
    assert NO_ATTACK in text
    assert not re.search(r"\bsafe\b", text)


def test_verdict_of_an_edit_that_fails_says_so(folder):
    rows = [row | ({"value": 1, "seen": "tiger"} if row["concept"] == "tiger" else {}) for row in scores()]
    assert verdict(read_run(save(folder, info(), rows)), "uce").startswith(
        "tiger still appears in 4 of 4 pictures asked for by name (unedited model: in 4 of 4); "
    )


def test_nothing_judged_is_no_success(folder):
    rows = [row | ({"value": None} if row["concept"] == "tiger" else {}) for row in scores()]
    save(folder, info(), rows)
    assert verdict(read_run(folder), "uce").startswith("no picture of tiger could be judged; ")
    assert table(write_report(folder).read_text(encoding="utf-8"), "scores")[2][1] == "-/n = 0/4 not judged"


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.9999999999999, "100 %"),
        (0.998, "99.8 %"),
        (0.99999, "99.9 %"),
        (0.625, "63 %"),
        (1e-4, "0.1 %"),
    ],
)
def test_percent_is_0_or_100_only_when_exact(rate, text):
    assert percent(rate).replace("\u00a0", " ") == text


def test_grid_pairs_pictures_by_prompt_and_seed(folder):
    rows = table(write_report(folder).read_text(encoding="utf-8"), "grid")
    assert rows[0] == ["tiger", *[f"a tiger/seed {i}" for i in range(4)]]
    assert rows[1] == ["unedited", *["✓ tiger"] * 4]
    assert rows[2] == ["UCE", "✗ cat", "✗ cat", "✓ tiger", "? not judged"]
    images = read(folder).all("img")
    assert len(images) == 2 * 4 * 4
    assert all(i["src"].startswith("data:image/png;base64,") and i["alt"] == i["title"] for i in images)
    assert images[4]["alt"] == "UCE: a tiger, seed 0; detector: cat"


def test_a_long_grid_is_thinned_evenly(folder):
    long = [row | {"seed": row["seed"] + 4 * i} for row in scores() for i in range(5)]
    rows = table(write_report(save(folder, info(), long)).read_text(encoding="utf-8"), "grid")
    assert len(rows[0]) == 1 + COLUMNS
    assert read_run(folder).rate("base", "erase", "top1").n == 20


def test_page_stands_alone_and_is_well_formed(folder):
    page = read(folder)
    assert page.open == []
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert not re.search(r'(?:src|href)=(?!"data:)|url\(|@import|https?://', (folder / "report.html").read_text())
    assert len(page.all("h1")) == 1
    assert len(page.all("h2")) == 5
    assert all(attrs.get("scope") in ("row", "col") for attrs in page.all("th"))
    assert {p.name for p in folder.iterdir()} == {"run.json", "scores.jsonl", "images", "report.html"}


def test_plot_puts_the_edit_where_its_rates_are(folder):
    page = read(folder)
    dot = page.all("circle")
    assert [(c["cx"], c["cy"]) for c in dot] == [(str(50 + 280 * 5 / 8), str(260 - 240 * 2 / 3))]
    assert "UCE: kept 63\u00a0%, erased 67\u00a0%" in page.all("svg")[0]["aria-label"]


def test_method_section(folder):
    text = " ".join(read(folder).text).replace("\u00a0", " ")
    for said in (
        "3f9a",
        "20 steps, guidance 3",
        "wrong on 2 % of held-out pictures",
        "ridge = 0.5; told to preserve: lion",
    ):
        assert said in text
    assert "efface erase moji tiger --to cat" in text


def test_everything_is_escaped(tmp_path):
    evil = "<script>alert('1')</script>\"&"
    about = info() | {"title": evil, "model": evil, "commands": [evil], "concept": {"name": evil, "target": evil}}
    about["edits"] = [about["edits"][0] | {"method": evil, "file": evil, "settings": {evil: evil}, "preserve": [evil]}]
    about["detector"] = {"name": evil}
    rows = [
        r | {"prompt": evil, "seen": evil, "concept": evil if r["role"] == "erase" else r["concept"]} for r in scores()
    ]
    page = read(save(tmp_path, about, rows))
    assert not page.all("script")
    assert page.open == []
    assert evil in page.text
    assert {evil in attrs["alt"] for attrs in page.all("img")} == {True}


def test_output_elsewhere(folder, tmp_path):
    path = tmp_path / "new" / "tiger.html"
    assert write_report(folder, path) == path
    assert path.stat().st_size > 1000
    assert not (folder / "report.html").exists()


def test_failed_write_keeps_the_old_report(folder, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    with pytest.raises(EffaceError, match=r"cannot be written.*write elsewhere"):
        write_report(folder, taken)
    assert {p.name for p in tmp_path.iterdir()} == {"run", "taken"}


def remove(name):
    return lambda folder: (folder / name).unlink()


def put(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def row(**change):
    """Change the first row of the scores."""

    def damage(folder):
        first, *rest = list(scores())
        lines = [json.dumps(r) for r in (first | change, *rest)]
        (folder / "scores.jsonl").write_text("\n".join(lines))

    return damage


def run_json(**change):
    return lambda folder: (folder / "run.json").write_text(json.dumps(info() | change))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (remove("run.json"), r"run\.json: expected a readable UTF-8 file, got nothing there; give a folder"),
        (remove("scores.jsonl"), r"scores\.jsonl: expected a readable UTF-8 file, got nothing there; give a folder"),
        (
            remove("images/uce/tiger0.png"),
            r"scores\.jsonl:\d+: expected a picture .* got no file 'images/uce/tiger0\.png'",
        ),
        (put("images/uce/tiger0.png", b"GIF89a.."), r"tiger0\.png: expected a PNG picture, got .*GIF89a.*; run"),
        (put("run.json", b""), r"run\.json: expected a JSON object, got nothing; run `efface evaluate` again"),
        (put("run.json", b"[1]"), r"run\.json: expected a JSON object, got \[1\]; run"),
        (put("run.json", b"\xff"), r"run\.json: expected a readable UTF-8 file, got 'utf-8' codec"),
        (put("scores.jsonl", b""), r"scores\.jsonl: expected scores of the unedited model \('base'\), got none; run"),
        (
            put("scores.jsonl", b'{"edit": "ba'),
            r"scores\.jsonl:1: expected a JSON object, got '\{\"edit\": \"ba' .*; run",
        ),
        (run_json(steps="many"), r"run\.json: expected 'steps' to be int, got 'many'; run"),
        (run_json(seconds="long"), r"run\.json: expected 'seconds' to be float, got 'long'; run"),
        (run_json(concept={}), r"run\.json: concept: expected 'name' to be str, got None; run"),
        (run_json(edits=[{"id": "base", "method": "X"}]), r"edits: expected different ids other than 'base'"),
        (row(value=0.5), r"scores\.jsonl:1: expected 'value' to be 0 or 1 or None, got 0\.5; run"),
        (row(score="top3"), r"scores\.jsonl:1: expected 'score' to be 'top1' or 'top5', got 'top3'; run"),
        (row(edit="esd"), r"scores\.jsonl:1: expected 'edit' to be 'base' or 'uce', got 'esd'; run"),
        (row(image="../../etc/passwd"), r"scores\.jsonl:1: expected a picture in the run's store"),
        (row(seed=9), r"expected one top1 row for 'a tiger', seed \d, got \d for '\w+' and \d for 'base'; run"),
        (row(seed=1), r"expected one top1 row for 'a tiger', seed \d, got \d for '\w+' and \d for 'base'; run"),
    ],
)
def test_a_damaged_folder_is_one_sentence(folder, damage, sentence):
    damage(folder)
    with pytest.raises(UsageError, match=sentence) as caught:
        write_report(folder)
    assert "\n" not in str(caught.value)
    assert not (folder / "report.html").exists()


def test_report_imports_no_torch_and_no_numpy():
    code = "import sys, efface.report.html; print({'torch', 'numpy', 'PIL', 'safetensors'} & {*sys.modules})"
    source = str(Path(__file__).parents[2] / "src")
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": source}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
