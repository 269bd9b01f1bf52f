"""The table on top of a leaderboard: its rule, its intervals, and that it can be read."""

import json
import random
import re
from math import sqrt
from statistics import fmean

import pytest
from made import info, line, save, scores, sweep, table, write_rows

from efface.metrics.rates import Rate
from efface.report.compare import write_comparison
from efface.report.leaderboard import write_leaderboard
from efface.report.ranking import Estimate, Ranking, combined, harmonic, task_mean


@pytest.fixture
def folder(tmp_path):
    return sweep(tmp_path / "sweep")


def markdown(folder):
    write_leaderboard(folder)
    return (folder / "leaderboard.md").read_text()


def first_table(text):
    rows = [line for line in text.split("\n\n")[2].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def wilson(rate, n):
    """The textbook formula."""
    z = 1.959964
    half = z / (1 + z * z / n) * sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    return middle - half, middle + half


def picks(method, erased, kept, n=20, task="t", **change):
    """Rows of one task: of `n` pictures each, so many without what was erased and with its neighbour."""
    given = {"task": task, "edit": method, "method": method, "nth": 0, **change}
    gone = [line(**given, seed=i, value=int(i >= erased)) for i in range(n)]
    return gone + [line(**given, role="neighbour", concept="lion", seed=i, value=int(i < kept)) for i in range(n)]


def test_the_table_is_counted_by_hand(folder):
    """`a` erases 2 of 2 tigers and 1 of 2 roses and keeps 1 of 2 neighbours; `b` erases 1 of 4 and 0 of 3 over two training seeds."""
    head, a, b, base = table(write_leaderboard(folder).read_text(), "Leaderboard")
    assert head == [
        "method",
        "erased",
        "other words",
        "neighbours",
        "distant",
        "style kept",
        "many at once",
        "seconds",
        "size",
    ]
    assert [cell.split("/")[0] for cell in a] == ["1 · a", "75", "–", "50", "100", "–", "60", "1.0 s", "1 kB"]
    assert [cell.split("/")[0] for cell in b] == ["1 · b", "13", "–", "100", "100", "–", "0", "3.0 s", "3 kB"]
    assert [cell.split("/")[0] for cell in base] == ["unedited", "0", "–", "100", "100", "–", "0", "–", "–"]
    assert a[0].split("/")[1].startswith("score 75, ")  # of 75 and (50 + 100) / 2
    assert b[0].split("/")[1].startswith("score 22, ")  # 2 · 0.125 · 1 / 1.125
    assert (a[2], base[7]) == ("–/not asked for", "–/no edit")


def test_the_markdown_has_nine_short_columns_on_top_and_the_rest_folded(folder):
    text = markdown(folder)
    head, _, a, *_ = first_table(text)
    assert len(head) == 9
    assert max(map(len, head)) <= 12
    # erased: 1 and 1/2 of two pictures each, variance (1/16 + 1/16) / 2 = 3/16 / 3: worth three pictures
    (e, _), (n, _), (d, _) = wilson(0.75, 3), wilson(0.5, 4), wilson(1.0, 4)
    lost = [0.75 - harmonic(*parts) for parts in ((e, 0.75), (0.75, (n + 1) / 2), (0.75, (0.5 + d) / 2))]
    low = 0.75 - sqrt(sum(x * x for x in lost))
    assert a[0].startswith(f"1 · a<br><sub>score 75, {100 * low:.0f}–")
    assert a[1] == f"75<br><sub>{100 * e:.0f}–{100 * wilson(0.75, 3)[1]:.0f}</sub>"
    assert {row.count("|") for row in text.splitlines() if row.startswith("|")} <= set(range(3, 11))
    assert (
        "Rank: one plus the number of methods whose whole 95 % interval of the score lies above this method's" in text
    )
    opened, folded = text.split("<details>", 1)
    assert opened.count("|---") == 9  # one table
    assert "ESR-1" not in opened
    assert "ESR-1 erased" in folded
    assert text.count("<details>") == text.count("</details>") == 3  # rates, many, commands
    assert all(part.startswith("\n\n") for part in text.split("</summary>")[1:])  # or GitHub shows no table


def test_a_mean_over_tasks_has_wilsons_interval_at_what_its_pictures_are_worth():
    value, *limits = task_mean([Rate(5, 10), Rate(5, 10)])
    assert value == 0.5
    assert limits == pytest.approx(wilson(0.5, 20), abs=1e-6)
    # tasks all or nothing: variance of the mean (1/4 + 1/4) / 2 = r (1 - r): worth one picture
    assert task_mean([Rate(10, 10), Rate(0, 10)])[1:] == pytest.approx(wilson(0.5, 1), abs=1e-6)
    # of 4 and of 12 pictures: Var = (1/4 + 1/12) r (1 - r) / 4, as of 12 pictures; the value is a mean over tasks, not over pictures
    assert task_mean([Rate(2, 4), Rate(6, 12)])[1:] == pytest.approx(wilson(0.5, 12), abs=1e-6)
    assert task_mean([Rate(4, 4), Rate(6, 12)]).value == 0.75
    assert task_mean([Rate(5, 10), Rate(5, 10)], seeds=2)[1:] == pytest.approx(wilson(0.5, 10), abs=1e-6)


def test_an_interval_of_a_mean_of_independent_parts_is_the_root_of_their_squares():
    found = combined(fmean, [Estimate(0.5, 0.2, 0.6), Estimate(0.7, 0.3, 0.9)])
    assert found == pytest.approx((0.6, 0.6 - sqrt(0.3**2 + 0.4**2) / 2, 0.6 + sqrt(0.1**2 + 0.2**2) / 2))
    assert combined(fmean, [Estimate(0.0, 0.0, 0.2)] * 3).low == 0.0


def test_the_scores_interval_covers_the_true_score_in_95_of_100_sweeps():
    """Pictures drawn with known rates: the interval of the score holds the true score about as often as it says."""
    rng, true = random.Random(0), (0.9, 0.6, 0.95, 0.8, 0.7)
    wanted = harmonic(fmean(true[:2]), fmean(true[2:]))
    held = 0
    for _ in range(1000):
        parts = [task_mean([Rate(sum(rng.random() < p for _ in range(40)), 40)]) for p in true]
        found = combined(lambda v: harmonic(fmean(v[:2]), fmean(v[2:])), parts)
        held += found.low <= wanted <= found.high
    assert 0.93 <= held / 1000 <= 0.985  # three standard errors are 0.02


def test_methods_that_cannot_be_told_apart_share_a_rank():
    rows = [*picks("base", 0, 20), *picks("a", 19, 20), *picks("b", 20, 20), *picks("c", 6, 20), *picks("d", 5, 20)]
    found = Ranking(rows, [], ["base", "a", "b", "c", "d"], ["base"])
    assert found.order == ["b", "a", "c", "d", "base"]
    assert [found.rank(m) for m in found.order] == [1, 1, 3, 3, None]
    scores = found.scores
    assert scores["a"].low < scores["b"].high
    assert scores["c"].high < scores["a"].low


def test_what_the_unedited_model_does_not_draw_is_not_counted():
    """Of 20 prompts the unedited model draws ten: a method that erases those ten has erased all there was."""
    rows = [*picks("base", 10, 20), *picks("a", 15, 20)]  # seeds below 10 and below 15 without it
    found = Ranking(rows, [], ["base", "a"], ["base"])
    assert found.column("a", ("erase",)).value == 0.5  # of seeds 10 to 19 five
    assert found.column("base", ("erase",)).value == 0.0


def test_judges_are_averaged_and_never_counted_together():
    style = picks("a", 0, 4, 4, judge="style")
    found = Ranking([*picks("a", 20, 20), *style], [], ["a"], [])
    assert found.column("a", ("erase",)).value == 0.5


def test_a_method_that_was_not_run_on_every_task_has_no_rank_and_says_why(folder):
    rows = [json.loads(row) for row in (folder / "scores.jsonl").read_text().splitlines()]
    write_rows(folder, [r for r in rows if (r["task"], r["edit"]) != ("rose", "a")])
    *_, b, a, _ = table(write_leaderboard(folder).read_text(), "Leaderboard")
    assert b[0].startswith("1 · b/")
    assert a[0] == "a/no rank: 1 task not run"
    write_rows(folder, [r for r in rows if not (r["task"] == "many-2" and r["edit"] == "a")])
    assert table(write_leaderboard(folder).read_text(), "Leaderboard")[1][6] == "–/not run"
    write_rows(folder, [r | ({"value": None} if (r["role"], r["edit"]) == ("distant", "a") else {}) for r in rows])
    a = table(write_leaderboard(folder).read_text(), "Leaderboard")[2]
    assert (a[0], a[4]) == ("a/no rank: a column is lacking", "–/not judged")


def test_neighbours_kept_by_request_and_others_are_shown_apart(folder):
    rows = [json.loads(row) for row in (folder / "scores.jsonl").read_text().splitlines()]
    asked = {("neighbour", 0): "told", ("neighbour", 1): "untold"}  # `a` keeps seed 0 and loses seed 1
    write_rows(folder, [r | {"group": asked.get((r["role"], r["seed"]), "")} for r in rows])
    a = table(write_leaderboard(folder).read_text(), "Leaderboard")[1]
    assert re.fullmatch(r"100/\d+–100 kept by request0/0–\d+ nobody named", a[3])
    assert a[0].split("/")[1].startswith("score 75, ")  # both together
    assert "kept by request" in first_table(markdown(folder))[2][3]


def test_many_at_once_may_be_a_sweep_inside(folder):
    """Of the same model and sampler; of another model it is left out."""
    about = json.loads((folder / "bench.json").read_text())
    rows = [json.loads(row) for row in (folder / "scores.jsonl").read_text().splitlines()]
    inside = folder / "many"
    inside.mkdir()
    one = about | {"tasks": [t for t in about["tasks"] if t["kind"] == "many"]}
    one["edits"] = [e for e in about["edits"] if e["task"] == "many-2"]
    (inside / "bench.json").write_text(json.dumps(one))
    write_rows(inside, [r for r in rows if r["task"] == "many-2"])
    about["tasks"] = [t for t in about["tasks"] if t["kind"] == "object"]
    about["edits"] = [e for e in about["edits"] if e["task"] in ("tiger", "rose")]
    (folder / "bench.json").write_text(json.dumps(about))
    write_rows(folder, [r for r in rows if r["task"] in ("tiger", "rose")])
    assert table(write_leaderboard(folder).read_text(), "Leaderboard")[1][6].startswith("60/")
    (inside / "bench.json").write_text(json.dumps(one | {"fingerprint": "other"}))
    assert table(write_leaderboard(folder).read_text(), "Leaderboard")[1][6] == "–/not asked for"


def test_quality_comes_first_of_the_numbers_and_small_sets_have_no_distance(folder):
    near = {"task": "tiger", "protocol": "tiger-protocol", "edit": "a", "role": "neighbour"}
    whole = {"concept": "", "seed": -1, "image": " ", "prompt": " "}
    rows = [line(**near, score="perceptual", value=0.5), line(**near, score="quality", value=0.25)]
    sets = [("Fréchet distance (x)", 9.0, 9), ("kernel distance (x)", -1, 60)]
    rows += [line(**near, **whole, score=s, value=v) | {"n": n} for s, v, n in sets]
    with (folder / "scores.jsonl").open("a") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)
    head, _, a, _ = table(write_leaderboard(folder).read_text(), "Pictures")
    assert [h.split("/")[0] for h in head] == [
        "Method",
        "quality",
        "perceptual",
        "Fréchet distance (x)",
        "kernel distance (x)",
    ]
    assert [a[1], *a[3:]] == ["0.25/n = 1", "-/only 9 pictures", "-1/n = 60/below 0: none found"]
    text = markdown(folder)
    assert "| a | 0.25 | 0.5 | – (9 pictures) | -1 (none found) |" in text
    assert "fewer than 50 pictures is not shown" in text


def test_runs_side_by_side_are_ranked(tmp_path):
    one = save(tmp_path / "one", info(), scores())
    two = save(tmp_path / "two", info(), [r | ({"value": 0} if r["edit"] == "uce" else {}) for r in scores()])
    rows = table(write_comparison([one, two], tmp_path / "both.html").read_text(), "Leaderboard")
    assert [row[0].split("/")[0] for row in rows[1:]] == ["1 · UCE (one)", "1 · UCE (two)", "unedited"]
