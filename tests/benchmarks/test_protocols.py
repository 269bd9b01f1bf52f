"""Every declared protocol against its published counts; names and prompts against the released files; published numbers."""

import hashlib
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_prompts import prompt_files, row, write

from efface.benchmarks import ELSEWHERE, TABLE, coco, find, published
from efface.benchmarks.cost import cost, needs
from efface.benchmarks.prompts import names
from efface.benchmarks.spec import Benchmark, Cell, Judge, Sampler, Task, protocol_hash
from efface.core.concept import Concept
from efface.core.errors import UsageError

# tasks, pictures of a method, pictures of the unedited model, calls for one picture
COUNTS = {
    "imagenette": (4, 20000, 5000, 200),
    "imagenette-known": (4, 20000, 5000, 200),
    "imagenette-csv": (4, 20000, 5000, 200),
    "imagenette-advanchor": (9, 9 * 2250, 2250, 100),
    "styles-advanchor": (9, 9 * 2250, 2250, 100),
    "artists": (5, 5000, 1000, 200),
    "artists-100": (1, 2500 + 2500 + 1600, 6600, 100),
    "artists-100-celebrities": (1, 2500, 2500, 100),
    "celebrities": (1, 1250 + 2500, 3750, 100),
    "celebrities-distant": (1, 2500 + 1600, 4100, 100),
    "coco-1k": (3, 3000, 1000, 100),
    "coco-30k": (3, 90000, 30000, 100),
    "i2p": (1, 4703, 4703, 100),
    "i2p-official": (1, 47030, 47030, 100),
    "unlearndiffatk-nudity": (1, 142, 142, 100),
    "unlearndiffatk-vangogh": (1, 50, 50, 100),
    "unlearndiffatk-objects": (4, 200, 200, 100),
    "ring-a-bell": (1, 95, 95, 100),
    "ring-a-bell-violence": (1, 250, 250, 100),
    "unlearncanvas": (70, 357000, 5100, 200),
}

full_size = pytest.mark.usefixtures(
    "untyped"
)  # a hundred thousand cells; types are checked by the small protocols' tests


def only(name: str, folder: Path) -> Task:
    """The one task of a benchmark, whole."""
    one = find(name)
    (task,) = one.made(prompt_files(one, folder))
    return task


def said(cells: list[Cell]) -> str:
    """What a released prompt file's rows come to."""
    return hashlib.sha256("".join(f"{c.prompt}\t{c.seed}\n" for c in cells).encode()).hexdigest()[:16]


def test_the_table_names_what_it_finds_without_torch() -> None:
    assert set(TABLE) == {"moji", *COUNTS}
    assert TABLE["moji"] == "efface.benchmarks.moji:MOJI"
    for name in COUNTS:
        assert find(name).name == name
    with pytest.raises(
        UsageError, match=r"benchmark: unknown 'imagenete'; did you mean 'imagenette'.*known: artists, "
    ):
        find("imagenete")
    code = "import sys, efface.benchmarks as b\nfor n in b.TABLE:\n  n == 'moji' or b.find(n)\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(Path(__file__).parents[2] / "src")})


@full_size
@pytest.mark.parametrize("name", COUNTS)
def test_pictures_are_as_many_as_published_and_three_prompts_of_each_are_a_small_benchmark(
    name: str, tmp_path: Path
) -> None:
    one = find(name)
    whole = list(one.made(prompt_files(one, tmp_path)))
    tasks, pictures, base, calls = COUNTS[name]
    got = cost(replace(one, tasks=lambda _: whole, files={}), seconds=3.6)
    assert (got["tasks"], got["fits"], got["pictures"], got["base pictures"]) == (tasks, tasks, pictures, base)
    assert (got["calls"], got["base calls"]) == (pictures * calls, base * calls)
    assert got["hours"] == pytest.approx(pictures / 1000)
    assert got["base hours"] == pytest.approx(base / 1000)
    assert len({task.name for task in whole}) == tasks
    for full in whole[:2]:
        small = full.thinned(3)
        count = Counter((c.role, c.concept, c.judge) for c in small.cells)
        assert set(count.values()) == {3}
        assert set(count) == {(c.role, c.concept, c.judge) for c in full.cells}
        assert {*one.judges} <= {c.judge for c in small.cells} <= {*one.judges, ""}
        roles = {c.role for c in small.cells}
        assert roles == {"distant"} or {"erase", "implicit"} & roles
        assert full.erase
        assert protocol_hash(one, small) != protocol_hash(one, full.thinned(2))
    assert one.about
    assert one.source
    assert one.differs


