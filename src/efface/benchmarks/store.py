"""The run store: keeps every picture, score and edit once, under a hash of its recipe.

A cell's name is a hash of its recipe (model, edit, prompt, seed, sampler), so the same cell has the same name on every machine
and is computed once. A cell is one file, whole or absent, and never changed: any number of processes share a store without locks.
Claims only save work. Two processes that compute one cell all the same write the same bytes.

    efface-store.json            says that this is a store, and its format
    pictures/ab/abcd….png        a picture with its recipe and the hash of its pixels inside
    errors/ab/abcd….json         a cell that failed: recorded, shown, tried again on request, never counted as "absent"
    scores/DETECTOR/1234….jsonl  what a detector saw, a line a picture; `compact` joins the files
    features/TRUNK/1234….safetensors  what a network made of pictures, a vector each
    edits/ab/abcd….safetensors   fitted edits, by their recipe
    attempts/ab/abcd….safetensors  what attacks found, by its fingerprint
    searches/ab/abcd….json       which attempts a search found, and what it cost
    claims/abcd….json            who is at work on what
"""

import contextlib
import hashlib
import io
import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import SafetensorError, deserialize
from safetensors.numpy import load, save

from efface.benchmarks.claims import Claims
from efface.core.errors import EffaceError, UsageError
from efface.core.files import from_json, replace_file

FORMAT = 1
MARK = "efface-store.json"
KEY = "efface"  # the text entry of a PNG that holds its recipe

ENDS = {
    "pictures": ".png", "errors": ".json", "claims": ".json", "searches": ".json", "scores": ".jsonl", "edits": ".safetensors",
    "attempts": ".safetensors", "features": ".safetensors",
}  # fmt: skip

Recipe = Mapping[str, Any]
Job = TypeVar("Job")


