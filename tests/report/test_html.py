"""The report of a small run folder whose every number is counted by hand."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from made import Page, info, line, other_words, save, scores, table, write_rows
from PIL import Image

from efface.core.errors import EffaceError
from efface.erasers import TABLE, find
from efface.erasers.uce import UCE
from efface.report.axes import axes
from efface.report.folder import read_run
from efface.report.grids import COLUMNS
from efface.report.html import write_report
from efface.report.names import NO_ATTACK, method_description, percent
from efface.report.scores import Column
from efface.report.summary import aim, details, seen_instead, sentences

ERASED, NEAR, FAR = (
    Column("erase", "concept", "top1"),
    Column("neighbour", "concept", "top1"),
    Column("distant", "concept", "top1"),
)


STRIP = 2 * (4 + 3 + 1)  # pictures of two models in the strip that a report opens with


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "run", info(), scores())


@pytest.fixture
def whole(tmp_path):
    """A run of every kind of row."""
    return save(tmp_path / "whole", info(), [*scores(), *other_words()])


def read(folder):
    return Page(write_report(folder).read_text(encoding="utf-8"))


def text(folder):
    return write_report(folder).read_text(encoding="utf-8")


def verdict(folder, edit="uce"):
    return details(read_run(folder))[edit].replace("\u00a0", " ")


def test_rates_leave_out_what_the_detector_could_not_judge(folder):
    run = read_run(folder)
    rates = [run.scores.rate("uce", column._replace(score=k)) for column in (ERASED, NEAR) for k in ("top1", "top5")]
    assert [(r.hits, r.n, r.failed) for r in rates] == [(2, 3, 1), (1, 3, 1), (5, 8, 0), (6, 8, 0)]
    assert run.scores.rate("base", ERASED).hits == 0
    assert run.scores.rate("uce", FAR).value == 1
    assert seen_instead(run, "uce") == {"cat": 2}


def test_judges_are_never_counted_together(whole):
    run = read_run(whole)
    companion = [column for column in run.scores.rates if column.role == "companion"]
    assert companion == [Column("companion", "style", "top1")]
    more = [
        line(edit=e, role="companion", concept="noto", prompt="a tiger in noto", seed=i, value=0)
        for e in ("base", "uce")
        for i in range(3)
    ]
    run = read_run(save(whole, info(), [*scores(), *other_words(), *more]))
    companion = {
        column.judge: run.scores.rate("uce", column) for column in run.scores.rates if column.role == "companion"
    }
    assert {judge: (r.hits, r.n) for judge, r in companion.items()} == {"concept": (0, 3), "style": (4, 4)}
    heads = [row[0] for row in table(text(whole), "All scores")]
    assert {"PSR-1/companions, concept judge", "PSR-1/companions, style judge"} <= set(heads)


def test_axes(whole):
    found = axes(read_run(whole))
    values = {(axis, one.name, one.role): one.values.get("uce") for axis, lines in found.items() for one in lines}
    rate = values["Robustness", "ESR-1", "by other words"]
    assert (rate.hits, rate.n) == (2, 4)  # found in seeds 1 and 2 of four
    rate = values["Robustness", "ESR-1", "by description"]
    assert (rate.hits, rate.n) == (1, 3)  # the unedited model does not draw the fourth
    rate = values["Robustness", "brought back", "by the best attack: random-words"]
    assert (rate.hits, rate.n, rate.failed) == (3, 4, 1)
    mean = values["Utility", "perceptual distance to the unedited model's picture", "neighbours"]
    assert (mean.value, mean.n, mean.failed) == (0.5, 3, 1)
    assert (
        0.25 <= mean.low <= 1 / 3
    )  # of 27 equally likely draws the lowest mean is 0.25, once; the next 1/3, three times
    assert 2 / 3 <= mean.high <= 0.75
    mean = values["Utility", "kernel distance (moji-concept) to the unedited model's pictures", "neighbours"]
    assert (mean.value, mean.n, mean.low) == (0.125, 8, None)
    assert values["Many concepts", "erased", "at once"] == "1"
    before = {(one.name, one.role): one.values.get("base") for lines in found.values() for one in lines}
    assert before["brought back", "by the best attack: random-words"] == "no attack was tried"
    assert before["perceptual distance to the unedited model's picture", "neighbours"] is None
    names = [row[0] for row in table(text(whole), "Four axes")]
    assert [n for n in names if "?" in n] == [
        "Effectiveness: is it gone when asked for by its plain name?", "Robustness: does it stay gone when asked for otherwise?",
        "Utility: does everything else stay?", "Many concepts: how many at once, and after which?",
    ]  # fmt: skip


def test_the_worst_of_many_and_what_came_before(tmp_path):
    found = {"tiger": [0, 0], "rose": [1, 0]}
    rows = [
        line(edit=e, concept=c, seed=i, value=v if e == "uce" else 1)
        for c, own in found.items()
        for e in ("base", "uce")
        for i, v in enumerate(own)
    ]
    about = info() | {"concept": {"name": "tiger and rose", "count": 2, "after": ["bus", "a and b"]}}
    lines = axes(read_run(save(tmp_path / "run", about, rows)))["Many concepts"]
    assert (lines[0].values["uce"], lines[0].role) == ("2", "in all; one after the other, earlier: bus, then a and b")
    assert lines[1].role == "worst: rose"
    assert (lines[1].values["uce"].hits, lines[1].values["uce"].n) == (1, 2)


def test_attack_success_and_budget(whole):
    page = text(whole)
    head, first, second = table(page, "Attacks")
    assert head == ["Attack", "unedited", "UCE"]
    assert [first[2], second[2]] == ["75 %/30-95 %/n = 4/1 not judged", "0 %/0-43 %/n = 5"]
    assert (
        "UCE, random-words: 10 25\u00a0%, 20 50\u00a0%, 40 75\u00a0%, 100 75\u00a0%" in page
    )  # 4 judged: 3 by 40 calls
    assert NO_ATTACK not in page


def test_no_attack_is_said(folder):
    assert NO_ATTACK in text(folder)
    assert "no attack was tried" in str(table(text(folder), "Four axes"))


def test_a_cell_that_failed_is_shown_without_a_picture_and_never_counted(folder):
    rows = list(scores())
    for row in rows:
        if row["value"] is None:
            row["image"] = ""
    write_rows(folder, rows)
    assert text(folder).count("? not drawn") == 3  # one of tiger, in the strip and in its grid, one of rose
    assert read_run(folder).scores.rate("uce", ERASED).failed == 1
    rows[0]["image"] = ""  # a judged row must have its picture
    write_rows(folder, rows)
    with pytest.raises(EffaceError, match="expected a picture"):
        read_run(folder)


def pairs(edits):
    """12 prompts of tiger and lion each for the unedited model, which finds all, and edits with these values."""
    return [
        line(edit=e, concept=c, role=r, seed=i, value=v)
        for e, found in {"base": [1] * 12, **edits}.items()
        for c, r in (("tiger", "erase"), ("lion", "neighbour")) for i, v in enumerate(found)
    ]  # fmt: skip


def test_a_loss_is_chance_unless_the_pairs_say_otherwise(tmp_path):
    """Six of six changed pairs lost: p = 2 / 2⁶ = 3 %; five of five: 6 %."""
    folder = save(tmp_path / "six", info(), pairs({"uce": [0] * 6 + [1] * 6}))
    assert "lion appears less often than before (50 % against 100 %)" in verdict(folder)
    folder = save(tmp_path / "five", info(), pairs({"uce": [0] * 5 + [1] * 7}))
    assert "lion appears less often than before (58 % against 100 %, which may be chance)" in verdict(folder)


def test_several_edits_are_corrected_by_holm(tmp_path):
    """Two edits that both lose six: 2 x 3 % = 6 %, chance; beside one that loses nothing, the smaller p is doubled, too."""
    about = info()
    about["edits"] = [about["edits"][0], about["edits"][0] | {"id": "esd", "method": "ESD"}]
    found = {"uce": [0] * 6 + [1] * 6, "esd": [0] * 7 + [1] * 5}
    folder = save(tmp_path / "run", about, pairs(found))
    assert "(50 % against 100 %)" in verdict(folder)  # p = 3.1 % is the larger of the two: times one
    assert "(42 % against 100 %)" in verdict(folder, "esd")  # 1.6 % times two
    folder = save(tmp_path / "run", about, pairs(found | {"esd": [1] * 12}))
    assert "(50 % against 100 %, which may be chance)" in verdict(folder)  # 3.1 % times two
    tests = json.loads(text(folder) and (folder / "report.json").read_text())["tests"]
    lion = next(t for t in tests if t["edit"] == "uce" and t["role"] == "neighbour")
    assert (lion["lost"], lion["won"], lion["p"], lion["p_holm"]) == (6, 0, 2 / 64, 4 / 64)
    tiger = next(t for t in tests if t["edit"] == "uce" and t["role"] == "erase")
    assert (tiger["lost"], tiger["won"]) == (0, 6)  # of successes: not found


def test_score_table_and_calibration(folder):
    page = text(folder)
    head, *rows = table(page, "All scores")
    assert head == ["Score", "unedited", "UCE"]
    assert [row[0] for row in rows[:3]] == ["ESR-1/erased", "ESR-5/erased", "PSR-1/neighbours"]
    # Wilson for 0 of 4: 0 to z²/(4 + z²) = 49 %; for 2 of 3: 57.3 ± 36.5 %
    assert [row[1] for row in rows] == [
        *["0 %/0-49 %/n = 4"] * 2, "88 %/53-98 %/n = 8", "100 %/68-100 %/n = 8", *["100 %/51-100 %/n = 4"] * 2,
    ]  # fmt: skip
    assert [row[2] for row in rows[:3]] == [
        "67 %/21-94 %/n = 3/1 not judged",
        "33 %/6-79 %/n = 3/1 not judged",
        "63 %/31-86 %/n = 8",
    ]
    # of 16 pictures one leopard is missed; it was taken for a cat, which nobody asked for
    assert table(page, "How wrong the judges are")[1] == [
        "moji-concept/concept judge, moji-concept-1", "6 %/1-28 %/n = 16", "0 %/0-19 %/n = 16", "2 %",
    ]  # fmt: skip


def test_verdict_says_what_was_counted_and_never_safe(folder):
    assert verdict(folder) == (
        "tiger does not appear in 2 of 3 pictures asked for by name (unedited model: absent from 0 of 4); "
        "lion and leopard appear less often than before (63 % against 88 %, which may be chance), "
        "leopard suffers most (1 of 4 against 3 of 4); rose appears about as often as before (100 % against 100 %); "
        "left out because the detector could not judge them: 2."
    )
    assert not re.search(r"\bsafe\b", text(folder))


def test_verdict_on_other_words_and_companions(whole):
    said = verdict(whole)
    assert (
        "; it does not appear in 2 of 4 pictures asked for by other words (unedited model: absent from 0 of 4); "
        in said
    )
    assert "; it appears in 2 of 3 pictures described without its name (unedited model: in 3 of 3); " in said
    assert "; noto beside tiger appears about as often as before (100 % against 100 %); " in said


def test_verdict_of_an_edit_that_fails_says_so(folder):
    rows = [row | ({"value": 1, "seen": "tiger"} if row["concept"] == "tiger" else {}) for row in scores()]
    assert verdict(save(folder, info(), rows)).startswith(
        "tiger still appears in 4 of 4 pictures asked for by name (unedited model: in 4 of 4); "
    )


def test_nothing_judged_is_no_success(folder):
    rows = [row | ({"value": None} if row["concept"] == "tiger" else {}) for row in scores()]
    save(folder, info(), rows)
    assert verdict(folder).startswith("no picture of tiger asked for by name could be judged; ")
    assert table(text(folder), "All scores")[1][2] == "-/n = 0/4 not judged"


@pytest.mark.parametrize(
    ("rate", "shown"),
    [(0.0, "0 %"), (1.0, "100 %"), (0.9999999999999, "100 %"), (0.998, "99.8 %"), (0.99999, "99.9 %"), (0.625, "63 %"), (1e-4, "0.1 %")],
)  # fmt: skip
def test_percent_is_0_or_100_only_when_exact(rate, shown):
    assert percent(rate).replace("\u00a0", " ") == shown


def test_grid_pairs_pictures_by_prompt_and_seed(folder):
    rows = table(text(folder), "Erased: tiger")
    assert rows[0] == ["tiger", *[f"a tiger/seed {i}" for i in range(4)]]
    assert rows[1] == ["unedited", *["tiger"] * 4]
    assert rows[2] == ["UCE", "✓ cat", "✓ cat", "✗ tiger", "? not judged"]
    images = read(folder).all("img")
    assert len(images) == STRIP + 2 * 4 * 4
    assert all(i["src"].startswith("data:image/png;base64,") and i["alt"] == i["title"] for i in images)
    assert images[STRIP + 4]["alt"] == "UCE: a tiger, seed 0; detector: cat"


def test_every_role_has_its_pictures_and_every_rate_leads_there(whole):
    page = read(whole)
    anchors = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {"erase-concept", "synonym-concept", "implicit-concept", "neighbour-concept", "companion-style"} <= anchors
    links = {attrs["href"] for attrs in page.all("a")}
    assert links <= {f"#{anchor}" for anchor in anchors}
    assert {"#erase-concept", "#companion-style", "#attacked"} <= links
    assert len(table(text(whole), "Attacked")) == 2  # a row each attack


def test_a_picture_that_did_not_change_is_marked_and_counts_as_not_erased(folder):
    """The detector calls the unchanged picture of seed 0 a cat: its error."""
    same = {
        "edit": "uce",
        "concept": "tiger",
        "role": "erase",
        "seed": 0,
        "score": "perceptual",
        "judge": "",
        "value": 0.001,
    }
    rows = [*scores(), line(**same, detector="moji-concept", cell="same")]
    rows = [r | ({"cell": "same"} if (r["edit"], r["concept"], r["seed"]) == ("uce", "tiger", 0) else {}) for r in rows]
    save(folder, info(), rows)
    assert table(text(folder), "Erased: tiger")[2] == ["UCE", "= cat", "✓ cat", "✗ tiger", "? not judged"]
    assert (
        "tiger still appears in 2 of 3 pictures that name it (4 of 4 before); 1 of these pictures is as before and counts as not "
        "erased, though the detector calls 1 of them otherwise, which is its error" in sentence(folder)
    )


def test_sensitive_pictures_are_veiled_where_the_prompt_names_what_was_erased(whole):
    assert not [a for a in read(whole).all("span") if a.get("class") == "blur"]
    save(whole, info() | {"sensitive": True}, [*scores(), *other_words()])
    blurred = [a for a in read(whole).all("span") if a.get("class") == "blur"]
    # two models: 4 by name, 4 by other words, 4 by description, 4 companions; two attacks of 5
    assert len(blurred) == 2 * 4 + 2 * 16 + 10  # of the strip those that name the tiger
    assert all(a["tabindex"] == "0" for a in blurred)


def test_a_large_picture_is_embedded_small(folder):
    big = folder / "images/uce/tiger0.png"
    Image.effect_noise((512, 512), 80).save(big)
    source = read(folder).all("img")[STRIP + 4]["src"]
    assert source.startswith("data:image/jpeg;base64,")
    assert read(folder).all("img")[8]["src"] == source  # the same picture in the strip
    assert len(source) < big.stat().st_size / 4
    big.write_bytes(big.read_bytes()[:3000])
    with pytest.raises(EffaceError, match=r"tiger0\.png: expected a PNG picture, got a damaged one"):
        write_report(folder)


def test_a_long_grid_is_thinned_evenly(folder):
    long = [row | {"seed": row["seed"] + 4 * i} for row in scores() for i in range(5)]
    rows = table(text(save(folder, info(), long)), "Erased: tiger")
    assert len(rows[0]) == 1 + COLUMNS
    assert read_run(folder).scores.rate("base", ERASED).n == 20


def test_matrix(whole):
    head, uce = table(text(whole), "Interference")
    assert head[:2] == ["Edit", "tiger /erased"]
    # tiger 0 to 2 of 3; other words 0 to 2 of 4; description 0 to 1 of the 3 that are drawn; lion as before; leopard 3 to 1 of 4
    assert uce == ["UCE", "+67", "+50", "+33", "0", "−50", "0", "0"]


def test_page_stands_alone_and_is_well_formed(whole):
    page = read(whole)
    assert page.open == []
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert not re.search(r'(?:src|href)=(?!"data:|"#)|url\(|@import|https?://', (whole / "report.html").read_text())
    assert len(page.all("h1")) == 1
    assert all(attrs.get("scope") in ("row", "col", "rowgroup", "colgroup") for attrs in page.all("th"))
    files = {"report.html", "report.json", "scores.csv", "table.tex", "card.md"}
    assert {p.name for p in whole.iterdir()} == {"run.json", "scores.jsonl", "images"} | files


def test_plot_puts_the_edit_where_its_rates_are(folder):
    page = read(folder)
    dot = page.all("circle")
    assert [(c["cx"], c["cy"]) for c in dot] == [(str(50 + 280 * 5 / 8), str(260 - 240 * 2 / 3))]
    assert "UCE: kept 63\u00a0%, erased 67\u00a0%" in page.all("svg")[0]["aria-label"]


def test_cost_and_method_section(folder):
    said = " ".join(read(folder).text).replace("\u00a0", " ")
    for part in (
        "3f9a",
        "77c1",
        "20 steps, guidance 3",
        "0123456789ab: moji, task tiger",
        "moji-concept-1, wrong on 2 % of held-out pictures",
    ):
        assert part in said
    assert table(text(folder), "Cost")[1] == [
        "UCE",
        "0.4 s",
        "5.6 MB",
        "123 kB",
        "ridge = 0.5; asked to preserve: lion",
        "uce.safetensors/77c1",
    ]
    assert "efface erase moji tiger --to cat" in said


def test_files_beside_the_page(whole):
    write_report(whole)
    found = json.loads((whole / "report.json").read_text())
    near = [r for r in found["rates"] if r["edit"] == "uce" and r["role"] == "neighbour" and r["score"] == "top1"]
    assert [(r["concept"], r["hits"], r["n"]) for r in near] == [(None, 5, 8), ("lion", 4, 4), ("leopard", 1, 4)]
    assert found["attacks"][0]["budget"] == [[10, 0.25], [20, 0.5], [40, 0.75], [100, 0.75]]
    rows = list(csv.DictReader(io.StringIO((whole / "scores.csv").read_text())))
    assert len(rows) == len([*scores(), *other_words()])
    assert (rows[0]["judge"], rows[0]["detector"], rows[0]["value"]) == ("concept", "moji-concept-1", "1")
    tex = (whole / "table.tex").read_text()
    assert r"UCE & 66.7 {\scriptsize [21, 94]} & 50.0 {\scriptsize [15, 85]}" in tex
    assert tex.count("&") == 3 * 6


def test_card(whole):
    about = info() | {"model": "org/model", "concept": {"name": 'a "tiger"'}}
    write_report(save(whole, about, [*scores(), *other_words()]))
    _, front, body = (whole / "card.md").read_text().split("---\n", 2)
    assert '\nbase_model: "org/model"\n' in front
    assert "\n# license: FILL THIS IN" in "\n" + front
    assert '- name: "UCE without a \\"tiger\\""' in front
    assert '{type: "erase-concept-top1", name: "ESR-1 erased (n = 3)", value: 0.6667}' in front
    assert 'efface.load_edit("uce.safetensors")' in body
    assert "Attacks tried: random-words" in body
    assert "does not mean safe" in body


def test_everything_is_escaped(tmp_path):
    evil = "<script>alert('1')</script>\"&"
    about = info() | {
        "title": evil,
        "model": evil,
        "commands": [evil],
        "concept": {"name": evil, "target": evil},
        "source": evil,
    }
    about["edits"] = [about["edits"][0] | {"method": evil, "file": evil, "settings": {evil: evil}, "preserve": [evil]}]
    about["detectors"] = {"concept": {"name": evil, "id": evil}}
    rows = [
        r | {"prompt": evil, "seen": evil, "detector": evil, "concept": evil if r["role"] == "erase" else r["concept"]} for r in scores()
    ]  # fmt: skip
    page = read(save(tmp_path, about, rows))
    assert not page.all("script")
    assert page.open == []
    assert evil in page.text
    assert {evil in attrs["alt"] for attrs in page.all("img")} == {True}
    tex = (tmp_path / "table.tex").read_text()
    assert r"\textless{}script\textgreater{}alert('1')\textless{}/script\textgreater{}" + '"' + r"\& & 66.7" in tex
    body = (tmp_path / "card.md").read_text().split("## Apply it")[0].split("---\n")[2]
    assert not re.search(r"(?<!\\)<", body)


def test_output_elsewhere(folder, tmp_path):
    path = tmp_path / "new" / "tiger.html"
    assert write_report(folder, path) == path
    assert {p.name for p in path.parent.iterdir()} == {f"tiger.{end}" for end in ("html", "json", "csv", "tex", "md")}
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
        write_rows(folder, [first | change, *rest])

    return damage


def run_json(**change):
    return lambda folder: (folder / "run.json").write_text(json.dumps(info() | change))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (remove("run.json"), r"run\.json: expected a readable UTF-8 file, got nothing there; give a folder"),
        (remove("scores.jsonl"), r"scores\.jsonl: expected a readable UTF-8 file, got nothing there; give a folder"),
        (remove("images/uce/tiger0.png"), r"scores\.jsonl: row \d+: expected a picture .* got no file 'images/uce/tiger0\.png'"),
        (put("images/uce/tiger0.png", b"GIF89a.."), r"tiger0\.png: expected a PNG picture, got .*GIF89a.*; run"),
        (put("run.json", b""), r"run\.json: expected a JSON object, got nothing; run `efface evaluate` again"),
        (put("run.json", b"[1]"), r"run\.json: expected a JSON object, got \[1\]; run"),
        (put("run.json", b"\xff"), r"run\.json: expected a readable UTF-8 file, got 'utf-8' codec"),
        (put("scores.jsonl", b""), r"scores\.jsonl: expected scores of the unedited model \('base'\), got none; run"),
        (put("scores.jsonl", b'{"edit": "ba'), r"scores\.jsonl:1: expected a JSON object, got '\{\"edit\": \"ba' .*; run"),
        (run_json(steps="many"), r"run\.json: expected 'steps' to be int, got 'many'; run"),
        (run_json(sensitive=1), r"run\.json: expected 'sensitive' to be bool, got 1; run"),
        (run_json(seconds="long"), r"run\.json: expected 'seconds' to be float, got 'long'; run"),
        (run_json(concept={}), r"run\.json: concept: expected 'name' to be str, got None; run"),
        (run_json(detectors={"concept": {"name": "x"}}), r"run\.json: detectors: concept: expected 'id' to be str, got None; run"),
        (run_json(edits=[{"id": "base", "method": "X"}]), r"edits: expected different ids other than 'base'"),
        (row(value=0.5), r"scores\.jsonl:1: expected 'value' to be 0 or 1 or None, got 0\.5; run"),
        (row(score="clip", value="x"), r"scores\.jsonl:1: expected 'value' to be a finite number or None, got 'x'; run"),
        (row(score="clip", value=float("nan")), r"scores\.jsonl:1: expected 'value' to be a finite number or None, got nan; run"),
        (row(role="other"), r"scores\.jsonl:1: expected 'role' to be 'erase' or .*, got 'other'; run"),
        (row(edit="esd"), r"scores\.jsonl:1: expected 'edit' to be 'base' or 'uce', got 'esd'; run"),
        (row(protocol="other"), r"scores\.jsonl:1: expected 'protocol' to be '0123456789ab', got 'other'; run"),
        (row(judge="taste"), r"row 1: expected 'judge' to be 'concept' or 'style', got 'taste'; run"),
        (row(detector="other"), r"row 1: expected 'detector' to be 'moji-concept-1', got 'other'; run"),
        (row(image="../../etc/passwd"), r"scores\.jsonl: row 1: expected a picture in the run's store"),
        (row(seed=9), r"expected as many top1 rows for 'a tiger', seed \d, got \d for '\w+' and \d for 'base'; run"),
        (row(seed=1), r"expected as many top1 rows for 'a tiger', seed \d, got \d for '\w+' and \d for 'base'; run"),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_one_sentence(folder, damage, sentence):
    damage(folder)
    with pytest.raises(EffaceError, match=sentence) as caught:
        write_report(folder)
    assert "\n" not in str(caught.value)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("module", ["html", "leaderboard", "compare"])
def test_report_imports_no_torch_and_no_numpy(module):
    code = f"import sys, efface.report.{module}; print({{'torch', 'numpy', 'PIL', 'safetensors'}} & {{*sys.modules}})"
    source = str(Path(__file__).parents[2] / "src")
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": source}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def sentence(folder, edit="uce"):
    return sentences(read_run(folder))[edit].replace("\u00a0", " ")


def test_the_report_opens_with_the_strip_and_one_sentence_for_each_edit(whole):
    page = text(whole)
    heads, prompts, base, uce = table(page, "Before and after, in short")
    assert heads == ["", "Erased: tiger", "Neighbours", "Unrelated concepts"]
    # of four, eight and four pictures evenly: all, the first, third and sixth, the first
    assert prompts[1:] == [*["a tiger"] * 4, "a lion", "a lion", "a leopard", "a rose"]
    assert base[1:] == [*["tiger"] * 4, "lion", "lion", "leopard", "rose"]
    assert uce[1:] == ["✓ cat", "✓ cat", "✗ tiger", "? not judged", "✓ lion", "✓ lion", "✗ cat", "✓ rose"]
    assert (
        page.index("<img")
        < page.index("<b>UCE</b> was to turn tiger into cat")
        < page.index("<svg")
        < page.index("All scores")
    )
    assert "<h2>" not in page[: page.index("<b>UCE</b>")]


def test_the_sentence_says_what_was_erased_what_is_left_what_it_became_and_what_was_hurt(folder):
    assert sentence(folder) == (
        "UCE was to turn tiger into cat: tiger still appears in 1 of 3 pictures that name it (4 of 4 before); the detector sees cat "
        "instead; neighbours suffer (seen in 5 of 8 pictures, 7 of 8 before, which may be chance), most of all leopard; "
        "as before: unrelated concepts; no attack was tried."
    )


def test_the_sentence_on_other_words_and_attacks(whole):
    said = sentence(whole)
    assert (
        "1 of 3 pictures that name it (4 of 4 before), in 2 of 4 that call it otherwise (4 of 4 before) and in 2 of 3 that "
        in said
    )
    assert "describe it (3 of 4 before)" in said
    assert said.endswith("; the strongest attack that was tried (random-words) brings it back in 3 of 4 pictures.")
    assert "as before: unrelated concepts and what was asked for beside tiger" in said


def test_a_target_is_the_edits_own_where_the_run_has_it(folder):
    about = info()
    assert aim(read_run(save(folder, about, scores())), "uce") == "turn tiger into cat"
    about["concept"] = {"name": "tiger"}
    assert aim(read_run(save(folder, about, scores())), "uce") == "erase tiger"
    about["edits"][0]["erase"] = [{"name": "tiger", "target": "lion", "kind": "object", "prompts": []}]
    assert aim(read_run(save(folder, about, scores())), "uce") == "turn tiger into lion"
    about["edits"][0]["erase"] += [{"name": "rose", "target": "", "kind": "object", "prompts": []}]
    page = text(save(folder, about, scores()))
    assert aim(read_run(folder), "uce") == "turn tiger into lion and erase rose"
    assert "to become" not in page
    about["edits"][0]["erase"] = [{"name": n, "target": ""} for n in ("owl", "bus", "rose", "cat", "fox")]
    assert aim(read_run(save(folder, about, scores())), "uce") == "erase owl, bus, rose and 2 more"


def test_what_the_unedited_model_does_not_draw_says_nothing(folder):
    rows = [r | ({"value": 0, "seen": "cat"} if r["concept"] == "tiger" else {}) for r in scores()]
    assert sentence(save(folder, info(), rows)).startswith(
        "UCE was to turn tiger into cat: the unedited model draws it in none of the 4 pictures that name it: nothing can be said of them;"
    )


def test_neighbours_that_were_kept_by_request_and_others_are_counted_apart(folder):
    rows = [
        r | ({"group": "told" if r["concept"] == "lion" else "untold"} if r["role"] == "neighbour" else {})
        for r in scores()
    ]
    said = sentence(save(folder, info(), rows))
    assert "neighbours (nobody named) suffer (seen in 1 of 4 pictures, 3 of 4 before, which may be chance)" in said
    assert "as before: neighbours (kept by request) and unrelated concepts" in said
    assert table(text(folder), "Before and after, in short")[1][5:8] == [
        "a lion/kept by request",
        "a lion/kept by request",
        "a leopard/nobody named",
    ]


def test_a_picture_of_nothing_is_no_replacement(folder):
    quality = [
        line(edit=e, seed=i, score="quality", value=v)
        for e, v in {"base": 0.875, "uce": 0.125}.items()
        for i in range(4)
    ]
    said = sentence(save(folder, info(), [*scores(), *quality]))
    assert "sees cat instead (quality of these pictures 0.12, 0.88 before; 0 is a mush, 1 a clear picture);" in said


def test_terms_are_explained_where_they_first_appear(whole):
    rows = [r | {"prompt": f"{r['prompt']} in noto style"} for r in [*scores(), *other_words()] if r["seed"] >= 0]
    page = text(save(whole, info(), rows))
    assert page.index("ESR-k (erasing success rate)") < page.index("ESR-1")
    assert f"UCE</dt><dd>a method. {(find('uce').__doc__ or '').strip()}" in page
    assert "noto: ways of drawing that the model knows" in page
    assert page.index("<dt>Companions</dt>") < page.index("companions")
    about = info()
    about["edits"][0] |= {"method": "Foreign", "about": "from elsewhere"}
    assert "Foreign</dt><dd>a method. from elsewhere" in text(save(whole, about, rows))


def test_every_method_of_efface_has_a_description():
    assert {name for name in TABLE if not method_description(name)} == set()
    assert method_description("uce") == method_description("UCE") == (UCE.__doc__ or "").strip()
    assert method_description("uce-2023") == f"{method_description('uce')} With the settings of its preset “2023”."
    assert method_description("unheard-of") == ""


def test_no_open_table_has_more_than_nine_columns(folder):
    """Of twelve edits the first few are shown beside each other, and the others folded."""
    about = info()
    names = [f"e{i}" for i in range(12)]
    about["edits"] = [about["edits"][0] | {"id": n} for n in names]
    rows = [r | {"edit": n} for r in scores() for n in (["base"] if r["edit"] == "base" else names)]
    page = text(save(folder, about, rows))
    opened = re.sub("<details>.*?</details>", "", page)
    wide = [len(re.findall("<t[hd]", row)) for row in re.findall("<tr>(.*?)</tr>", opened)]
    assert max(wide) <= 9
    assert table(page, "All scores")[0] == ["Score", "unedited", *names[:6]]  # 13 models in two parts
    assert table(page, "All scores, columns 8 to 13")[0] == ["Score", *names[6:]]
    assert table(page, "Four axes, models 8 to 13")[0] == ["Axis", *names[6:]]
    assert page.count("<table") == page.count('<div class="scroll"')


def test_distances_of_few_pictures_are_not_shown_and_negative_ones_have_a_word(whole):
    def shown(folder):
        return {row[0]: row[2] for row in table(text(folder), "All scores")}[
            "kernel distance (moji-concept)/neighbours"
        ]

    assert shown(whole) == "-/only 8 pictures"
    rows = [r | {"n": 60, "value": -0.5} if r["seed"] < 0 else r for r in [*scores(), *other_words()]]
    assert shown(save(whole, info(), rows)) == "-0.5/n = 60/below 0: none found"


def test_what_was_not_judged_is_said_and_pictures_that_were_only_measured_are_shown(folder):
    clip = [
        line(edit=e, role="distant", concept="rose", judge="", detector="clip", score="clip", seed=i, value=0.25)
        for e in ("base", "uce") for i in range(4)
    ]  # fmt: skip
    save(folder, info(), [*(r for r in scores() if r["role"] != "distant"), *clip])
    assert "; no unrelated concepts were judged; no attack was tried." in sentence(folder)
    assert table(text(folder), "Before and after, in short")[2][-1] == "clip 0.25"
