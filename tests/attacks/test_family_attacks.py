"""Every attack on every family: it finds attempts that draw, or one sentence says why it does not apply."""

import dataclasses

import families
import pytest
from attacks.goals import goal

from efface.attacks import REGISTRY
from efface.core.attempt import Drawing, draw, load_attempt
from efface.core.concept import Concept
from efface.core.denoiser import Denoiser
from efface.core.edit import Edit
from efface.erasers import make

SMALL = {
    "draws": 1, "judged": 1, "every": 1, "population": 4, "pairs": 2, "rounds": 1, "batch": 1, "tries": 1, "steps": 2, "tokens": 2,
}  # fmt: skip
CALLS = 24


@pytest.fixture(scope="module")
def models() -> dict[str, tuple[Denoiser, Edit]]:
    found = {name: Denoiser(families.MAKERS[name]()) for name in ("sdxl", "sd3-no-t5", "sd3", "flux-dev")}
    return {name: (m, make("uce").fit(m, Concept("tiger", "cat"), ["lion"])) for name, m in found.items()}


@pytest.mark.parametrize("family", ["sdxl", "sd3-no-t5", "sd3", "flux-dev"])
@pytest.mark.parametrize("name", list(REGISTRY.table))
def test_an_attack_works_on_a_family_or_says_why_not(
    models: dict[str, tuple[Denoiser, Edit]], name: str, family: str, tmp_path
) -> None:
    base, edit = models[family]
    own, given = REGISTRY.settings(name)
    known = {f.name for f in dataclasses.fields(REGISTRY.declarations(own))}
    attack = REGISTRY.make(name, **{k: v for k, v in SMALL.items() if k in known and k not in given})
    model = edit(base)
    about = goal(base, prompts=("a tiger",), seeds=(1,), drawing=Drawing(steps=2), others=("car",), edit=edit)
    if reason := attack.applies(model, about):
        assert reason[0].islower()
        return
    found = attack.find(model, about, CALLS)
    last = [marks[max(marks)][0] for marks in found.attempts.values()][-1]
    last.save(tmp_path / "attempt.safetensors")
    again = load_attempt(tmp_path / "attempt.safetensors")
    assert again.fingerprint == last.fingerprint
    ((picture,),) = draw(again.on(model, base), [again], [3], Drawing(steps=1))
    assert picture.shape == (16, 16, 3)