TO_HAND = {  # need no file
    "imagenette", "imagenette-known", "imagenette-advanchor", "styles-advanchor", "artists-100", "artists-100-celebrities",
    "celebrities", "celebrities-distant", "unlearncanvas",
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_who_lacks_a_file_is_told_where_it_is(name: str) -> None:
    one = find(name)
    for key, file in one.files.items():
        with pytest.raises(UsageError, match=rf"benchmark {name}: needs the prompts .* --file "):
            list(one.made({k: Path("x") for k in one.files if k != key}))
        assert "github.com" in file.where or "huggingface.co" in file.where
    assert bool(one.files) == (name not in TO_HAND)


def test_a_declaration_says_how_pictures_are_drawn_and_judged() -> None:
    drawn = {name: (s.name, s.steps, s.guidance) for name in COUNTS for s in [find(name).sampler]}
    assert {n for n, d in drawn.items() if d == ("lms", 100, 7.5)} == {
        "imagenette",
        "imagenette-known",
        "imagenette-csv",
        "artists",
    }
    assert {n for n, d in drawn.items() if d == ("lms", 50, 7.5)} == {
        n for n in COUNTS if n.startswith("unlearndiffatk")
    }
    assert {n for n, d in drawn.items() if d == ("ddim", 100, 9.0)} == {"unlearncanvas"}
    assert sum(d == ("ddim", 50, 7.5) for d in drawn.values()) == len(COUNTS) - 8
    negative = {name: find(name).sampler.negative for name in COUNTS if find(name).sampler.negative}
    assert set(negative) == {"celebrities", "artists-100-celebrities"}
    (words,) = set(negative.values())
    assert len(words.split(", ")) == 20
    assert words.startswith("bad anatomy, watermark, extra digit")
    assert words.endswith("humpbacked, bad hands, username")
    nude = find("i2p").judges["concept"]
    assert nude.scores == ("any0.3", "any0.5", "any0.6", "any0.7", "any0.8", "count0.6")
    assert len(nude.classes) == 8
    assert "ANUS_EXPOSED" not in nude.classes
    assert set(find("unlearndiffatk-nudity").judges["concept"].classes) - set(nude.classes) == {"ANUS_EXPOSED"}
    assert needs(find("unlearncanvas"))["detectors"] == {"style": None, "object": None}
    assert needs(find("imagenette"))["detectors"] == {"concept": "classifier:microsoft/resnet-50"}


@full_size
def test_imagenette_erases_the_published_halves() -> None:
    v1 = {"cassette player", "church", "garbage truck", "parachute", "French horn"}
    v3 = {"cassette player", "chain saw", "church", "gas pump", "tench"}
    tasks = {task.name: task for task in find("imagenette").made()}
    gone = {name: {c.name for c in task.erase} for name, task in tasks.items()}
    every = set(names("imagenette"))
    assert gone == {"imagenette-v1": v1, "imagenette-v2": every - v1, "imagenette-v3": v3, "imagenette-v4": every - v3}
    for name, task in tasks.items():
        assert {c.concept for c in task.cells if c.role == "erase"} == gone[name]
        assert Counter(c.concept for c in task.cells) == dict.fromkeys(every, 500)
        assert {c.seed for c in task.cells if c.concept == "tench"} == set(range(500))
        assert task.preserve == ()
    assert tasks["imagenette-v3"].cells[0].prompt == "Image of Cassette Player"  # as the published file writes it
    told = list(find("imagenette-known").made())
    assert [({c.name for c in t.preserve}, t.cells) for t in told] == [
        (every - gone[t.name], tasks[t.name].cells) for t in told
    ]
    assert protocol_hash(find("imagenette"), tasks["imagenette-v1"]) != protocol_hash(find("imagenette-known"), told[0])


@full_size
def test_imagenette_takes_the_published_rows_and_refuses_others(tmp_path: Path) -> None:
    one = find("imagenette-csv")
    files = prompt_files(one, tmp_path)
    task = next(one.made(files))
    assert Counter((c.role, c.concept) for c in task.cells)["erase", "church"] == 500
    assert {(c.prompt, c.seed) for c in task.cells if c.concept == "tench"} == {
        (f"a imagenette picture, number {i}", 2**31 - 50 + i) for i in range(0, 5000, 10)
    }
    wrong = write(
        tmp_path / "w.csv", [{**row(one.files["imagenette"], "w", i), "label_str": "Goldfish"} for i in range(5000)]
    )
    with pytest.raises(UsageError, match=r"w\.csv: 'Goldfish' is no class of the protocol; .*golf ball"):
        list(one.made({"imagenette": wrong}))


@full_size
@pytest.mark.parametrize("name", ["imagenette-advanchor", "styles-advanchor"])
def test_advanchor_asks_for_bare_names(name: str) -> None:
    tasks = list(find(name).made())
    for task in tasks:
        assert {c.prompt for c in task.cells if c.role == "erase"} == {task.name}
        assert len({c.prompt for c in task.cells if c.role == "neighbour"}) == 8
        assert set(Counter(c.prompt for c in task.cells).values()) == {250}
    assert "cassette player" not in {t.name for t in tasks}
    assert {t.erase[0].kind for t in tasks} == {"style" if name.startswith("style") else "object"}


@full_size
def test_people_painters_and_characters_are_asked_for_as_in_the_released_files(tmp_path: Path) -> None:
    """The digests are of prompt and seed of every row of CPE's generation_prompts/*.csv, in their order."""
    cells = {
        n: only(n, tmp_path).cells
        for n in ("celebrities", "celebrities-distant", "artists-100", "artists-100-celebrities")
    }
    people = {role: [c for c in cells["celebrities"] if c.role == role] for role in ("erase", "neighbour")}
    assert (len(people["erase"]), said(people["erase"])) == (1250, "68da8d8ec8650f3d")
    assert (len(people["neighbour"]), said(people["neighbour"])) == (2500, "37d2f56e20f049ff")
    painters = {role: [c for c in cells["artists-100"] if c.role == role] for role in ("erase", "neighbour")}
    assert (len(painters["erase"]), said(painters["erase"])) == (2500, "9e353d0bcbedfb01")
    assert (len(painters["neighbour"]), said(painters["neighbour"])) == (2500, "a188a3042cef9c23")
    assert said(list(cells["artists-100-celebrities"])) == said(people["neighbour"])
    for name in ("celebrities-distant", "artists-100"):
        drawn = [c for c in cells[name] if c.group == "characters"]
        prompts = sorted({f"{c.prompt}\n" for c in drawn})
        assert (len(drawn), len(prompts)) == (1600, 320)
        assert hashlib.sha256("".join(prompts).encode()).hexdigest()[:16] == "c5645003ba66eee2"
        assert {c.role for c in drawn} == {"distant"}
        assert {c.judge for c in drawn} == {""}
    assert said([c for c in cells["celebrities-distant"] if c.group == "artists"]) == said(painters["neighbour"])
    assert {c.kind for c in only("celebrities", tmp_path).erase} == {"person"}


def test_bui_s_artists_are_erased_one_by_one(tmp_path: Path) -> None:
    one = find("artists")
    tasks = list(one.made(prompt_files(one, tmp_path)))
    assert [t.erase[0].name for t in tasks] == list(names("artists-five"))
    for task in tasks:
        assert Counter(c.role for c in task.cells) == {"erase": 200, "neighbour": 800}
        assert {c.concept for c in task.cells if c.role == "erase"} == {task.erase[0].name}
        assert not set(task.name) & set(":/\\")
    first = [c for c in tasks[0].cells if c.prompt == tasks[0].cells[0].prompt]
    assert [c.seed - first[0].seed for c in first] == [0, 1, 2, 3, 4]
    wrong = write(
        tmp_path / "w.csv", [{**row(one.files["artists"], "w", i), "artist": "Tyler Edlyn"} for i in range(200)]
    )
    with pytest.raises(UsageError, match=r"'Tyler Edlyn' is no artist of the protocol; did you mean 'Tyler Edlin'"):
        list(one.made({"artists": wrong}))


@full_size
def test_a_thousand_captions_are_the_same_whatever_the_order_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coco, "CAPTIONS", replace(coco.CAPTIONS, rows=3000))
    rows = [row(coco.CAPTIONS, "coco", i) for i in range(3000)]
    shuffled = random.Random(0).sample(rows, len(rows))
    files = [{"coco": write(tmp_path / f"{i}.csv", some)} for i, some in enumerate((rows, shuffled))]
    here, there = (list(find("coco-1k").made(one)) for one in files)
    assert here == there
    hashes = sorted(hashlib.sha1(r["prompt"].encode()).digest() for r in rows)
    assert [hashlib.sha1(c.prompt.encode()).digest() for c in here[0].cells] == hashes[:1000]
    everything = list(find("coco-30k").made(files[0]))
    assert {t.name: len(t.erase) for t in everything} == {"celebrities-50": 50, "artists-100": 100, "nudity": 1}
    assert [c.prompt for c in everything[0].cells] == [r["prompt"] for r in rows]


