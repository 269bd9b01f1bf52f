"""LPIPS against a literal loop with random weights; the perceptual distance on what Moji draws."""

from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import lpips as oracle
from oracles.sheet import sheet
from safetensors.torch import save_file

from efface.core.errors import UsageError
from efface.metrics.lpips import LPIPS, layered, lpips_d, perceptual, perceptual_name
from efface.metrics.trunks import ClassifierTrunk

SHAPES = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    out = {}
    for k, (n, shape) in enumerate(SHAPES.items()):
        fan = shape[1] * shape[2] * shape[3]
        out[f"features.{n}.weight"] = torch.randn(shape, generator=rng) * (2 / fan) ** 0.5
        out[f"features.{n}.bias"] = torch.randn(shape[0], generator=rng) * 0.1
        out[f"lin{k}.model.1.weight"] = torch.rand(1, shape[0], 1, 1, generator=rng)
    return out


@pytest.fixture(scope="module")
def file(weights: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "lpips-alex.safetensors"
    save_file(weights, path)
    return path


@pytest.fixture(scope="module")
def concept() -> ClassifierTrunk:
    return ClassifierTrunk("moji-concept")


def pictures(n: int, size: int = 64) -> list[np.ndarray]:
    return list(np.random.default_rng(n).integers(0, 256, (n, size, size, 3), dtype=np.uint8))


def test_lpips_is_the_papers_sum(weights: dict[str, torch.Tensor], file: Path):
    arrays = {name: tensor.double().numpy() for name, tensor in weights.items()}
    lins = [arrays[f"lin{k}.model.1.weight"].ravel() for k in range(5)]
    (a, b, c), model = pictures(3), LPIPS(file, size=64)
    expected = [oracle.distance(oracle.alexnet(a, arrays), oracle.alexnet(y, arrays), lins) for y in (b, c)]
    assert model.distances([a, a], [b, c]) == pytest.approx(expected, rel=1e-4)
    assert expected[0] != pytest.approx(expected[1], rel=1e-3)


def test_lpips_is_symmetric_zero_for_the_same_and_blind_to_the_rest(file: Path):
    model, images = LPIPS(file), pictures(18)
    other = images[1:] + images[:1]
    values = model.distances(images, other)
    assert model.distances(images, images) == [0.0] * 18
    assert model.distances(other, images) == pytest.approx(values, rel=1e-5)
    assert model.distances(images[5:6], other[5:6]) == values[5:6]
    assert model.distances(images[::-1], other[::-1]) == values[::-1]


def test_lpips_grows_with_the_change(file: Path):
    (a,) = pictures(1)
    noise = np.random.default_rng(9).normal(size=a.shape)
    changed = [np.clip(a + s * noise, 0, 255).astype(np.uint8) for s in (2, 20, 200)]
    values = LPIPS(file).distances([a] * 3, changed)
    assert 0 < values[0] < values[1] < values[2]


def test_the_size_is_a_resize_and_in_the_id(file: Path):
    small, large = LPIPS(file, size=64), LPIPS(file, size=128)
    a, b = pictures(2)
    assert small.id.startswith("lpips-alex-64-")
    assert large.id.replace("-128-", "-64-") == small.id
    assert large.distances([a], [b]) != pytest.approx(small.distances([a], [b]), rel=1e-3)
    doubled = [x.repeat(2, 0).repeat(2, 1) for x in (a, b)]
    plain = [np.full((100, 100, 3), v, dtype=np.uint8) for v in (40, 200)]
    assert small.distances(plain[:1], plain[1:]) == pytest.approx(
        small.distances([plain[0][:64, :64]], [plain[1][:64, :64]]), rel=1e-5
    )
    assert small.maps(doubled)[0].shape == small.maps([a, b])[0].shape == (2, 64, 15, 15)


def test_a_file_without_a_tensor_is_refused(weights: dict[str, torch.Tensor], tmp_path: Path):
    save_file({k: v for k, v in weights.items() if k != "lin3.model.1.weight"}, tmp_path / "part.safetensors")
    with pytest.raises(UsageError, match=r"expected lin3.model.1.weight in part.safetensors, got none"):
        LPIPS(tmp_path / "part.safetensors")
    with pytest.raises(UsageError, match="expected a safetensors file, got"):
        LPIPS(tmp_path / "no.safetensors")


def test_layers_of_orthogonal_and_dead_vectors():
    a = torch.tensor([3.0, 0.0, 0.0])[None, :, None, None].expand(1, 3, 2, 2)
    b = torch.tensor([0.0, 0.5, 0.0])[None, :, None, None].expand(1, 3, 2, 2)
    assert layered([a, a], [b, a]).tolist() == pytest.approx([2.0])
    assert layered([a], [b], [torch.tensor([0.25, 0.5, 9.0])]).tolist() == pytest.approx([0.75])
    assert layered([a], [torch.zeros_like(a)]).tolist() == pytest.approx([1.0])
    half = a.clone()
    half[:, :, 0] = b[:, :, 0]
    assert layered([a], [half]).tolist() == pytest.approx([1.0])


def test_perceptual_is_the_same_sum_over_the_detectors_stages(concept: ClassifierTrunk):
    a, b = pictures(2)
    expected = oracle.distance(
        *([m[0].double().numpy() for m in concept.maps([x])] for x in (a, b)),
        [np.ones(c) for c in (32, 48, 96, 192, 384)],
    )
    assert perceptual([a], [b], concept) == pytest.approx([expected], rel=1e-4)
    assert perceptual([a, b], [a, b], concept) == [0.0, 0.0]
    assert perceptual_name(concept) == f"perceptual distance ({concept.id})"
    with pytest.raises(UsageError, match="expected 2 pictures, one for each of a, got 1"):
        perceptual([a, b], [a], concept)


def test_pictures_of_one_thing_lie_nearer_than_others_of_the_same_style(concept: ClassifierTrunk):
    cells = {(thing, style): picture for thing, style, picture in sheet()}
    pairs = [("noto", "blob"), ("twemoji", "emojione")]
    things = ("rose", "apple", "santa", "lion", "beer")
    same = [(cells[t, p], cells[t, q]) for p, q in pairs for t in things]
    other = [(cells[t, p], cells[u, q]) for p, q in pairs for t in things for u in things if t != u]
    near, far = (np.mean(perceptual([a for a, _ in c], [b for _, b in c], concept)) for c in (same, other))
    assert near < 0.9 * far


def test_lpips_d_is_what_was_moved_minus_what_should_stay():
    assert lpips_d(0.4, 0.1) == pytest.approx(0.3)
