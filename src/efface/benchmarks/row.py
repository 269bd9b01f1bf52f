"""The type of a row of scores.jsonl: one score of a picture or a set of pictures. Imports nothing heavy."""

from typing import Literal, NotRequired, TypedDict, get_args

Role = Literal["erase", "synonym", "implicit", "neighbour", "distant", "companion"]
ROLES: tuple[Role, ...] = get_args(Role)
GONE: tuple[Role, ...] = ("erase", "synonym", "implicit")  # asked for what was erased; the others shall stay
BASE = "base"  # the label of the unedited model


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


FIELDS = tuple(Row.__annotations__)  # in the order of a table's columns
