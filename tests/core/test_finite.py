"""What is not finite stops: training at its step, an edit before it is written, applied, exported or read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from efface.core.denoiser import Denoiser
from efface.core.edit import Adapter, Delta, Edit, LowRank, TextMap, load_edit
from efface.core.errors import EffaceError
from efface.core.export import export
from efface.core.log import Log
from efface.core.train import Learner, NotFinite
from efface.erasers import make

NAME = "unet.conv_in.weight"


def steep(name: str) -> Any:
    rate = {"receler": "lr", "cpe": "lr", "spm": "lr"}.get(name, "lr")
    return make(name, **{rate: 1e30, "batch": 1})


@pytest.mark.parametrize("name", ["esd-x", "esd-u", "spm", "naive"])
def test_training_stops_at_the_step_that_breaks_and_keeps_the_checkpoint(
    base: Denoiser, name: str, tmp_path: Path
) -> None:
    log = Log(tmp_path / "training")
    with pytest.raises(
        EffaceError, match=r"\.fit: training stopped at step \d+: (the loss|a weight) is infinite or not a"
    ) as error:
        steep(name).fit(base, "tiger", log=log)
    assert 1 <= log.step <= 3
    assert "no edit was written, train with a lower --lr" in str(error.value)
    assert str(tmp_path / "training") in str(error.value)


def test_a_checkpoint_before_the_break_stays(tmp_path: Path) -> None:
    leaf = torch.ones(3)
    log, learner = Log(tmp_path / "training"), Learner({"a": leaf}, lr=0.1)

    def train() -> None:
        for step in log.steps(learner, 10, every=2):
            learner.step(leaf.sum() * (float("nan") if step == 5 else 1.0))

    with pytest.raises(NotFinite, match="the loss"):
        train()
    assert log.step == 6
    again, other = Log(tmp_path / "training"), torch.zeros(3)
    assert next(again.steps(Learner({"a": other}, lr=0.1), 10)) == 4
    assert other.isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_edit_that_is_not_finite_is_neither_written_nor_applied(
    base: Denoiser, value: float, tmp_path: Path
) -> None:
    edit = Delta({NAME: torch.full(base.params([NAME])[NAME].shape, value)})
    with pytest.raises(EffaceError, match=f"not written: {NAME} of the edit is not finite; fit it again"):
        edit.save(tmp_path / "edit.safetensors")
    assert not list(tmp_path.iterdir())
    for use in (
        lambda: edit(base),
        lambda: edit.bake(base.pipeline),
        lambda: export(edit, base, tmp_path / "l.safetensors", rank=1),
    ):
        with pytest.raises(
            EffaceError,
            match=f"at strength 1 it makes {NAME} infinite or not a number in torch.float32; apply it weaker",
        ):
            use()


def test_a_strength_that_overflows_is_refused(base: Denoiser) -> None:
    edit = Delta({NAME: torch.ones_like(base.params([NAME])[NAME])})
    assert (edit * 1e30)(base)
    with pytest.raises(EffaceError, match=r"at strength 1e\+39 it makes"):
        (edit * 1e39)(base)


def written(path: Path, edit: Edit, tensors: dict[str, Tensor], **header: Any) -> Path:
    save_file(tensors, path, metadata={"efface": json.dumps({**edit.record(), **header})})
    return path


D = 8
MAP = TextMap(torch.ones(D, 2), torch.ones(D, 2))
LORA = LowRank({NAME: (torch.ones(4, 2), torch.ones(2, 9))})


@pytest.mark.parametrize(
    ("edit", "tensors"),
    [
        (MAP, {"left": torch.full((D, 2), torch.nan), "right": torch.ones(D, 2)}),
        (MAP, {"left": torch.ones(D, 2, dtype=torch.int32), "right": torch.ones(D, 2)}),
        (MAP, {"left": torch.ones(D, 2, dtype=torch.bool), "right": torch.ones(D, 2)}),
        (MAP, {"left": torch.ones(D), "right": torch.ones(D)}),
        (MAP, {"left": torch.ones(D, 2, 1), "right": torch.ones(D, 2, 1)}),
        (MAP, {"left": torch.ones(D, 3), "right": torch.ones(D, 2)}),
        (MAP, {"left": torch.tensor(1.0), "right": torch.ones(D, 2)}),
        (MAP, {"left": torch.ones(D, 2)}),
        (LORA, {f"{NAME}/up": torch.ones(4, 2, 1), f"{NAME}/down": torch.ones(2, 9)}),
        (LORA, {f"{NAME}/up": torch.ones(4, 3), f"{NAME}/down": torch.ones(2, 9)}),
        (LORA, {f"{NAME}/up": torch.ones(4, 2)}),
        (Delta({}), {NAME: torch.full((4,), torch.inf)}),
        (Delta({}), {NAME: torch.ones(4, dtype=torch.int64)}),
    ],
)  # fmt: skip
def test_a_file_with_tensors_of_no_use_is_refused_by_its_name(
    edit: Edit, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    path = written(tmp_path / "edit.safetensors", edit, tensors)
    with pytest.raises(EffaceError) as error:
        load_edit(path)
    assert str(error.value).startswith(f"{path}: ")
    assert str(error.value).endswith("make it again")


@pytest.mark.parametrize(
    "header",
    [
        {"erase": [1]}, {"erase": "tiger"}, {"erase": None}, {"erase": [{"name": ""}]}, {"erase": [{"name": "a"}]}, {"strength": "x"},
        {"strength": None}, {"strength": [1]}, {"settings": []}, {"notes": 3}, {"method": None}, {"seed": "one"}, {"signature": "zz"},
        {"kind": ["TextMap"]}, {"kind": None}, {"strength": 1e999}, {"preserve": [{"name": "a", "prompts": 4}]}, {"base": 5},
        {"kind": "Adapter"}, {"kind": "Stack"}, {"kind": "Stack", "edits": 3}, {"kind": "Keyed"}, {"kind": "Keyed", "hidden": "X"},
        {"kind": "Guidance"},
    ],
    ids=str,
)  # fmt: skip
def test_a_header_of_other_types_is_refused_by_the_files_name(header: dict[str, Any], tmp_path: Path) -> None:
    path = written(tmp_path / "edit.safetensors", MAP, MAP.tensors(), **header)
    with pytest.raises(EffaceError) as error:
        load_edit(path)
    assert str(error.value).startswith(f"{path}: ")


def test_a_header_that_nests_deep_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "edit.safetensors"
    save_file(MAP.tensors(), path, metadata={"efface": "[" * 100_000 + "]" * 100_000})
    with pytest.raises(EffaceError, match="damaged"):
        load_edit(path)


def test_a_header_without_concepts_is_read(tmp_path: Path) -> None:
    assert isinstance(load_edit(written(tmp_path / "edit.safetensors", MAP, MAP.tensors(), erase=[])), TextMap)
    assert Adapter  # the other kinds are in test_edit.py
