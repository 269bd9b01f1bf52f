"""A sweep's leaderboard, counted by hand, and folders side by side."""

import csv
import json
from math import sqrt
from statistics import stdev

import pytest
from made import DETECTORS, Page, info, line, save, scores, sweep, table, write_rows

import efface.report.published as papers
from efface.core.errors import EffaceError
from efface.report.compare import write_comparison
from efface.report.folder import read_sweep
from efface.report.html import write_report
from efface.report.leaderboard import board_of, write_leaderboard
from efface.report.scores import Column, Scores

ERASED, NEAR, FAR = (
    Column("erase", "concept", "top1"),
    Column("neighbour", "concept", "top1"),
    Column("distant", "concept", "top1"),
)


@pytest.fixture
def folder(tmp_path):
    return sweep(tmp_path / "sweep")


def lines(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_the_leaderboard_is_counted_by_hand(folder):
    """Only the single-concept tasks count: `a` erases 3 of 4, `b` 1 of 7 over two training seeds, and failed to judge one."""
    text = write_leaderboard(folder).read_text()
    page = Page(text)
    assert page.open == []
    assert not page.all("script")
    links = [a["href"] for a in page.all("a")]
    assert {f"{task}/report.html" for task in ("tiger", "rose", "many-2", "sequence-1", "sequence-2")} | {
        "#tasks"
    } == set(links)
    assert "efface bench &lt;x&gt;" in text
    assert "counted nowhere: 1." in text
    base, a, b = lines(folder / "leaderboard.csv")
    assert [base["method"], a["method"], b["method"]] == ["base", "a", "b"]
    assert [float(a[f"{k}"]) for k in ("ESR-1 erased", "PSR-1 neighbours", "PSR-1 unrelated concepts")] == [
        0.75,
        0.5,
        1.0,
    ]
    assert (b["ESR-1 erased"], b["ESR-1 erased n"], b["ESR-1 erased failed"]) == (str(round(1 / 7, 4)), "7", "1")
    assert float(a["score"]) == 0.75  # of 0.75 erased and (0.5 + 1) / 2 kept
    assert (a["fit seconds"], a["bytes"], base["bytes"]) == ("1.0", "1000", "")
    found = json.loads((folder / "leaderboard.json").read_text())
    assert found["methods"][1]["ESR-1 erased"] == 0.75
    tiger = next(c for c in found["changes"] if (c["task"], c["method"], c["role"]) == ("rose", "a", "neighbour"))
    assert tiger["change"] == -0.5


def test_training_seeds(folder):
    """`b` erases 0 of 3 with seed 5 and 1 of 4 with seed 7; `a` has one seed."""
    board = board_of(read_sweep(folder))
    over = board.seeds("b", ERASED)
    assert (over.mean, over.n) == (0.125, 2)
    assert over.std == stdev([0.0, 0.25])
    assert board.seeds("a", ERASED) is None
    assert "13 % ± 17.7 (2 seeds)" in table(write_leaderboard(folder).read_text(), "Methods")[3][1]


def wilson(rate, n):
    """The textbook formula."""
    z = 1.959964
    half = z / (1 + z * z / n) * sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    return middle - half, middle + half


def rows_of(hits, n=10, **change):
    """`n` pictures for each task with as many found as given."""
    return [
        line(task=str(t), method="a", nth=0, role="neighbour", seed=i, value=int(i < k), **change)
        for t, k in enumerate(hits) for i in range(n)
    ]  # fmt: skip


def test_an_interval_is_as_wide_as_the_tasks_differ():
    spread = Scores(rows_of([10, 10, 0, 0]), "method").interval("a", NEAR)
    # tasks all or nothing: Σ (h - r n)² = 4 · 25, variance 4/3 · 100 / 40² against 1/4 / 40: 13.3 times; 40 pictures say as much as 3
    assert spread == pytest.approx(wilson(0.5, 3), abs=1e-6)
    alike = Scores(rows_of([5, 5, 5, 5]), "method").interval("a", NEAR)
    assert alike == pytest.approx(wilson(0.5, 40), abs=1e-6)  # never narrower than of independent pictures
    alone = Scores(rows_of([5]), "method").interval("a", NEAR)
    assert alone == pytest.approx(wilson(0.5, 10), abs=1e-6)
    twice = [*rows_of([5, 5]), *(r | {"nth": 1} for r in rows_of([5, 5]))]
    assert Scores(twice, "method").interval("a", NEAR) == pytest.approx(wilson(0.5, 20), abs=1e-6)


def test_best_of_a_column_and_who_differs_from_it(tmp_path):
    """Of 12 prompts `a` erases all, `b` five, `c` six: 7 and 6 pairs are lost, p = 1.6 % and 3.1 %, by Holm 3.1 % for both."""
    folder = sweep(tmp_path)
    about = json.loads((folder / "bench.json").read_text())
    about["tasks"] = about["tasks"][:1]
    about["edits"] = [{"label": m, "method": m, "task": "tiger", "seed": 0} for m in "abc"]
    (folder / "bench.json").write_text(json.dumps(about))
    kept = {"base": 12, "a": 0, "b": 7, "c": 6}
    rows = [
        line(task="tiger", protocol="tiger-protocol", edit=m, seed=i, value=int(i < k))
        for m, k in kept.items()
        for i in range(12)
    ]
    write_rows(folder, rows)
    best = board_of(read_sweep(folder)).best(ERASED)
    assert best.methods == ["a"]
    assert best.p_values == {"b": 2 * 2 / 2**7, "c": 2 / 2**6}
    shown = table(write_leaderboard(folder).read_text(), "Methods")
    assert [row[1].split("/")[0] for row in shown[1:]] == ["0 %", "100 %", "42 %*", "50 %*"]
    assert "**100.0** [76, 100]" in (folder / "leaderboard.md").read_text()
    assert r"b & 41.7 {\scriptsize [19, 68]}$^*$" in (folder / "leaderboard.tex").read_text()
    rows = [
        r | {"value": 1} if r["edit"] == "c" and r["seed"] == 6 else r | {"value": 0} if r["edit"] == "a" else r
        for r in rows
    ]
    write_rows(folder, rows)
    assert board_of(read_sweep(folder)).best(ERASED).p_values == {"b": 2 / 2**6, "c": 2 / 2**6}
    rows = [r | {"value": 0} if r["edit"] == "c" else r for r in rows]
    write_rows(folder, rows)
    assert board_of(read_sweep(folder)).best(ERASED).methods == ["a", "c"]


def test_a_method_that_does_nothing_is_no_best_keeper_and_none_is_named_where_all_are_alike(tmp_path):
    folder = sweep(tmp_path)
    about = json.loads((folder / "bench.json").read_text())
    about["tasks"] = about["tasks"][:1]
    about["edits"] = [{"label": m, "method": m, "task": "tiger", "seed": 0} for m in ("noop", "a", "b")]
    (folder / "bench.json").write_text(json.dumps(about))
    given = {"base": (12, 12), "noop": (12, 12), "a": (0, 11), "b": (0, 2)}  # of 12: tigers found, lions found
    rows = [
        line(task="tiger", protocol="tiger-protocol", edit=m, seed=i, value=int(i < k), **role)
        for m, (erased, kept) in given.items()
        for k, role in ((erased, {}), (kept, {"role": "neighbour", "concept": "lion"}))
        for i in range(12)
    ]
    write_rows(folder, rows)
    board = board_of(read_sweep(folder))
    assert board.best(NEAR).methods == ["a"]
    assert board.best(NEAR).bold("a")
    assert board.best(ERASED).methods == ["a", "b"]
    write_rows(folder, [r for r in rows if r["edit"] != "noop" and r["role"] == "erase"])
    about["edits"] = about["edits"][1:]
    (folder / "bench.json").write_text(json.dumps(about))
    assert not board_of(read_sweep(folder)).best(ERASED).bold("a")


def test_many_at_once(folder):
    text = write_leaderboard(folder).read_text()
    head, base, a, b = table(text, "ESR-1, erased")
    assert head == ["Method", "1/at once", "2/at once"]
    assert [row[1].split("/")[0] for row in (base, a, b)] == ["0 %", "75 %", "14 %"]
    assert [row[2].split("/")[0] for row in (base, a, b)] == ["0 %", "50 %", "0 %"]
    assert "a: 1 75\u00a0%, 2 50\u00a0%" in text


def test_one_after_the_other(folder):
    """The tiger is gone after the first step, and half of it back after the second."""
    text = write_leaderboard(folder).read_text()
    rows = table(text[text.index("One after the other") :], "a")
    assert [[cell.split("/")[0] for cell in row] for row in rows] == [
        ["Then erased", "tiger", "rose"], ["tiger", "100 %", ""], ["rose", "50 %", "100 %"],
    ]  # fmt: skip


def test_the_markdown_has_many_and_sequences(folder):
    write_leaderboard(folder)
    text = (folder / "leaderboard.md").read_text()
    many, sequence = (
        text.split("**ESR-1 erased, by how many were erased at once**")[1],
        text.split("**ESR-1 of each after")[1],
    )
    assert "| method | 1 | 2 |" in many
    assert "| a | 75 [30, 95] of 4 | 50 [" in many
    assert sequence.startswith(" tiger, then rose**")
    assert "| a | 50 [" in sequence
    assert "No attack was tried" in text


def test_the_markdown_has_means_of_what_is_no_rate(folder):
    assert "Means over pictures" not in (write_leaderboard(folder).parent / "leaderboard.md").read_text()
    near = {"task": "tiger", "protocol": "tiger-protocol", "edit": "a", "role": "neighbour", "score": "perceptual"}
    with (folder / "scores.jsonl").open("a") as f:
        f.writelines(json.dumps(line(**near, seed=i, value=value)) + "\n" for i, value in enumerate((0.25, 0.5)))
    write_leaderboard(folder)
    text = (folder / "leaderboard.md").read_text().split("Means over pictures")[1]
    assert "| method | perceptual neighbours |" in text
    assert "| unedited | – |" in text
    assert "| a | 0.375 |" in text


def test_names_of_a_sequence_as_bench_writes_them(folder):
    about = json.loads((folder / "bench.json").read_text())
    about["tasks"][-1] |= {
        "erased": ["tiger", "rose"],
        "after": [["tiger"]],
    }  # all that were erased; a list for each step
    (folder / "bench.json").write_text(json.dumps(about))
    last = read_sweep(folder).info["tasks"][-1]
    assert (last["erased"], last["after"]) == (["rose"], ["tiger"])
    assert "50 %" in str(table(write_leaderboard(folder).read_text().split("One after the other")[1], "a"))


def test_interference_of_each_method(folder):
    head, tiger, rose = table(write_leaderboard(folder).read_text().split("<h2>Interference")[1], "a")
    assert head == ["Task", "tiger", "tiger-neighbour", "tiger-distant", "rose", "rose-neighbour", "rose-distant"]
    assert tiger == ["tiger", "+100", "−50", "0", "", "", ""]
    assert rose == ["rose", "", "", "", "+50", "−50", "0"]


def test_published_numbers_beside_ours(folder, monkeypatch, tmp_path):
    (tmp_path / "data").mkdir()
    rows = "A,moji,ESR-1,70.0,1.5,Paper <1>,\nzzz,moji,FID,9,,Paper,note\na,other,ESR-1,1,,x,\n"
    (tmp_path / "data" / "published.csv").write_text("method,protocol,metric,value,std,source,note\n" + rows)
    monkeypatch.setattr(papers, "files", lambda package: tmp_path)
    _, one, two = table(write_leaderboard(folder).read_text(), "Published")
    assert one[:3] == ["A", "ESR-1", "70.0 ± 1.5"]
    assert one[3].startswith("75 %/26-96 %")
    assert two[2:] == ["9", "-", "Paper", "note"]


def test_a_sweep_of_many_only_is_ranked_by_it(folder):
    about = json.loads((folder / "bench.json").read_text())
    about["tasks"] = [t for t in about["tasks"] if t["kind"] == "many"]
    rows = [json.loads(r) for r in (folder / "scores.jsonl").read_text().splitlines()]
    (folder / "bench.json").write_text(json.dumps(about))
    write_rows(folder, [r for r in rows if r["task"] == "many-2"])
    write_leaderboard(folder)
    assert lines(folder / "leaderboard.csv")[1]["ESR-1 erased"] == "0.5"


def test_write_report_of_a_sweep_writes_its_tasks_reports(folder):
    save(folder / "tiger", info(), scores())
    assert write_report(folder) == folder / "index.html"
    assert (folder / "tiger" / "report.html").is_file()
    with pytest.raises(EffaceError, match="output: expected none for a sweep"):
        write_report(folder, folder / "x.html")


def test_a_folder_without_a_sweep_is_one_sentence(tmp_path):
    with pytest.raises(
        EffaceError, match=r"bench\.json: expected a readable UTF-8 file, got nothing there; give a folder"
    ):
        write_leaderboard(tmp_path)


def test_a_sweep_with_two_detectors_for_a_judge_is_refused(folder):
    rows = [json.loads(r) for r in (folder / "scores.jsonl").read_text().splitlines()]
    rows[-1]["detector"] = "other"
    write_rows(folder, rows)
    with pytest.raises(
        EffaceError, match=r"expected one detector for the judge 'concept', got moji-concept-1 and other"
    ):
        read_sweep(folder)


def test_runs_side_by_side(tmp_path):
    one = save(tmp_path / "one", info(), scores())
    two = save(tmp_path / "two", info(), [r | ({"value": 0} if r["edit"] == "uce" else {}) for r in scores()])
    page = write_comparison([one, two], tmp_path / "both.html")
    assert Page(page.read_text()).open == []
    base, first, second = lines(tmp_path / "both.csv")
    assert [r["method"] for r in (base, first, second)] == ["base", "UCE (one)", "UCE (two)"]
    assert [float(r["ESR-1 erased"]) for r in (base, first, second)] == [0.0, round(2 / 3, 4), 1.0]
    assert "one/report.html" in [a["href"] for a in Page(page.read_text()).all("a")]
    other = save(tmp_path / "other", info() | {"fingerprint": "77"}, scores())  # another model, asked the same
    write_comparison([one, other], tmp_path / "both.html")
    assert [r["method"] for r in lines(tmp_path / "both.csv")][::2] == ["unedited (one)", "unedited (other)"]


def test_sweeps_side_by_side(tmp_path):
    one, two = sweep(tmp_path / "one"), sweep(tmp_path / "two")
    write_comparison([one, two], tmp_path / "both.html")
    rows = lines(tmp_path / "both.csv")
    assert [r["method"] for r in rows] == ["base", "a (one)", "b (one)", "a (two)", "b (two)"]
    assert rows[1]["ESR-1 erased"] == rows[3]["ESR-1 erased"] == "0.75"


def moved(rows, **change):
    return [r | change | {"protocol": "ffff"} for r in rows]


@pytest.mark.parametrize(
    ("about", "rows", "why"),
    [
        ({"guidance": 7.5}, moved(scores()), "which differ in the sampler"),
        ({"benchmark": "other"}, moved(scores()), "which differ in the benchmark"),
        ({}, moved(r for r in scores() if r["concept"] != "rose"), "which differ in the prompts"),
        ({}, [r | {"seed": r["seed"] + 9} for r in moved(scores())], "which differ in the seeds"),
        ({}, moved(r for r in scores() if r["score"] == "top1"), "which differ in the judges or their scores"),
        ({}, [r | {"concept": "cat"} if r["role"] == "erase" else r for r in moved(scores())], "which differ in what was erased"),
        ({}, moved(scores()), "which differ in the targets, or in what the methods were told to preserve"),
    ],
)  # fmt: skip
def test_what_was_asked_otherwise_is_not_compared(tmp_path, about, rows, why):
    one = save(tmp_path / "one", info(), scores())
    two = save(tmp_path / "two", info() | {"protocol": "ffff"} | about, rows)
    sentence = rf"task 'tiger': expected one protocol, got 0123456789ab in one and ffff in two, {why}; measure"
    with pytest.raises(EffaceError, match=sentence):
        write_comparison([one, two], tmp_path / "both.html")
    assert not (tmp_path / "both.html").exists()


def test_other_detectors_other_tasks_and_too_few_are_not_compared(tmp_path):
    one = save(tmp_path / "one", info(), scores())
    cards = DETECTORS | {"concept": {"name": "x", "id": "x"}}
    two = save(tmp_path / "two", info() | {"detectors": cards}, [r | {"detector": "x"} for r in scores()])
    with pytest.raises(
        EffaceError, match=r"judge 'concept': expected one detector, got moji-concept-1 in one and x in two"
    ):
        write_comparison([one, two], tmp_path / "both.html")
    lion = save(tmp_path / "lion", info() | {"task": "lion"}, [r | {"task": "lion"} for r in scores()])
    with pytest.raises(EffaceError, match=r"expected the same tasks, got 'lion' in lion only"):
        write_comparison([one, lion], tmp_path / "both.html")
    with pytest.raises(EffaceError, match=r"expected two or more folders, got 1"):
        write_comparison([one], tmp_path / "both.html")
    with pytest.raises(EffaceError, match=r"expected different folders"):
        write_comparison([one, one], tmp_path / "both.html")