def name_of(recipe: Recipe) -> str:
    """What a cell is called: 32 hex digits of the SHA-256 of its recipe as canonical JSON."""
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Store:
    """A folder, or any location fsspec can write ("s3://…", "memory://…"), that holds cells."""

    def __init__(self, where: str | Path, *, new: bool = True, repair: bool = False) -> None:
        """Open a store; an empty or missing folder becomes one if `new`, a damaged mark is written anew if `repair`.

        Raises:
            UsageError: a folder with other things in it, no store where none may be made, or one that a newer efface wrote.
            EffaceError: its mark is damaged.
        """
        self.where = str(where)
        try:
            self.fs, root = fsspec.core.url_to_fs(self.where)
        except (ValueError, ImportError) as error:  # unknown scheme; a scheme whose package is not installed
            raise UsageError(
                f"store: cannot open {self.where!r} ({error}); give a folder, or install that package"
            ) from error
        self.root, self.local = root.rstrip("/"), "file" in self.fs.protocol
        self.claims = Claims(self.fs, self._path("claims"), self.local)
        self._read: dict[str, tuple[set[str], dict[str, Any]]] = {}  # by folder: files read so far, and what they hold
        self._mended: dict[str, str] = {}
        try:
            data = self.fs.cat_file(self._path(MARK))
        except (FileNotFoundError, NotADirectoryError):
            if not new:
                raise UsageError(
                    f"store: {where} is no store (no {MARK}); give one that `efface evaluate` wrote"
                ) from None
            if self.fs.exists(self.root) and self.fs.ls(self.root):
                raise UsageError(f"store: {where} holds files but no {MARK}; give a new folder, or a store") from None
            self._write(MARK, json.dumps({"format": FORMAT}).encode())
            return
        except (OSError, ValueError) as error:  # a folder, no permission, a path with a null character
            raise EffaceError(f"store: {where}/{MARK} cannot be read ({error}); give another store") from error
        try:
            mark = from_json(data)
            if not isinstance(mark, dict) or type(mark.get("format")) is not int:
                raise ValueError(f"it holds {mark!r:.40}")  # noqa: TRY004, one sentence for all that is no mark
        except ValueError as error:
            if not repair:
                raise EffaceError(
                    f"store: {where}/{MARK} is damaged ({error}); `efface runs {where} --repair` writes it anew"
                ) from error
            self._write(MARK, json.dumps({"format": FORMAT}).encode())
            self._mended = {MARK: f"it was damaged ({error}); written anew"}
            return
        if mark["format"] > FORMAT:
            raise UsageError(
                f"store: {where} has format {mark['format']}, this efface reads up to {FORMAT}; upgrade it"
            )

    # -- pictures --------------------------------------------------------------------------------------------------

    def picture_path(self, name: str) -> str:
        """Where a picture lies, relative to the store."""
        return f"pictures/{name[:2]}/{name}.png"

    def has_picture(self, name: str) -> bool:
        """Whether the cell was drawn."""
        return self.fs.exists(self._path(self.picture_path(name)))

    def put_picture(self, recipe: Recipe, picture: UInt8[np.ndarray, "H W 3"]) -> None:
        """Keep a picture; an error recorded for the cell is forgotten."""
        name, text = name_of(recipe), PngInfo()
        text.add_text(KEY, json.dumps({"cell": dict(recipe), "pixels": _hash(picture.tobytes())}, sort_keys=True))
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="png", pnginfo=text)
        self._write(self.picture_path(name), buffer.getvalue())
        self.forget_error(name)

    def picture(self, name: str) -> UInt8[np.ndarray, "H W 3"]:
        """A picture, checked against the hash inside.

        Raises:
            EffaceError: it is gone or damaged.
        """
        path = self.picture_path(name)
        try:
            pixels, record = _read_png(self.fs.cat_file(self._path(path)))
        except FileNotFoundError:
            raise EffaceError(f"{self.where}/{path}: gone; run the same command again") from None
        except (OSError, ValueError, SyntaxError) as error:  # PIL calls broken PNGs SyntaxError
            raise EffaceError(f"{self.where}/{path}: damaged ({_first(error)}); `efface runs {self.where} --repair` removes it, "
                              "then run the same command again") from error  # fmt: skip
        if _hash(pixels.tobytes()) != record.get("pixels"):
            raise EffaceError(f"{self.where}/{path}: its pixels are not those that were drawn; "
                              f"`efface runs {self.where} --repair` removes it, then run the same command again")  # fmt: skip
        return pixels

    def copy(self, inside: str, path: Path) -> None:
        """A file of the store as a local one."""
        replace_file(path, lambda part: part.write_bytes(self.fs.cat_file(self._path(inside))))

    # -- errors ----------------------------------------------------------------------------------------------------

    def put_error(self, recipe: Recipe, error: str) -> None:
        """Record that a cell failed."""
        name = name_of(recipe)
        self._write(f"errors/{name[:2]}/{name}.json", json.dumps({"cell": dict(recipe), "error": error}).encode())

    def error(self, name: str) -> str | None:
        """Why a cell failed, or None.

        Raises:
            EffaceError: the record of it is damaged.
        """
        path = f"errors/{name[:2]}/{name}.json"
        try:
            data = self.fs.cat_file(self._path(path))
        except FileNotFoundError:
            return None
        if wrong := _wrong("errors", path, data):
            raise EffaceError(f"{self.where}/{path}: damaged ({wrong}); `efface runs {self.where} --repair` removes it, "
                              "then run the same command again")  # fmt: skip
        return json.loads(data)["error"]

    def forget_error(self, name: str) -> None:
        """Let a failed cell be tried again."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self._path(f"errors/{name[:2]}/{name}.json"))

    # -- scores ----------------------------------------------------------------------------------------------------

    def scores(self, detector: str) -> Mapping[str, dict[str, Any]]:
        """What a detector saw, by the picture's name; an error gives way to a success. Each file is read once in a process."""
        return self._known(f"scores/{detector}", _lines)

    def put_scores(self, detector: str, records: Iterable[Mapping[str, Any]]) -> str:
        """Keep what a detector saw, a line a picture, each with `picture` (its name) and either values or `error`; the file."""
        text = "".join(json.dumps(r, sort_keys=True) + "\n" for r in records).encode()
        inside = f"scores/{detector}/{_hash(text)[:16]}.jsonl"
        self._write(inside, text)
        return self._path(inside)

    def features(self, trunk: str) -> Mapping[str, Float[np.ndarray, "d"]]:
        """What a network made of pictures, by the picture's name. Each file is read once in a process."""
        return self._known(f"features/{trunk}", load)

    def put_features(self, trunk: str, vectors: Mapping[str, Float[np.ndarray, "d"]]) -> None:
        """Keep what a network made of pictures."""
        data = save({name: np.ascontiguousarray(v) for name, v in sorted(vectors.items())})
        self._write(f"features/{trunk}/{_hash(data)[:16]}.safetensors", data)

    def _known(self, inside: str, read: Callable[[bytes], Mapping[str, Any]]) -> dict[str, Any]:
        """All records of a folder.

        `compact` of another process writes the joined file before it removes the parts, so the records of a file that vanishes
        while this reads are in a file of the next listing.
        """
        seen, found = self._read.setdefault(inside, (set(), {}))
        gone: set[str] = set()
        while new := [path for path in self._files(inside) if path not in seen | gone]:
            for path in new:
                try:
                    records = read(self.fs.cat_file(path))
                except FileNotFoundError:
                    gone.add(path)
                    break  # and list again
                except (ValueError, SafetensorError) as error:
                    raise EffaceError(
                        f"{path}: damaged ({error}); `efface runs {self.where} --repair` mends it, then run the same command again"
                    ) from error
                for key, record in records.items():
                    if key not in found or not (isinstance(record, dict) and "error" in record):
                        found[key] = record
                seen.add(path)
        return found

    # -- edits -----------------------------------------------------------------------------------------------------

    def has_edit(self, name: str) -> bool:
        """Whether an edit of this recipe was fitted."""
        return self.fs.exists(self._path(f"edits/{name[:2]}/{name}.safetensors"))

    def put_edit(self, name: str, file: Path) -> None:
        """Keep an edit's file."""
        self._write(f"edits/{name[:2]}/{name}.safetensors", file.read_bytes())

    @contextlib.contextmanager
    def edit_file(self, name: str) -> Iterator[Path]:
        """An edit's file, on the local disk while the block runs."""
        with self._local(f"edits/{name[:2]}/{name}.safetensors") as path:
            yield path

    # -- attacks ---------------------------------------------------------------------------------------------------

    def put_attempt(self, fingerprint: str, file: Path) -> None:
        """Keep an attempt's file."""
        self._write(f"attempts/{fingerprint[:2]}/{fingerprint}.safetensors", file.read_bytes())

    def has_attempt(self, fingerprint: str) -> bool:
        """Whether an attempt's file is here."""
        return self.fs.exists(self._path(f"attempts/{fingerprint[:2]}/{fingerprint}.safetensors"))

    @contextlib.contextmanager
    def attempt_file(self, fingerprint: str) -> Iterator[Path]:
        """An attempt's file, on the local disk while the block runs."""
        with self._local(f"attempts/{fingerprint[:2]}/{fingerprint}.safetensors") as path:
            yield path

    def put_search(self, name: str, found: Mapping[str, Any]) -> None:
        """Keep which attempts a search found: its `recipe`, their fingerprints as `attempts`, and its cost."""
        self._write(f"searches/{name[:2]}/{name}.json", json.dumps(found, sort_keys=True).encode())

    def search(self, name: str) -> dict[str, Any] | None:
        """What a search found; None if it has not ended.

        Raises:
            EffaceError: the record of it is damaged.
        """
        path = f"searches/{name[:2]}/{name}.json"
        try:
            data = self.fs.cat_file(self._path(path))
        except FileNotFoundError:
            return None
        if wrong := _wrong("searches", path, data):
            raise EffaceError(f"{self.where}/{path}: damaged ({wrong}); `efface runs {self.where} --repair` removes it, "
                              "then run the same command again")  # fmt: skip
        return json.loads(data)

    @contextlib.contextmanager
    def _local(self, inside: str) -> Iterator[Path]:
        """A file of the store, on the local disk while the block runs."""
        path = Path(self._path(inside))
        if self.local:
            yield path
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / path.name
            copy.write_bytes(self.fs.cat_file(str(path)))
            yield copy

    # -- claims ----------------------------------------------------------------------------------------------------

    def claim(self, name: str) -> AbstractContextManager[bool]:
        """Whether this process may work on `name` while the block runs: see `claims`."""
        return self.claims.hold(name)

    def share(
        self,
        jobs: Iterable[Job],
        name: Callable[[Job], str],
        done: Callable[[Job], bool],
        work: Callable[[Job], object],
    ) -> None:
        """Work through `jobs` beside other processes that do the same: what one has claimed, the others pass by and look at again.

        Returns when all are done, by whomever.
        """
        left = list(jobs)
        while left:
            busy = []
            for job in left:
                if done(job):
                    continue
                with self.claim(name(job)) as mine:
                    if not mine:
                        busy.append(job)
                    elif not done(job):  # another process may have been quicker than the claim
                        work(job)
            if len(busy) == len(left):
                time.sleep(0.5)
            left = busy

    # -- the whole store -------------------------------------------------------------------------------------------

    def cells(self) -> Iterator[tuple[str, Recipe]]:
        """Every picture's name and recipe; no picture is decoded."""
        for path in self._files("pictures"):
            try:
                with self.fs.open(path, "rb", block_size=2**16) as file:
                    yield Path(path).stem, _recipe(file)
            except (ValueError, OSError, SyntaxError):
                continue  # `damage` tells of it

    def failures(self) -> list[dict[str, Any]]:
        """Every cell that failed, with its error; damaged records are left to `damage`."""
        found = ((path, self.fs.cat_file(path)) for path in self._files("errors"))
        return [json.loads(data) for path, data in found if not _wrong("errors", path, data)]

    def size(self) -> Counter[str]:
        """Bytes by kind."""
        return Counter(
            {
                kind: sum(self.fs.size(p) for p in self._files(kind))
                for kind in ("pictures", "scores", "features", "edits", "attempts")
            }
        )

    def damage(self) -> dict[str, str]:
        """What is wrong with each damaged file of the store, by its path: by kind as in ENDS."""
        found = {}
        for kind in ENDS:
            for path in self._files(kind):
                with contextlib.suppress(FileNotFoundError):  # another process removed it
                    wrong = _wrong(kind, path, self.fs.cat_file(path))
                    if kind == "claims" and not wrong and self.claims.abandoned(path):
                        wrong = "the process that worked on it has ended"
                    if wrong:
                        found[path.removeprefix(f"{self.root}/")] = wrong
            for path in self._files(kind, folders=True):
                found[path.removeprefix(f"{self.root}/")] = "it is a folder"
        return found

    def repair(self) -> dict[str, str]:
        """Remove damaged files, so that the next run makes them again. What was done, by path.

        Of a file that was changed nothing is kept: which of its numbers are still those that were measured, no one can tell.

        Raises:
            EffaceError: where a file should be lies a folder that holds something.
        """
        done = dict(self._mended)
        for inside, wrong in self.damage().items():
            path = self._path(inside)
            try:
                (self.fs.rmdir if self.fs.isdir(path) else self.fs.rm_file)(path)
            except OSError as error:
                raise EffaceError(
                    f"{path}: cannot be removed ({error}); move it elsewhere, then repair again"
                ) from error
            done[inside] = f"{wrong}; removed"
        self._read.clear()
        return done

    def retry(self) -> int:
        """Forget every error, of cells and of detectors, so that the next run tries again; how many."""
        failures = self.failures()
        for failure in failures:
            self.forget_error(name_of(failure["cell"]))
        return len(failures) + sum(self._join(detector, errors=False) for detector in self._detectors())

    def compact(self) -> int:
        """Join each detector's files of scores, drop abandoned claims; how many files that saves."""
        before = sum(1 for kind in ("scores", "claims") for _ in self._files(kind))
        for detector in self._detectors():
            self._join(detector)
        for path in list(self._files("claims")):
            self.claims.drop(path)
        return before - sum(1 for kind in ("scores", "claims") for _ in self._files(kind))

    def _detectors(self) -> set[str]:
        return {path.removeprefix(f"{self.root}/scores/").rpartition("/")[0] for path in self._files("scores")}

    def _join(self, detector: str, errors: bool = True) -> int:
        """All scores of a detector in one file; without `errors`, how many errors were left out."""
        old, known = list(self._files(f"scores/{detector}")), self.scores(detector)
        kept = [record for _, record in sorted(known.items()) if errors or "error" not in record]
        path = self.put_scores(detector, kept) if kept else ""
        for other in old:
            if other != path:
                with contextlib.suppress(FileNotFoundError):  # another process joins as well
                    self.fs.rm_file(other)
        self._read.pop(f"scores/{detector}", None)
        return len(known) - len(kept)

    def remove(self, edit: str) -> int:
        """Take out the pictures of an edit, by its fingerprint ("" = the unedited model); how many."""
        gone = [name for name, cell in self.cells() if cell.get("edit") == edit]
        for name in gone:
            self.fs.rm_file(self._path(self.picture_path(name)))
        return len(gone)

    def _path(self, inside: str) -> str:
        return f"{self.root}/{inside}"

    def _files(self, inside: str, folders: bool = False) -> Iterator[str]:
        """Finished cells in a folder of the store, in order, or folders with such names; what others put there is left out."""
        pattern = re.compile(rf"[0-9a-f]{{16,32}}{re.escape(ENDS[inside.partition('/')[0]])}")
        root = self._path(inside)
        self.fs.invalidate_cache(root)  # object stores remember listings, and other processes write
        kept = {path for path in self.fs.find(root, withdirs=folders) if pattern.fullmatch(path.rpartition("/")[2])}
        yield from sorted(path for path in kept if not folders or self.fs.isdir(path))

    def _write(self, inside: str, data: bytes) -> None:
        """Whole or not at all; object stores do so by themselves."""
        if self.local:
            replace_file(Path(self._path(inside)), lambda part: part.write_bytes(data))
        else:
            self.fs.pipe_file(self._path(inside), data)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _wrong(kind: str, path: str, data: bytes) -> str:
    """What is wrong with a file of this kind; "" if it is whole."""
    name = Path(path).stem
    try:
        if kind == "pictures":
            pixels, record = _read_png(data)
            if _hash(pixels.tobytes()) != record.get("pixels"):
                return "its pixels are not those that were drawn"
            return "" if name_of(record["cell"]) == name else "it is another cell's picture"
        if kind == "errors":
            record = _record(data)
            if not isinstance(record.get("error"), str):
                return "it has no error"
            return "" if name_of(record["cell"]) == name else "it is another cell's error"
        if kind == "scores":
            _lines(data)
        elif kind == "claims":
            if not isinstance(from_json(data), dict):
                return "it is no claim"
        elif kind == "searches":
            found = from_json(data)
            if not isinstance(found, dict) or name_of(found.get("recipe") or {}) != name:
                return "it is another search's"
        else:
            deserialize(data)
    except (ValueError, OSError, SyntaxError, SafetensorError) as error:
        return f"it cannot be read ({_first(error)})"
    if kind in ("scores", "features") and _hash(data)[:16] != name:
        return "its contents are not those that were written"
    return ""


