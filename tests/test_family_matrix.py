"""Every method on every family: it erases, or one sentence says why it does not apply. The README shows what these tests find."""

import dataclasses
from pathlib import Path

import families
import pytest
import torch

from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.edit import load_edit
from efface.core.errors import UsageError
from efface.erasers import TABLE, make, split

SMALL = {
    "steps": 2, "batch": 2, "sampler_steps": 2, "reuse": 2, "warmup": 1, "drawn": 3, "everyday": 8, "near": 8, "rounds": 1, "anchors": 1,
    "closest": 3, "picks": 2, "opening": 1, "attacks": 1, "adversarial_steps": 1, "vectors": 2, "width": 8, "lr": 1e-3,
}  # fmt: skip
REFUSED = {  # (method, family) -> the sentence
    **{(m, f): r"works on cross-attention layers, and .* has none" for m in ("mace", "receler") for f in families.MAKERS if f != "sdxl"},
    ("mapping", "flux-dev"): "trains CLIP text encoders, and Flux reads its prompts through T5",
}  # fmt: skip


@pytest.fixture(scope="module")
def models() -> dict[str, Denoiser]:
    return {name: Denoiser(maker()) for name, maker in families.MAKERS.items()}


@pytest.mark.parametrize("family", ["sdxl", "sd3-no-t5", "sd3", "flux-dev"])
@pytest.mark.parametrize("name", list(TABLE))
def test_a_method_works_on_a_family_or_says_why_not(
    models: dict[str, Denoiser], name: str, family: str, tmp_path: Path
) -> None:
    model = models[family]
    known = {f.name for f in dataclasses.fields(split(name)[0])}
    settings = {k: v for k, v in SMALL.items() if k in known}
    if name == "debias":
        settings |= {"attributes": "", "classifier": ""}  # shares of the target, without a classifier
    eraser = make(name, **settings)
    if (name, family) in REFUSED:
        with pytest.raises(UsageError, match=REFUSED[name, family]):
            eraser.fit(model, Concept("tiger", "cat"))
        return
    edit = eraser.fit(model, Concept("tiger", "cat"), ["lion"], model=family)
    edit.save(tmp_path / "edit.safetensors")
    edited = load_edit(tmp_path / "edit.safetensors")(model)
    cond, how = model.embed(["tiger"]), {"seeds": [1], "steps": 2}
    before, after = model.sample(cond, **how), edited.sample(edited.embed(["tiger"]), **how)
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)
