"""Any concept on any model: what a plan asks, what is proposed, and a run of it on a tiny model of another family."""

from pathlib import Path

import families
import pytest
import torch
from toys import tiny

from efface import api
from efface.benchmarks.own import Questions, proposed, questions, read_plan
from efface.core.denoiser import Denoiser, load
from efface.core.errors import UsageError
from efface.erasers import make
from efface.metrics.detectors import ModelClassifier

PLAN = Questions(
    erase=("tiger",), synonyms=("big cat",), descriptions=("an orange striped cat",), neighbours=("lion", "cat"), distant=("car",),
    pictures=4, steps=2,
)  # fmt: skip


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    odd = Questions(erase=('a "quoted" \\ name',), neighbours=("b",), distant=("c, d",), guidance=3.0, negative="x\ny")
    for plan in (PLAN, odd):
        (tmp_path / "plan.toml").write_text(plan.text())
        assert read_plan(tmp_path / "plan.toml") == plan


def test_each_concept_is_asked_for_at_seeds_of_its_own() -> None:
    declared = PLAN.benchmark()
    (task,) = declared.made()
    counts = {
        role: sum(c.role == role for c in task.cells)
        for role in ("erase", "synonym", "implicit", "neighbour", "distant")
    }
    assert counts == {"erase": 4, "synonym": 2, "implicit": 2, "neighbour": 4, "distant": 2}
    assert len({c.seed for c in task.cells}) == len(task.cells)
    assert {c.concept for c in task.cells if c.role in ("erase", "synonym", "implicit")} == {"tiger"}
    assert [c.prompt for c in task.cells][:2] == ["a picture of a tiger", "a tiger"]
    assert declared.judges["concept"].labels == ("tiger", "lion", "cat", "car")
    assert declared.sampler.steps == 2
    style = Questions(erase=("noto",), kind="style").benchmark()
    assert [c.prompt for c in next(style.made()).cells][:2] == ["a picture in noto style", "a house in noto style"]


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({}, "plan: expected concepts in 'erase', got none; name what was erased"),
        ({"erase": ["tiger"], "neighbors": ["cat"]}, "unknown entry 'neighbors'; did you mean 'neighbours'?"),
        ({"erase": ["tiger"], "neighbours": [1]}, "expected a list of names for neighbours"),
        ({"erase": ["tiger"], "steps": "ten"}, "expected int for steps, got 'ten'"),
        ({"erase": ["tiger"], "steps": True}, "expected int for steps, got True"),
        ({"erase": ["tiger"], "distant": ["car", "car"]}, "plan: 'car' is named twice"),
        ({"erase": ["tiger"], "distant": ["tiger"]}, "tiger"),
        ({"erase": ["tiger"], "kind": "thing"}, "plan: unknown kind 'thing'"),
        ({"erase": ["tiger"], "pictures": 0}, "plan: expected pictures and steps of at least 1"),
    ],
)
def test_a_broken_entry_is_one_sentence(raw: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        questions(raw, "plan.toml")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_plan_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--plan: no such file"):
        read_plan(tmp_path / "no.toml")
    (tmp_path / "odd.toml").write_text("erase = tiger")
    with pytest.raises(UsageError, match=r"--plan: .*odd\.toml is no TOML \(.*line 1"):
        read_plan(tmp_path / "odd.toml")


def test_on_moji_the_words_nearest_to_a_concept_are_like_it() -> None:
    found = proposed(Questions(erase=("tiger",)), load("moji"))
    assert len(found.neighbours) == len(found.distant) == 4
    assert not {"tiger"} & {*found.neighbours, *found.distant}
    assert {"predator", "leopard", "kitten"} & set(found.neighbours)
    kept = proposed(Questions(erase=("tiger",), neighbours=("wolf",)), load("moji"))
    assert kept.neighbours == ("wolf",)
    assert len(kept.distant) == 4
    assert "wolf" not in kept.distant


def test_the_models_own_classifier_finds_the_prompt_of_its_pictures() -> None:
    """Moji's own pictures among four labels."""
    model, labels = load("moji"), ["tiger", "bus", "rose", "robot"]
    pictures = model.images([f"a {w} in noto style" for w in labels], range(4), steps=10)
    judge = ModelClassifier(model, labels, [f"a {w}" for w in labels], draws=4)
    top = judge.top(pictures, 2)
    assert [best[0][0] for best in top] == labels
    assert all(0.5 < best[0][1] <= 1 and len(best) == 2 for best in top)
    assert judge.top(pictures[:1]) == ModelClassifier(model, labels, [f"a {w}" for w in labels], draws=4).top(
        pictures[:1]
    )
    assert judge.id != ModelClassifier(model, labels[:3], labels[:3], draws=4).id


def test_the_classifiers_errors_are_those_of_a_loop(base: Denoiser) -> None:
    judge = ModelClassifier(base, ["tiger", "car"], ["a tiger", "a car"], draws=3)
    (picture,) = base.images(["tiger"], [0], steps=2)
    x0 = base.encode(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255)
    for i, prompt in enumerate(("a tiger", "a car")):
        for k in range(3):
            t, eps = judge.t[[k]], judge.eps[[k]]
            with torch.no_grad():
                off = base.predict(base.add_noise(x0, t, eps), t, base.embed([prompt])) - eps
            assert float(judge.errors(picture)[i, k]) == pytest.approx(float(off.square().mean()), rel=1e-4)
    with pytest.raises(UsageError, match="judge: expected two or more different labels"):
        ModelClassifier(base, ["tiger"], ["tiger"])
    with pytest.raises(UsageError, match="judges pictures of 16 pixels, got 24 x 24"):
        judge.errors(base.images(["tiger"], [0], steps=1, size=24)[0])


@pytest.mark.parametrize("family", ["sdxl", "sd3-no-t5"])
def test_an_edit_of_any_family_is_measured_by_a_plan(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Denoiser(families.MAKERS[family]())
    model.pipeline.save_pretrained(tmp_path / "model")
    make("uce").fit(model, "tiger", model=family).save(tmp_path / "uce.safetensors")
    arguments = {
        "model": str(tmp_path / "model"),
        "asked": {"neighbours": ["lion"], "distant": ["car"]},
        "size": "smoke",
    }
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "plan.toml").write_text(
        Questions(erase=("tiger",), neighbours=("lion",), distant=("car",), pictures=2, steps=1, guidance=2.0).text()
    )
    found = api.evaluate(
        [tmp_path / "uce.safetensors"],
        output=tmp_path / "run",
        **{**arguments, "asked": {"plan": tmp_path / "one" / "plan.toml"}},
    )
    assert found.page.is_file()
    assert {row["role"] for row in found.rows} == {"erase", "neighbour", "distant"}
    assert all(row["value"] is not None for row in found.rows)
    assert all(row["detector"].startswith(f"model-{model.fingerprint}") for row in found.rows if row["judge"])
    assert read_plan(tmp_path / "run" / "plan.toml").steps == 1
    page = found.page.read_text()
    assert "Moji" not in page


def test_a_plan_about_something_else_is_refused(tmp_path: Path) -> None:
    model = tiny()
    model.pipeline.save_pretrained(tmp_path / "model")
    make("uce").fit(model, "tiger", model="toy").save(tmp_path / "uce.safetensors")
    (tmp_path / "plan.toml").write_text(Questions(erase=("car",), neighbours=("boat",), distant=("cat",)).text())
    with pytest.raises(UsageError, match="--plan: expected questions about what the edits erase"):
        api.evaluate(
            [tmp_path / "uce.safetensors"],
            output=tmp_path / "run",
            model=str(tmp_path / "model"),
            asked={"plan": tmp_path / "plan.toml"},
        )