def _first(error: Exception) -> str:
    """The first line of an error; Pillow names the object in memory instead of the file."""
    line = (str(error).splitlines() or [""])[0] or type(error).__name__
    return "not a picture" if "BytesIO" in line else line


def _lines(data: bytes) -> dict[str, dict[str, Any]]:
    """Records by picture from the lines of a file of scores; an error gives way to a success."""
    found: dict[str, dict[str, Any]] = {}
    for line in data.decode().splitlines():
        record = from_json(line)
        if not isinstance(record, dict) or not isinstance(record.get("picture"), str) or len(record) < 2:
            raise ValueError(f"expected a picture's name with what was seen, got {line[:40]!r}")
        if record["picture"] not in found or "error" not in record:
            found[record["picture"]] = record
    return found


def _record(text: str | bytes) -> dict[str, Any]:
    """What a picture or an error says about itself."""
    record = from_json(text)
    cell = record.get("cell") if isinstance(record, dict) else None
    if not isinstance(cell, dict) or not all(isinstance(cell.get(key), str) for key in ("model", "edit")):
        raise ValueError("without the recipe of a cell")
    return record


def _recipe(file: Any) -> Recipe:
    """The recipe inside a picture of a store. Pillow reads what stands before the pixels, and them only when asked."""
    with Image.open(file) as image:
        return _record(str(image.info.get(KEY, "{}")))["cell"]


def _read_png(data: bytes) -> tuple[UInt8[np.ndarray, "H W 3"], dict[str, Any]]:
    """Pixels and record of a picture of a store."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return np.asarray(image.convert("RGB")), _record(str(image.info.get(KEY, "{}")))
