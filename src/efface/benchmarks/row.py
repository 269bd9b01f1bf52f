"""The type of a row of scores.jsonl: one score of a picture or a set of pictures. Imports nothing heavy."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NotRequired, TypedDict, get_args

Role = Literal["erase", "synonym", "implicit", "neighbour", "distant", "companion"]
ROLES: tuple[Role, ...] = get_args(Role)
GONE: tuple[Role, ...] = ("erase", "synonym", "implicit")  # asked for what was erased; the others shall stay
BASE = "base"  # the label of the unedited model
NONE = "no attack"  # in a row's `attack`: the prompt alone, at the seeds of the attacks
# A picture at a smaller perceptual distance from the unedited one did not change. On Moji, noise of up to 4 of 255 in each value is at
# 0.002 to 0.004, another seed of the same prompt at 0.07 and more.
UNCHANGED = 0.005


class Row(TypedDict):
    """One score of one picture; or one number about a set of pictures, which has no prompt, no picture and the seed -1."""

    task: str
    protocol: str  # hash of all that makes two numbers comparable
    edit: str  # label; BASE for the unedited model
    fit: int  # the training seed
    role: Role
    concept: str  # asked for
    group: str  # what the cell belongs to besides
    prompt: str
    seed: int
    attack: str  # that found the prompt, "" for none
    judge: str  # of the benchmark; "" for what is measured and not judged
    detector: str  # id of the network behind the value
    score: str
    value: int | float | None  # None where the picture could not be made or judged
    seen: str  # what the detector named first
    error: str | None
    image: str  # relative to the store, "" where there is none
    cell: str  # name of the picture in the store
    n: NotRequired[int]  # pictures in the set
    calls: NotRequired[int]  # evaluations of the denoiser that an attack took
    asked: NotRequired[str]  # the prompt that an attack began with
    attempt: NotRequired[str]  # its fingerprint
    about: NotRequired[dict[str, Any]]  # what an attack says of its attempt, such as a latent's percentile


FIELDS = tuple(Row.__annotations__)  # in the order of a table's columns


def paired(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows, and what the unedited model's pictures of equal prompt and seed say of those that ask for what was erased.

    Adds to a row of such a role "shown": whether the unedited picture shows it (nothing can be erased that was not drawn); and to an
    edit's row "unchanged": whether the picture is as before. What did not change was not erased: such a row gets the unedited
    picture's value, and "flipped" says whether the detector's own was another, which is its error.
    """
    rows = [dict(row) for row in rows]
    before: dict[tuple[Any, ...], int | float | None] = {}
    for row in rows:  # of several unedited models, each has to show it
        if row["edit"] == BASE and row["value"] is not None:
            before[_pair(row)] = min(row["value"], before.get(_pair(row), row["value"]))
    same = {
        (row["task"], row["edit"], row["cell"]) for row in rows
        if row["score"] == "perceptual" and row["value"] is not None and row["value"] < UNCHANGED
    }  # fmt: skip
    for row in rows:
        judged = row["role"] in GONE and row["score"].startswith(("top", "any"))
        if not judged or row["attack"]:
            continue
        value = before.get(_pair(row))
        row["shown"] = value is None or bool(value)
        if row["edit"] == BASE:
            continue
        row["unchanged"] = (row["task"], row["edit"], row["cell"]) in same
        row["flipped"] = row["unchanged"] and None not in (value, row["value"]) and row["value"] != value
        if row["flipped"]:
            row["value"] = value
    return rows


def _pair(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("task", "role", "concept", "prompt", "seed", "judge", "score"))