@full_size
def test_i2p_keeps_every_seed_and_its_guidance_only_where_published(tmp_path: Path) -> None:
    fixed, official = only("i2p", tmp_path), only("i2p-official", tmp_path)
    assert {c.guidance for c in fixed.cells} == {None}
    assert [c.guidance for c in official.cells[::10]] == [5 + i % 16 for i in range(4703)]
    assert [c.seed for c in fixed.cells] == [2**31 - 50 + i for i in range(4703)]
    assert [c.seed for c in official.cells[10:20]] == [2**31 - 49 + i for i in range(10)]
    assert {c.group for c in fixed.cells} == {"hate, sexual", "shocking"}
    assert fixed.erase[0].phrases == ("nudity", "naked", "erotic", "sexual")
    assert {c.role for c in fixed.cells} == {"implicit"}


def test_attacked_prompts_have_their_own_seed_and_guidance(tmp_path: Path) -> None:
    nude = only("unlearndiffatk-nudity", tmp_path)
    assert [(c.seed, c.guidance) for c in nude.cells[:2]] == [(2**31 - 50, 5.0), (2**31 - 49, 6.0)]
    painted = only("unlearndiffatk-vangogh", tmp_path)
    assert {c.concept for c in painted.cells} == {"vincent-van-gogh"}  # the label of their classifier
    one = find("unlearndiffatk-objects")
    tasks = list(one.made(prompt_files(one, tmp_path)))
    assert [t.name for t in tasks] == ["church", "garbage truck", "parachute", "tench"]
    assert {c.prompt.split()[1] for c in tasks[1].cells} == {"garbage-truck"}  # of its own file
    assert {c.guidance for c in only("ring-a-bell", tmp_path).cells} == {None}


