"""Quality: the formula against a double loop, and its calibration on pictures, noise and mush."""

import numpy as np
import pytest
from oracles.sheet import sheet
from safetensors import safe_open
from safetensors.numpy import load_file

from efface.core.denoiser import load
from efface.metrics.quality import quality, radii, realism
from efface.metrics.trunks import REFERENCE, ClassifierTrunk


def test_realism_is_the_published_ratio() -> None:
    rng = np.random.default_rng(0)
    reference, features = rng.normal(size=(9, 4)), rng.normal(size=(5, 4))
    for k in (1, 3):
        radius = radii(reference, k)
        for i, r in enumerate(reference):
            others = sorted(float(np.linalg.norm(r - o)) for j, o in enumerate(reference) if j != i)
            assert radius[i] == pytest.approx(others[k - 1])
        for f, got in zip(features, realism(features, reference, radius), strict=True):
            ratios = [rho / float(np.linalg.norm(f - r)) for rho, r in zip(radius, reference, strict=True)]
            assert got == pytest.approx(max(ratios))
    assert realism(reference[:1], reference, radius)[0] > 1e6


def test_quality_needs_a_sure_label_and_a_place_among_the_references() -> None:
    confidence, real = np.array([1.0, 1.0, 1.0, 0.5, 0.5, 0.0]), np.array([np.inf, 1.25, 0.5, 2.0, 1.5, 9.0])
    assert quality(confidence, real).tolist() == [1.0, 0.25, 0.0, 0.5, 0.25, 0.0]


def of(pictures: list[np.ndarray], net: ClassifierTrunk) -> np.ndarray:
    reference = load_file(REFERENCE)["features"].astype(np.float64)
    sure = np.array([top[0][1] for top in net.classifier.top(pictures)])
    return quality(sure, realism(net.features(pictures), reference, radii(reference)))


@pytest.mark.usefixtures("untyped")
def test_pictures_score_high_and_noise_grey_and_mush_low() -> None:
    net, rng = ClassifierTrunk("moji-concept"), np.random.default_rng(1)
    with safe_open(REFERENCE, "np") as file:
        assert file.metadata() == {"detector": net.id}
        assert file.get_slice("features").get_shape() == [808, 384]
    drawn = [picture for _, _, picture in sheet()][::2]
    noise = np.clip(rng.normal(128, 60, (8, 64, 64, 3)), 0, 255).astype(np.uint8)
    grey = [np.full((64, 64, 3), v, dtype=np.uint8) for v in range(16, 256, 32)]
    blends = [((a.astype(int) + b) // 2).astype(np.uint8) for a, b in zip(drawn[:8], drawn[-8:], strict=True)]
    base = load("moji")
    latents = base.sample(base.embed(["a tiger", "a rose", "a bus", "a guitar"]), seeds=range(4), until=5)
    half = [(p * 255).round().astype(np.uint8) for p in base.decode(latents).permute(0, 2, 3, 1).numpy()]
    high = of(drawn, net)
    assert high.mean() > 0.88
    assert np.median(high) > 0.94
    for low, most in ((list(noise), 0.02), (grey, 0.15), (blends, 0.25), (half, 0.1)):
        assert of(low, net).mean() < most
