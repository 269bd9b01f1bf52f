"""The run store: one file a cell, the same name everywhere, whole or absent, whoever writes it and however it dies."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL.PngImagePlugin import PngImageFile
from safetensors.numpy import save_file

from efface.benchmarks import claims
from efface.benchmarks import store as module
from efface.benchmarks.store import MARK, Store, name_of
from efface.core.errors import EffaceError, UsageError

CELL = {"model": "m", "edit": "", "prompt": "a tiger, é", "seed": 7, "sampler": {"steps": 25, "guidance": 3.0}}
PICTURE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store on the disk, and one at a location of fsspec's."""
    return Store(tmp_path / "s" if request.param == "disk" else f"memory://{tmp_path.name}")


def test_a_name_is_the_recipe_whatever_the_order_of_its_entries() -> None:
    assert name_of(CELL) == name_of(dict(reversed(CELL.items())))
    assert name_of(CELL) == "6a3cf2f215004f0a11ca632e88827925"  # the same on every machine, for ever
    assert len({name_of({**CELL, k: 1}) for k in CELL} | {name_of(CELL)}) == 6
    with pytest.raises(ValueError, match="JSON compliant"):
        name_of({"guidance": float("nan")})


def test_pictures_come_back_with_their_recipe(store: Store) -> None:
    name = name_of(CELL)
    assert not store.has_picture(name)
    store.put_picture(CELL, PICTURE)
    assert store.has_picture(name)
    assert np.array_equal(store.picture(name), PICTURE)
    assert list(store.cells()) == [(name, CELL)]
    assert np.array_equal(Store(store.where).picture(name), PICTURE)


def test_the_same_cell_is_the_same_bytes(tmp_path: Path) -> None:
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    for store in (one, two):
        store.put_picture(CELL, PICTURE)
    path = one.picture_path(name_of(CELL))
    assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()


def test_errors_are_kept_until_the_cell_succeeds(store: Store) -> None:
    name = name_of(CELL)
    assert store.error(name) is None
    store.put_error(CELL, "RuntimeError: out of memory")
    assert store.error(name) == "RuntimeError: out of memory"
    assert [f["error"] for f in store.failures()] == ["RuntimeError: out of memory"]
    store.put_picture(CELL, PICTURE)
    assert store.error(name) is None
    assert store.failures() == []


def test_scores_join_and_an_error_gives_way(store: Store) -> None:
    store.put_scores("judge-1", [{"picture": "p", "error": "no"}, {"picture": "q", "top": [["cat", 0.5]]}])
    store.put_scores("judge-1", [{"picture": "p", "top": [["lion", 0.9]]}])
    store.put_scores("judge-1", [{"picture": "q", "error": "later"}])
    store.put_scores("judge-2", [{"picture": "p", "top": [["dog", 0.9]]}])
    before = store.scores("judge-1")
    assert before["p"]["top"] == [["lion", 0.9]]
    assert before["q"]["top"] == [["cat", 0.5]]
    assert store.scores("judge-3") == {}
    assert store.compact() == 2
    assert store.scores("judge-1") == before
    assert store.scores("judge-2")["p"]["top"] == [["dog", 0.9]]
    assert store.compact() == 0