@full_size
def test_unlearncanvas_judges_every_picture_twice() -> None:
    tasks = {t.name: t for t in find("unlearncanvas").made()}
    assert set(tasks) == {*names("unlearncanvas-styles"), *names("unlearncanvas-objects")} - {"Seed_Images"}
    style, thing = tasks["Van_Gogh"], tasks["Dogs"]
    assert Counter(c.role for c in style.cells) == {"erase": 100, "companion": 100, "neighbour": 5000, "distant": 5000}
    assert Counter(c.role for c in thing.cells) == {"erase": 255, "companion": 255, "neighbour": 4845, "distant": 4845}
    for task, judge, words in ((style, "style", "in Van Gogh style"), (thing, "object", "A Dogs image")):
        for c in task.cells:
            assert (c.role in ("erase", "companion")) == (words in c.prompt)
            assert (c.role in ("erase", "neighbour")) == (c.judge == judge)
            assert (c.role == "erase") == (c.concept == task.name.replace("_", " "))
            assert c.concept in c.prompt
    assert Counter((c.prompt, c.seed) for c in style.cells).most_common()[-1][1] == 2
    assert {c.seed for c in style.cells} == {188, 288, 588, 688, 888}
    assert style.erase == (Concept("Van Gogh", kind="style"),)
    assert "A Sea image in Seed Images style." in {c.prompt for c in style.cells if c.role == "neighbour"}


def test_cost_counts_what_is_shared_once() -> None:
    a, b, c = Concept("a"), Concept("b"), Concept("c")
    cells = (
        Cell("erase", "a", "p", 1), Cell("companion", "x", "p", 1, "style"), Cell("erase", "a", "p", 2),
        Cell("erase", "a", "p", 1, guidance=1.0),
    )  # fmt: skip
    tasks = [
        Task("one", (a,), (Concept("k"),), cells),
        Task("two", (b,), (Concept("k"),), (*cells[:1], Cell("distant", "z", "q", 1)), after=((a,),)),
        Task("three", (c,), (Concept("k"),), cells[:1], after=((a,), (b,))),
        Task("four", (a,), (), cells[:1]),
    ]
    one = Benchmark("n", "", "", lambda _: iter(tasks), {"concept": Judge("d"), "style": Judge("")}, Sampler(steps=10))
    got = cost(one, seconds=36.0)
    assert got["tasks"] == 4
    assert got["fits"] == 4  # a, then b, then c; a told nothing to keep
    assert got["pictures"] == 3 + 2 + 1 + 1
    assert got["calls"] == 2 * 20 + 10 + 2 * 20 + 20 + 20
    assert (got["base pictures"], got["base calls"]) == (4, 20 + 20 + 10 + 20)
    assert got["hours"] == pytest.approx(0.07)
    assert got["detectors"] == {"concept": "d", "style": None}
    assert cost(one, prompts=1)["pictures"] == 1 + 2 + 1 + 1  # the companion is judged in the same picture


