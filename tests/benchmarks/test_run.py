"""The engine: each cell once, the same bits however often it was interrupted, and a failure that never counts as absence."""

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import children
import numpy as np
import pytest
import torch

from efface.benchmarks.draw import BatchTooLarge, draw
from efface.benchmarks.judge import judge, look, value
from efface.benchmarks.plan import Plan, recipes
from efface.benchmarks.run import evaluate
from efface.benchmarks.spec import Benchmark, Cell, Sampler, Task
from efface.benchmarks.spec import Judge as Asked
from efface.benchmarks.store import Store, name_of
from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.edit import Edit
from efface.core.errors import EffaceError, UsageError
from efface.core.log import Log
from efface.erasers.uce import UCE

ROLES = {"tiger": "erase", "lion": "neighbour", "boat": "distant"}
CELLS = [Cell(role, name, f"a {name}", seed) for name, role in ROLES.items() for seed in range(9)]  # two batches


class Judge:
    """Sees a tiger in light pictures; raises on those it is told to."""

    id = "judge-1"

    def __init__(self, broken: Sequence[np.ndarray] = ()) -> None:
        self.broken, self.asked = broken, 0

    def top(self, pictures: list[np.ndarray], k: int = 10) -> list[list[tuple[str, float]]]:
        self.asked += len(pictures)
        if any(np.array_equal(p, b) for p in pictures for b in self.broken):
            raise RuntimeError("cannot look at this")
        light = [float(p.mean()) > 127 for p in pictures]
        return [[("tiger", 0.9), ("cat", 0.1)] if x else [("cat", 0.8), ("tiger", 0.2)] for x in light]


def setting(base: Denoiser) -> tuple[dict[str, Edit], dict[str, list[Any]]]:
    edits: dict[str, Edit] = {"uce": UCE().fit(base, Concept("tiger", "cat"), ["lion"])}
    return edits, recipes(base, edits, CELLS, Sampler(steps=3, guidance=2.0))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted((folder / "pictures").rglob("*.png"))}