def test_scores_are_whole_while_another_process_joins_the_files(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(6):
        store.put_scores("judge-1", [{"picture": f"p{i}", "top": [["cat", 0.5]]}])
    reader, cat, calls = Store(store.where), type(store.fs).cat_file, []

    def joins_in_between(self: object, path: str, *rest: object, **more: object) -> bytes:
        calls.append(path)
        if len(calls) == 3:
            monkeypatch.setattr(type(store.fs), "cat_file", cat)
            assert Store(store.where).compact() == 5
        return cat(self, path, *rest, **more)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(type(store.fs), "cat_file", joins_in_between)
    assert set(reader.scores("judge-1")) == {f"p{i}" for i in range(6)}
    assert len(calls) == 3


def test_a_file_of_scores_is_read_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(4):
        store.put_scores("judge-1", [{"picture": f"p{i}", "top": [["cat", 0.5]]}])
    store.put_features("trunk-1", {"p0": np.ones(3, dtype=np.float32)})
    reader, cat, read = Store(store.where), type(store.fs).cat_file, []
    monkeypatch.setattr(type(store.fs), "cat_file", lambda self, p, *a, **k: (read.append(p), cat(self, p, *a, **k))[1])
    for _ in range(3):
        assert len(reader.scores("judge-1")) == 4
        assert np.array_equal(reader.features("trunk-1")["p0"], np.ones(3))
    assert len(read) == len(set(read)) == 5
    store.put_scores("judge-1", [{"picture": "p4", "top": []}])  # another process's
    assert len(reader.scores("judge-1")) == 5
    assert len(read) == 6


def test_a_damaged_file_of_scores_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    path = Path(store.put_scores("judge-1", [{"picture": "p", "top": []}]))
    path.write_text('["foreign"]\n')
    with pytest.raises(
        EffaceError, match=rf"{path.name}: damaged .*--repair` mends it, then run the same command again"
    ):
        Store(tmp_path / "s").scores("judge-1")


def test_listing_decodes_no_picture(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put_picture(CELL, PICTURE)

    def refuse(self: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(module.Image.Image, "load", refuse)
    monkeypatch.setattr(PngImageFile, "load", refuse)
    assert list(store.cells()) == [(name_of(CELL), CELL)]
    with pytest.raises(AssertionError, match="decoded"):
        store.picture(name_of(CELL))


def test_claims_exclude_one_another_and_end(store: Store) -> None:
    with store.claim("abc") as mine:
        assert mine
        with store.claim("abc") as second, store.claim("abd") as other:
            assert not second
            assert other
    with store.claim("abc") as again:
        assert again


CLAIM = """
import sys, time
from efface.benchmarks.store import Store
with Store(sys.argv[1]).claim("a" * 32) as mine:
    print(mine, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_claimed_is_taken_over(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    words = [sys.executable, "-c", CLAIM, str(tmp_path / "s")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=env) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        store = Store(tmp_path / "s")
        with store.claim("a" * 32) as mine:
            assert not mine
        os.kill(other.pid, signal.SIGKILL)
        time.sleep(0.2)
        with store.claim("a" * 32) as mine:  # also while it is a zombie
            assert mine


def test_another_hosts_claim_ends_with_its_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "s")
    with store.claim("a" * 32):
        monkeypatch.setattr(claims.socket, "gethostname", lambda: "elsewhere")
        with store.claim("a" * 32) as mine:
            assert not mine
        monkeypatch.setattr(claims, "LEASE", -1.0)
        with store.claim("a" * 32) as mine:
            assert mine


def test_work_longer_than_a_lease_is_not_taken_over(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "LEASE", 1.0)
    monkeypatch.setattr(claims, "RENEW", 0.1)
    with store.claim("a" * 32) as first:
        assert first
        monkeypatch.setattr(claims.socket, "gethostname", lambda: "elsewhere")
        time.sleep(1.5)
        with Store(store.where).claim("a" * 32) as second:
            assert not second
    with Store(store.where).claim("a" * 32) as third:
        assert third


def test_who_lost_a_claim_leaves_the_new_owners_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Store(store.where)
    with contextlib.ExitStack() as second:
        with store.claim("a" * 32) as first:
            assert first
            monkeypatch.setattr(claims.socket, "gethostname", lambda: "elsewhere")
            monkeypatch.setattr(claims, "LEASE", -1.0)  # the first one's host was away
            assert second.enter_context(other.claim("a" * 32))
            monkeypatch.setattr(claims, "LEASE", 3600.0)
            store.claims.renew()  # neither renewed nor deleted by the first
        with Store(store.where).claim("a" * 32) as third:
            assert not third
    with Store(store.where).claim("a" * 32) as fourth:
        assert fourth


def test_damage_is_one_sentence_found_and_repaired(tmp_path: Path) -> None:
    store, other = Store(tmp_path / "s"), {**CELL, "seed": 8}
    for cell in (CELL, other, {**CELL, "seed": 9}):
        store.put_picture(cell, PICTURE)
    whole, cut, moved = (tmp_path / "s" / store.picture_path(name_of({**CELL, "seed": i})) for i in (7, 8, 9))
    assert store.damage() == {}
    cut.write_bytes(cut.read_bytes()[:-40])
    moved.write_bytes(whole.read_bytes())  # a whole picture under another cell's name
    (whole.parent / "holiday.png").write_bytes(b"mine")
    with pytest.raises(EffaceError, match=r"damaged .*efface runs"):
        store.picture(name_of(other))
    with pytest.raises(EffaceError, match="gone; run the same command again"):
        store.picture("0" * 32)
    bad = [str(p.relative_to(tmp_path / "s")) for p in (cut, moved)]
    assert sorted(store.damage()) == sorted(bad)
    assert cut.exists()  # nothing is removed by looking
    assert sorted(store.repair()) == sorted(bad)
    assert store.damage() == {}
    assert not store.has_picture(name_of(other))
    assert np.array_equal(store.picture(name_of(CELL)), PICTURE)
    assert (whole.parent / "holiday.png").read_bytes() == b"mine"


def test_changed_pixels_are_noticed(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    store.put_picture(CELL, PICTURE)
    path = tmp_path / "s" / store.picture_path(name_of(CELL))
    _, record = module._read_png(path.read_bytes())
    text = module.PngInfo()
    text.add_text("efface", json.dumps(record))
    module.Image.fromarray(PICTURE ^ 1).save(path, format="png", pnginfo=text)
    with pytest.raises(EffaceError, match="not those that were drawn"):
        store.picture(name_of(CELL))
    assert list(store.damage().values()) == ["its pixels are not those that were drawn"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) * 4 // 5], lambda data: b"", lambda data: b"[]", lambda data: b"\xff" * 40,
        lambda data: b"[" * 5000, lambda data: b"5", lambda data: b'{"picture": "a"}', lambda data: b'{"picture": 5, "top": []}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["pictures", "errors", "scores", "features", "edits", "claims"])
def test_every_kind_of_file_is_checked_and_repaired(
    tmp_path: Path, kind: str, damage: Callable[[bytes], bytes]
) -> None:
    store = Store(tmp_path / "s")
    store.put_picture(CELL, PICTURE)
    store.put_error({**CELL, "seed": 8}, "RuntimeError: no luck")
    store.put_scores("d", [{"picture": "a", "top": []}, {"picture": "b", "top": []}])
    store.put_features("t", {"a": np.zeros(3)})
    save_file({"left": np.zeros(3)}, tmp_path / "e.safetensors")
    store.put_edit("a" * 32, tmp_path / "e.safetensors")
    (tmp_path / "s" / "claims").mkdir()
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "born": claims.born(os.getpid())}
    (tmp_path / "s" / "claims" / f"{'b' * 32}.json").write_text(json.dumps(mine))
    assert store.damage() == {}
    (path,) = [p for p in (tmp_path / "s" / kind).rglob("*") if p.is_file()]
    path.write_bytes(damage(path.read_bytes()))
    ((inside, wrong),) = store.damage().items()
    assert wrong
    store.failures()  # what is damaged stops nothing else
    assert list(Store(tmp_path / "s").repair()) == [inside]
    assert Store(tmp_path / "s").damage() == {}


@pytest.mark.parametrize(
    "record", ["[" * 5000, "5", "{}", '{"cell": 5}', '{"cell": {}}', '{"cell": {"model": "m", "edit": 1}}']
)
def test_a_picture_with_another_record_is_found_and_stops_nothing(tmp_path: Path, record: str) -> None:
    store, text = Store(tmp_path / "s"), module.PngInfo()
    store.put_picture(CELL, PICTURE)
    (path,) = (tmp_path / "s").rglob("*.png")
    text.add_text("efface", record)
    module.Image.fromarray(PICTURE).save(path, format="png", pnginfo=text)
    assert list(store.cells()) == []
    assert store.remove("") == 0
    assert len(store.damage()) == 1
    with pytest.raises(EffaceError, match=r"damaged .*--repair"):
        store.picture(path.stem)
    assert len(store.repair()) == 1
    assert not path.exists()


def test_one_changed_byte_of_what_was_measured_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    store.put_scores("d", [{"picture": "a", "score": 0.125}])
    store.put_features("t", {"a": np.ones(3)})
    for path in [*(tmp_path / "s/scores").rglob("*.jsonl"), *(tmp_path / "s/features").rglob("*.safetensors")]:
        data = path.read_bytes()
        path.write_bytes(data.replace(b"0.125", b"0.925") if path.suffix == ".jsonl" else data[:-1] + b"\x3e")
    assert set(store.damage().values()) == {"its contents are not those that were written"}
    assert len(store.damage()) == 2


def test_a_folder_in_a_files_place_and_the_claim_of_an_ended_process_are_repaired(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    folder, claim = tmp_path / "s" / store.picture_path("a" * 32), tmp_path / "s/claims" / f"{'b' * 32}.json"
    folder.mkdir(parents=True)
    claim.parent.mkdir()
    claim.write_text("{}")
    assert sorted(store.damage().values()) == ["it is a folder", "the process that worked on it has ended"]
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(EffaceError, match="cannot be removed .*move it elsewhere"):
        store.repair()
    assert (folder / "mine.txt").read_text() == "mine"
    (folder / "mine.txt").unlink()
    store.repair()
    assert store.damage() == {}


@pytest.mark.parametrize("mark", ["[" * 5000, "[]", "3", '"x"', '{"format": "new"}', '{"format": null}', "\xff\xfe"])
def test_a_mark_that_is_none_is_named(tmp_path: Path, mark: str) -> None:
    (tmp_path / MARK).write_bytes(mark.encode("latin-1"))
    with pytest.raises(EffaceError, match=MARK) as error:
        Store(tmp_path)
    assert f"efface runs {tmp_path} --repair" in str(error.value)
    assert list(Store(tmp_path, new=False, repair=True).repair()) == [MARK]
    assert Store(tmp_path, new=False).damage() == {}


def test_a_store_nowhere_is_refused() -> None:
    for where in ("nope://x/y", "s3://bucket/x"):
        with pytest.raises(UsageError, match=f"store: cannot open '{where}'"):
            Store(where)


def test_edits_come_back(store: Store, tmp_path: Path) -> None:
    (tmp_path / "e.safetensors").write_bytes(b"edit")
    assert not store.has_edit("a" * 32)
    store.put_edit("a" * 32, tmp_path / "e.safetensors")
    assert store.has_edit("a" * 32)
    with store.edit_file("a" * 32) as path:
        assert path.read_bytes() == b"edit"
    assert store.size()["edits"] == 4


def test_remove_takes_one_edits_pictures(store: Store) -> None:
    for cell in (CELL, {**CELL, "edit": "e"}, {**CELL, "edit": "f"}):
        store.put_picture(cell, PICTURE)
    assert store.remove("e") == 1
    assert sorted(cell["edit"] for _, cell in store.cells()) == ["", "f"]


def test_a_foreign_folder_and_a_newer_store_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UsageError, match="holds files but no efface-store.json"):
        Store(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    Store(tmp_path / "s")
    (tmp_path / "s" / MARK).write_text('{"format": 99}')
    with pytest.raises(UsageError, match="has format 99, this efface reads up to 1; upgrade it"):
        Store(tmp_path / "s")
    (tmp_path / "s" / MARK).write_text("{")
    with pytest.raises(EffaceError, match="is damaged"):
        Store(tmp_path / "s")