def value(method: str, protocol: str, metric: str, source: str = "", note: str = "") -> float:
    """The one published number."""
    (row,) = [
        r for r in published(protocol)
        if (r["method"], r["metric"]) == (method, metric) and source in r["source"] and note in r["note"]
    ]  # fmt: skip
    return float(row["value"])


def test_published_rows_are_all_there_and_each_once() -> None:
    rows = published()
    count = Counter((r["source"], r["protocol"]) for r in rows)
    recomputed = "recomputed from the repository's CSVs"
    assert count == {
        ("Bui et al.", "imagenette"): 8 * 4 + 2, ("Bui et al.", "imagenette-known"): 2 * 4 + 2, (recomputed, "imagenette"): 6 * 4,
        ("Bui et al.", "i2p"): 5 * 4, (recomputed, "i2p"): 9 * 4 + 4, ("Bui et al.", "coco-fid"): 7 * 2 + 5,
        ("CPE, table 3", "i2p"): 10 * 9, ("CPE, table 3", "coco-30k"): 10, ("CPE, table 3", "coco-fid"): 9,
        ("CPE, table 1", "celebrities"): 7 * 5 - 1, ("CPE, table 1", "celebrities-distant"): 7 * 4 - 2,
        ("CPE, table 1", "coco-30k"): 7, ("CPE, table 1", "coco-fid"): 7,
        ("CPE, table 2", "artists-100"): 7 * 5 - 2, ("CPE, table 2", "artists-100-celebrities"): 7 * 3 - 1,
        ("CPE, table 2", "coco-30k"): 7, ("CPE, table 2", "coco-fid"): 7,
        ("CPE, table 4", "ring-a-bell-cpe"): 5 * 3 + 2, ("CPE, table 4", "unlearndiffatk-nudity"): 7,
        ("CPE, table 4", "unlearndiffatk-vangogh"): 7, ("CPE, table E.5", "unlearndiffatk-nudity"): 4,
        ("UnlearnDiffAtk, README", "unlearndiffatk-nudity"): 8 * 2, ("UnlearnDiffAtk, README", "coco-fid"): 8 * 2,
        ("P4D, README", "p4d"): 6 * 4, ("AdvAnchor", "styles-advanchor"): 7 * 6, ("AdvAnchor", "imagenette-advanchor"): 7 * 6,
        ("AdvAnchor", "i2p-advanchor"): 5 * 4 + 3 * 4 + 1, (recomputed, "artists"): 6 * 4 + 1,
        ("UnlearnCanvas, main table", "unlearncanvas"): 10 * 7, ("I2P, README", "i2p-official"): 9,
    }  # fmt: skip
    assert {r["protocol"] for r in rows} <= {*TABLE, *ELSEWHERE}
    assert not set(TABLE) & set(ELSEWHERE)
    keys = Counter((r["method"], r["protocol"], r["metric"], r["source"], r["note"]) for r in rows)
    assert max(keys.values()) == 1
    assert all(float(r["value"]) >= 0 and (not r["std"] or float(r["std"]) >= 0) for r in rows)
    with pytest.raises(UsageError, match=r"protocol: no published number of 'i2q'; did you mean 'i2p'"):
        published("i2q")


def test_published_numbers_are_those_of_the_papers() -> None:
    assert value("MACE", "imagenette", "ESR-1", "Bui") == 99.3
    assert value("AGE", "imagenette", "PSR-5") == 95.6
    assert value("UCE", "imagenette-known", "PSR-1") == 62.1
    assert value("ESD", "imagenette", "ESR-1", "recomputed") == 78.14
    assert value("SD 1.4", "i2p", "NER-0.8") == 2.02
    assert value("SD 1.4", "i2p", "count-0.6 FEMALE_BREAST_EXPOSED") == 266
    assert value("CPE", "celebrities", "ACC kept") == 88.26
    assert value("UCE", "celebrities-distant", "KID characters") == 3.31
    assert value("MACE", "artists-100-celebrities", "ACC") == 10.79
    assert value("UCE", "coco-fid", "FID", "table 1") == 97.09
    assert value("SalUn", "unlearndiffatk-nudity", "pre-ASR") == 1.41
    assert value("SLD-MAX", "p4d", "ASR Union") == 52.66
    assert value("AdvAnchor (1st loss)", "styles-advanchor", "LPIPS erased") == 0.475
    assert value("AbConcept", "imagenette-advanchor", "ACC kept") == 82.5
    assert value("KPOP", "artists", "LPIPS kept") == 0.512
    assert value("SAeUron", "unlearncanvas", "CRA object") == 95.58
    assert value("SLD strong", "i2p-official", "probability sexual") == 4.83
    (one,) = [
        r for r in published("imagenette") if (r["method"], r["metric"], r["source"]) == ("KPOP", "RSR-1", "Bui et al.")
    ]
    assert (one["value"], one["std"]) == ("72.0", "11.2")
    assert {r["note"] for r in published("unlearncanvas")} == {"recalled: check against the paper"}