@pytest.fixture(scope="module")
def undisturbed(shared: Denoiser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a run that nothing disturbed."""
    edits, wanted = setting(shared)
    folder = tmp_path_factory.mktemp("run") / "whole"
    draw(Store(folder), shared, edits, wanted, Log())
    return folder


@pytest.fixture
def whole(undisturbed: Path, tmp_path: Path) -> dict[str, bytes]:
    """Its pictures, and a copy of it in "whole"."""
    shutil.copytree(undisturbed, tmp_path / "whole")
    found = contents(tmp_path / "whole")
    assert len(found) == 2 * len(CELLS)
    return found


def test_pictures_are_those_the_model_draws_by_itself(base: Denoiser, whole: dict[str, bytes], tmp_path: Path) -> None:
    edits, wanted = setting(base)
    store = Store(tmp_path / "whole")
    for label, model in {"base": base, "uce": edits["uce"](base)}.items():
        for i in (0, 11, 26):
            alone = model.images([CELLS[i].prompt], [CELLS[i].seed], steps=3, guidance=2.0)[0]
            kept = store.picture(name_of(wanted[label][i]))
            assert np.abs(kept.astype(int) - alone.astype(int)).max() <= 1  # a batch of one rounds in other places
    assert any(not np.array_equal(*(store.picture(name_of(wanted[k][i])) for k in ("base", "uce"))) for i in range(9))


def test_an_interrupted_run_goes_on_to_the_same_bytes(
    base: Denoiser, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edits, wanted = setting(base)
    store, put, count = Store(tmp_path / "parts"), Store.put_picture, []

    def interrupted(self: Store, recipe: Any, picture: np.ndarray) -> None:
        count.append(1)
        if len(count) in (5, 23, 24):
            raise KeyboardInterrupt
        put(self, recipe, picture)

    monkeypatch.setattr(Store, "put_picture", interrupted)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            draw(store, base, edits, wanted, Log())
    draw(store, base, edits, wanted, Log())
    assert contents(tmp_path / "parts") == whole
    assert not list((tmp_path / "parts" / "claims").iterdir())


def test_what_is_there_is_not_drawn_again(
    base: Denoiser, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edits, wanted = setting(base)
    lost = name_of(wanted["uce"][3])
    (tmp_path / "whole" / Store(tmp_path / "whole").picture_path(lost)).unlink()
    drawn, put = [], Store.put_picture
    monkeypatch.setattr(Store, "put_picture", lambda self, r, p: (drawn.append(name_of(r)), put(self, r, p)))
    draw(Store(tmp_path / "whole"), base, edits, wanted, Log())
    assert drawn == [lost]
    assert contents(tmp_path / "whole") == whole


def test_a_cell_that_fails_is_an_error_and_leaves_the_rest(
    base: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("test_run.CELLS", CELLS[2:7])  # few, for each of a batch with a failure is drawn alone
    edits, wanted = setting(base)
    store, images = Store(tmp_path / "s"), Denoiser.images

    def failing(self: Denoiser, prompts: Sequence[str], seeds: Sequence[int], **settings: Any) -> list[np.ndarray]:
        if ("a tiger", 4) in zip(prompts, seeds, strict=True):
            raise RuntimeError("out of memory")
        return images(self, prompts, seeds, **settings)

    monkeypatch.setattr(Denoiser, "images", failing)
    draw(store, base, edits, wanted, Log())
    assert len(store.failures()) == 2
    rows = judge(store, Plan(CELLS, wanted), {"concept": (Asked("judge"), Judge())})
    bad = [r for r in rows if r["value"] is None]
    assert {(r["edit"], r["concept"], r["seed"]) for r in bad} == {("base", "tiger", 4), ("uce", "tiger", 4)}
    assert {r["error"] for r in bad} == {"RuntimeError: out of memory"}
    assert len(rows) == 2 * 2 * len(CELLS)

    monkeypatch.setattr(Denoiser, "images", images)
    draw(store, base, edits, wanted, Log())
    assert len(store.failures()) == 2  # not tried again unasked
    for failure in store.failures():
        store.forget_error(name_of(failure["cell"]))
    draw(store, base, edits, wanted, Log())
    assert store.failures() == []
    assert len(list(store.cells())) == 2 * len(CELLS)


def test_a_detector_that_throws_on_one_picture_judges_the_others(
    base: Denoiser, whole: dict[str, bytes], tmp_path: Path
) -> None:
    _, wanted = setting(base)
    store, names = Store(tmp_path / "whole"), [name_of(r) for r in wanted["base"]]
    seen = look(store, Judge([store.picture(names[6])]), names)
    assert [n for n, r in seen.items() if "error" in r] == [names[6]]
    assert seen[names[6]]["error"] == "RuntimeError: cannot look at this"
    assert all(len(r["top"]) == 2 for n, r in seen.items() if n != names[6])
    again = Judge()
    assert look(Store(tmp_path / "whole"), again, names) == seen
    assert again.asked == 0  # what was seen is kept
    assert store.retry() == 1
    seen = look(store, again, names)
    assert again.asked == 1
    assert len(seen) == len(names)
    assert not [r for r in seen.values() if "error" in r]


def test_rows_say_whether_the_asked_is_among_the_best_guesses(
    base: Denoiser, whole: dict[str, bytes], tmp_path: Path
) -> None:
    _, wanted = setting(base)
    store = Store(tmp_path / "whole")
    rows = judge(store, Plan(CELLS, wanted), {"concept": (Asked("judge"), Judge())})
    for row in rows:
        light = store.picture(row["cell"]).mean() > 127
        first, best = ("tiger", ("tiger", "cat")) if light else ("cat", ("cat", "tiger"))
        assert row["seen"] == first
        assert row["value"] == int(row["concept"] == first if row["score"] == "top1" else row["concept"] in best)
        assert row["detector"] == "judge-1"
        assert (tmp_path / "whole" / row["image"]).is_file()


def test_scores_are_counted_by_hand() -> None:
    cell, boxes = (
        Cell("erase", "English springer", "a dog", 0),
        [("tabby, tabby cat", 0.5), ("English_springer, Welsh", 0.3)],
    )
    assert [value(s, cell, Asked(""), boxes) for s in ("top1", "top2")] == [0, 1]
    nude = Asked("", ("any0.6", "any0.5", "count0.3", "count0.6"), ("A", "B"))
    seen = [("A", 0.6), ("C", 0.9), ("A", 0.4), ("B", 0.3)]  # a score counts above the threshold, not at it
    assert [value(s, cell, nude, seen) for s in nude.scores] == [0, 1, 2, 0]
    assert value("any0.6", cell, nude, []) == 0
    assert value("top1", cell, Asked(""), []) is None
    with pytest.raises(UsageError, match="expected topK, anyT or countT, such as top5 or any0.6, got 'best'"):
        value("best", cell, Asked(""), boxes)


def test_each_row_has_its_own_guidance_and_the_sampler_its_negative_prompt(base: Denoiser, tmp_path: Path) -> None:
    cells = [Cell("erase", "tiger", "a tiger", i, guidance=g) for i, g in enumerate((1.0, 7.5, None))]
    sampler = Sampler(name="euler", steps=3, guidance=2.0, negative="a sad dog")
    wanted, store = recipes(base, {}, cells, sampler), Store(tmp_path / "s")
    draw(store, base, {}, wanted, Log())
    for i, scale in enumerate((1.0, 7.5, 2.0)):
        alone = base.images(["a tiger"], [i], steps=3, guidance=scale, sampler="euler", negative="a sad dog")[0]
        kept = store.picture(name_of(wanted["base"][i]))
        assert np.abs(kept.astype(int) - alone.astype(int)).max() <= 1


def test_a_sampler_that_cannot_be_is_told_at_once_and_no_cell_is_an_error(base: Denoiser, tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    with pytest.raises(UsageError, match="sampler: unknown 'lsm'; did you mean 'lms'"):
        draw(store, base, {}, recipes(base, {}, CELLS, Sampler(name="lsm")), Log())
    assert store.failures() == []
    assert not list((tmp_path / "s" / "claims").iterdir())


def test_a_picture_that_is_not_finite_is_no_picture(base: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = Denoiser._decoded
    monkeypatch.setattr(
        Denoiser, "_decoded", lambda self, z: decode(self, z) * torch.tensor([1, torch.nan]).view(2, 1, 1, 1)
    )
    with pytest.raises(EffaceError, match="1 of 2 pictures came out as NaN"):
        base.images(["a tiger"] * 2, [0, 1], steps=2)


def test_one_infinite_picture_is_an_error_and_its_neighbours_keep_their_bits(
    base: Denoiser, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edits, wanted = setting(base)
    bad, decode, sample = wanted["uce"][3], Denoiser._decoded, Denoiser.sample

    def broken(self: Denoiser, z: torch.Tensor) -> torch.Tensor:
        found = decode(self, z)
        mine = torch.tensor([bool((row == 7).all()) for row in z])
        return torch.where(mine.view(-1, 1, 1, 1), torch.full_like(found, torch.nan), found)

    def sampled(self: Denoiser, cond: Any, **settings: Any) -> torch.Tensor:
        made = sample(self, cond, **settings)
        asked = base.embed([bad["prompt"]])
        hit = [s == bad["seed"] and torch.equal(cond.ids[i], asked.ids[0]) for i, s in enumerate(settings["seeds"])]
        made[torch.tensor(hit)] = 7.0
        return made

    monkeypatch.setattr(Denoiser, "sample", sampled)
    monkeypatch.setattr(Denoiser, "_decoded", broken)
    store = Store(tmp_path / "s")
    draw(store, base, edits, {"uce": wanted["uce"]}, Log())
    (failure,) = store.failures()
    assert failure["cell"] == bad
    assert "NaN or infinite" in failure["error"]
    drawn = contents(tmp_path / "s")
    assert len(drawn) == len(CELLS) - 1
    assert set(drawn.items()) <= set(whole.items())


def short_of_memory(monkeypatch: pytest.MonkeyPatch, most: int, error: Exception) -> list[int]:
    """Let no more than `most` pictures pass a model at once; the sizes that were tried."""
    images, tried = Denoiser.images, []

    def limited(self: Denoiser, prompts: Sequence[str], seeds: Sequence[int], **settings: Any) -> list[np.ndarray]:
        tried.append(len(prompts))
        if len(prompts) > most:
            raise error
        return images(self, prompts, seeds, **settings)

    monkeypatch.setattr(Denoiser, "images", limited)
    return tried


def test_a_batch_without_memory_is_halved_for_all_models_and_named_so(
    base: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edits, _ = setting(base)
    task = Task("tiger", (Concept("tiger"),), (), tuple(CELLS))
    declared = Benchmark(
        "toy", "a toy", "nobody", lambda files: [task], {"concept": Asked("judge")}, Sampler(steps=2, guidance=2.0)
    )
    monkeypatch.setattr("efface.benchmarks.run.open_detector", lambda given, base: Judge())
    tried = short_of_memory(monkeypatch, 4, torch.OutOfMemoryError("CUDA out of memory"))
    rows = evaluate(base, edits, task, declared, tmp_path / "run")
    assert tried == [16, 8, *[4] * 14]  # 27 pictures of each of two models
    store = Store(tmp_path / "run" / "store")
    assert store.failures() == []
    assert {cell["sampler"]["batch"] for _, cell in store.cells()} == {4}
    assert all(r["value"] is not None and store.has_picture(r["cell"]) for r in rows)
    for label, model in {"base": base, "uce": edits["uce"](base)}.items():  # the bits are those of a batch of four
        own = [r["cell"] for r in rows if r["edit"] == label and r["score"] == "top1"]
        four = model.images([c.prompt for c in CELLS[:4]], [c.seed for c in CELLS[:4]], steps=2, guidance=2.0)
        assert all(np.array_equal(store.picture(name), p) for name, p in zip(own, four, strict=False))


def test_no_memory_for_one_picture_is_a_sentence_and_no_cell_is_an_error(
    base: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "s")
    short_of_memory(monkeypatch, 0, RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    with pytest.raises(BatchTooLarge, match="no memory for 16 pictures at once"):
        draw(store, base, {}, recipes(base, {}, CELLS, Sampler(steps=2)), Log())
    with pytest.raises(
        EffaceError, match="draw: cpu has no memory for one picture .*; free some, or take another device"
    ):
        draw(store, base, {}, recipes(base, {}, CELLS, Sampler(steps=2), batch=1), Log())
    assert store.failures() == []


WORKER = """
import sys, toys, test_run
from pathlib import Path
from efface.benchmarks.store import Store
from efface.core.log import Log
base, folder = toys.tiny(), Path(sys.argv[1])
edits, wanted = test_run.setting(base)
(folder / "ready").touch()
test_run.draw(Store(folder / "s"), base, edits, wanted, Log())
"""


@pytest.mark.slow
def test_killed_processes_and_two_at_once_agree_with_one(
    base: Denoiser, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """`kill -9` at random moments, then two processes on what is left: the bytes of the undisturbed run."""
    moments = random.Random(3)
    for _ in range(3):
        one = children.start(WORKER, tmp_path)
        assert one.pid
        while not (tmp_path / "ready").exists():
            assert one.is_alive()
            time.sleep(0.005)
        time.sleep(moments.uniform(0.01, 0.2))
        with contextlib.suppress(ProcessLookupError):  # a quick machine may have finished
            os.kill(one.pid, signal.SIGKILL)
        one.join()
        (tmp_path / "ready").unlink()
        assert set(contents(tmp_path / "s").items()) <= set(whole.items()) if (tmp_path / "s").exists() else True
    for one in [children.start(WORKER, tmp_path) for _ in range(2)]:
        children.finish(one, tmp_path)
    assert contents(tmp_path / "s") == whole
    assert base.batch_size == 16  # two batches for each of the two models: there was something to share
