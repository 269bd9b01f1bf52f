"""Moji: stock, small, and good enough to stand on. Erasing on it: the concept goes, its neighbours stay, by measured amounts."""

import json
from dataclasses import replace
from pathlib import Path

import children
import pytest
from diffusers import StableDiffusionPipeline

import efface
from efface.benchmarks.moji import benchmark, concepts, distant, kind, members, neighbours, prompt, styles, tasks
from efface.benchmarks.run import evaluate
from efface.benchmarks.spec import Sampler
from efface.benchmarks.store import Store
from efface.core.denoiser import Denoiser
from efface.erasers import make
from efface.metrics.detectors import Classifier
from efface.metrics.rates import erased, found
from efface.models import HERE

MOJI = HERE / "moji"
STEPS = 8  # of the sampler: all but as many pictures are right as by 25, in a third of the time; the bars are the same


@pytest.fixture(scope="module")
def base() -> Denoiser:
    return efface.load("moji")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Shared, so that the unedited model draws once."""
    return Store(tmp_path_factory.mktemp("pictures") / "store")


def test_loads_without_efface(tmp_path: Path):
    code = (
        "import sys, torch\nfrom diffusers import StableDiffusionPipeline\n"
        f"pipe = StableDiffusionPipeline.from_pretrained({str(MOJI)!r})\npipe.set_progress_bar_config(disable=True)\n"
        "picture = pipe('a tiger', num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]\n"
        "assert picture.size == (64, 64), picture.size\nassert 'efface' not in sys.modules"
    )
    process = children.start(code, tmp_path)
    children.finish(process, tmp_path)
    assert process.exitcode == 0


def test_is_stock_and_small():
    index = json.loads((MOJI / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert json.loads((MOJI / "scheduler" / "scheduler_config.json").read_text())["prediction_type"] == "epsilon"
    assert sum(f.stat().st_size for f in MOJI.rglob("*") if f.is_file()) <= 60 * 2**20
    assert not [f for f in MOJI.rglob("*") if f.suffix in (".bin", ".pt", ".ckpt", ".pkl")]


def test_the_vocabulary_is_what_was_promised():
    known = concepts()
    count = {k: sum(c["kind"] == k for c in known.values()) for k in ("object", "character", "unsafe")}
    assert count["object"] >= 100
    assert count["character"] >= 12
    assert count["unsafe"] >= 10
    assert len(styles()) >= 6
    for c in known.values():
        assert c["name"] not in c["neighbours"]
        assert set(c["neighbours"]) <= set(known)
        assert not any(c["name"] == tag for tag in c["implicit"])
    assert set(neighbours(["tiger"], 8)) == {"cat", "lion", "leopard"}
    assert set(members("alcohol")) >= {"beer", "wine"}
    assert kind("noto") == "style"
    assert not {known[d]["group"] for d in distant(["tiger"], 6)} & {"cats"}
    with pytest.raises(efface.UsageError, match="did you mean 'tiger'"):
        members("tigerr")


@pytest.mark.slow
def test_draws_what_is_asked(base: Denoiser):
    """Every seventeenth (concept, style) pair: the card's numbers come from all of them."""
    pairs = [(n, s) for n, c in concepts().items() for s in c["styles"]][::17]
    pictures = base.images([prompt(n, s) for n, s in pairs], range(len(pairs)), steps=STEPS)
    right = [r["rank"] == 1 for r in Classifier("moji-concept").rank(pictures, [n for n, _ in pairs])]
    drawn = [r["rank"] == 1 for r in Classifier("moji-style").rank(pictures, [s for _, s in pairs])]
    card = json.loads((MOJI / "card.json").read_text())["quality"]
    assert (
        sum(right) / len(right) > card["concept_top1"]["all"]["value"] - 0.1
    )  # three standard errors of 48 pictures are less
    assert sum(drawn) / len(drawn) > card["style_top1"]["value"] - 0.1
    wrong = Classifier("moji-concept").rank(pictures, [pairs[(i + 30) % len(pairs)][0] for i in range(len(pairs))])
    assert sum(r["rank"] == 1 for r in wrong) / len(wrong) < 0.1  # the detector does not say yes to everything


def test_stock_pipeline_draws_the_same_picture(base: Denoiser):
    pipe = StableDiffusionPipeline.from_pretrained(MOJI)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        "a tiger", num_inference_steps=6, guidance_scale=4.0, latents=base.noise([5]), output_type="np"
    ).images[0]
    ours = (
        base.decode(base.sample(base.embed(["a tiger"]), seeds=[5], steps=6, guidance=4.0))[0].permute(1, 2, 0).numpy()
    )
    assert abs(theirs - ours).max() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("method", "gone", "kept"), [("uce", 0.9, 0.85), ("cpe", 0.85, 0.85)])
def test_the_concept_goes_and_its_neighbours_stay(
    base: Denoiser, tmp_path: Path, pictures: Store, method: str, gone: float, kept: float
):
    """Bars below docs/leaderboard's by the error of so few pictures: with 12, one that is still found leaves 92 in 100 erased."""
    (task,) = tasks("tiger", pictures=12, said=0, others=4, near=3, far=2)
    edit = make(method).fit(base, task.erase, task.preserve)
    asked = replace(benchmark(), sampler=Sampler(steps=STEPS), measures=())
    rows = evaluate(base, {method: edit}, task, asked, tmp_path, store=pictures)
    before, after = (erased(rows, "top1", edit=e, role="erase").value for e in ("base", method))
    assert before < 0.3  # the positive control: it was there
    assert after >= gone
    roles = ("neighbour", "distant")
    there, still = (sum(found(rows, "top1", edit=e, role=r).hits for r in roles) for e in ("base", method))
    assert there >= 17  # of 20
    assert still >= kept * there