def test_nudity_totals_are_the_sums_of_their_columns_unless_noted() -> None:
    rows = [r for r in published("i2p") if r["source"] == "CPE, table 3"]
    wrong = {}
    for method in {r["method"] for r in rows}:
        mine = {r["metric"].removeprefix("count-0.6").strip(): int(r["value"]) for r in rows if r["method"] == method}
        total = mine.pop("")
        assert set(mine) == set(find("i2p").judges["concept"].classes)
        if sum(mine.values()) != total:
            wrong[method] = f"its columns sum to {sum(mine.values())}"
    assert wrong == {r["method"]: r["note"] for r in rows if "sum to" in r["note"]}
    assert set(wrong) == {"ESD-x", "ESD-u", "MACE", "CPE, 1 word"}


def test_tables_agree_where_they_say_the_same() -> None:
    for k in (1, 5):  # every picture of the unedited model counts once as erased, once as kept
        for source in ("Bui", "recomputed"):
            assert value("SD 1.4", "imagenette", f"ESR-{k}", source) + value(
                "SD 1.4", "imagenette", f"PSR-{k}", source
            ) == pytest.approx(100)
    for method, again in (("SD 1.4", "SD 1.4"), ("MACE", "MACE"), ("AP", "AP")):
        for metric in ("ESR-1", "ESR-5", "PSR-1", "PSR-5"):
            assert value(method, "imagenette", metric, "Bui") == pytest.approx(
                value(again, "imagenette", metric, "recomputed"), abs=0.06
            )
    for method, again in (("CA", "CA"), ("UCE", "UCE"), ("ESD", "ESD-u"), ("AP", "AP-u")):
        for tau in (0.3, 0.5, 0.7, 0.8):
            same = [r for r in published("i2p") if (r["method"], r["metric"]) == (again, f"NER-{tau}")]
            assert value(method, "i2p", f"NER-{tau}", "Bui") in {
                float(r["value"]) for r in same if "recomputed" in r["source"]
            }
    for metric, there in (("CLIP artists", "CLIP kept"), ("CLIP characters", "CLIP characters")):
        assert value("SD 1.4", "celebrities-distant", metric) == value("SD 1.4", "artists-100", there)
    assert value("SD 1.4", "celebrities", "ACC kept") == value("SD 1.4", "artists-100-celebrities", "ACC")
    assert len({value("SD 1.4", "coco-30k", "CLIP", f"table {n}") for n in (1, 2, 3)}) == 1
    for method in ("FMN", "ESD", "UCE", "AdvUnlearn"):
        assert value(method, "unlearndiffatk-nudity", "ASR", "table 4") == value(
            method, "unlearndiffatk-nudity", "ASR", "README"
        )
    assert value("CPE", "unlearndiffatk-nudity", "ASR", "table 4") == value(
        "CPE", "unlearndiffatk-nudity", "ASR", "E.5"
    )
    for method in ("ESD", "SLD-MAX", "SLD-STRONG", "SD-NEGP"):
        assert value(method, "p4d", "ASR Union") > max(value(method, "p4d", f"ASR P4D-{v}") for v in "NK")


def test_success_rates_are_shares_of_their_prompts() -> None:
    """Of 142 for nudity and of 50 for Van Gogh; the one that is not is noted."""
    strange = []
    for protocol, n in (("unlearndiffatk-nudity", 142), ("unlearndiffatk-vangogh", 50)):
        for r in published(protocol):
            share = float(r["value"])
            if abs(share - 100 * round(share * n / 100) / n) > 0.0101:  # some round down
                strange.append((r["method"], r["note"]))
    assert strange == [("RECE", "no number of 142 prompts gives it")]
