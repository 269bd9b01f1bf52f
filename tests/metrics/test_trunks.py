"""Trunks: each against the network it stands on, and no picture's features depend on the others'."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles.sheet import THINGS, sheet
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, ViTConfig, ViTForImageClassification

from efface.core.errors import EffaceError, UsageError
from efface.metrics import trunks
from efface.metrics.detectors import Classifier
from efface.metrics.distances import kernel
from efface.metrics.trunks import INCEPTION, ClassifierTrunk, Trunk, distance_name, trunk

PIXELS = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}


def noise(n: int, height: int = 64, width: int = 64) -> list[np.ndarray]:
    return list(np.random.default_rng(5).integers(0, 256, (n, height, width, 3), dtype=np.uint8))


def tiny_clip(folder: Path, processor: bool = False) -> CLIPModel:
    torch.manual_seed(0)
    text = {
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    net = CLIPModel(CLIPConfig(text_config=text, vision_config={**PIXELS, "image_size": 32}, projection_dim=12)).eval()
    net.save_pretrained(folder)
    if processor:
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return net


@pytest.fixture(scope="module")
def moji() -> Trunk:
    return trunk("moji-concept")


def test_moji_concept_is_the_detector_without_its_head(moji: Trunk):
    pictures, detector = noise(3), Classifier("moji-concept")
    assert isinstance(moji, Trunk)
    assert moji.id.startswith("moji-concept-")
    assert moji.id == detector.id  # one network, one name
    features = moji.features(pictures)
    assert features.shape == (3, 384)
    logits = detector.net.classifier(torch.from_numpy(features))
    assert torch.equal(logits.argmax(1), detector.logits(pictures).argmax(1))
    torch.testing.assert_close(logits, detector.logits(pictures), rtol=1e-5, atol=1e-5)


def test_number_and_order_of_pictures_change_no_bit(moji: Trunk):
    pictures = noise(21)
    features = moji.features(pictures)
    order = np.random.default_rng(1).permutation(21)
    assert np.array_equal(moji.features([pictures[i] for i in order]), features[order])
    assert np.array_equal(moji.features(pictures[4:5]), features[4:5])


def test_features_know_what_is_drawn_and_a_distance_shows_it(moji: Trunk):
    """Pictures of the shipped sheet: the nearest other style's picture is mostly of the same thing; beasts lie far from vehicles."""
    features = moji.features([picture for _, _, picture in sheet()])
    things = [thing for thing, _, _ in sheet()]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    near = (unit @ unit.T - 2 * np.eye(len(unit))).argmax(1)
    assert np.mean([things[i] == things[j] for i, j in enumerate(near)]) > 0.9
    even, odd = (np.array([i for i in range(len(things)) if i // len(THINGS) % 2 == k]) for k in (0, 1))
    animals = [i for i, thing in enumerate(things) if thing in ("tiger", "lion", "cat", "dog")]
    rest = [i for i in range(len(things)) if i not in animals]
    assert kernel(features[animals], features[rest])[0] > 5 * abs(kernel(features[even], features[odd])[0])


def test_a_vits_features_are_its_first_token(tmp_path: Path):
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(**PIXELS, image_size=64, num_labels=3)).save_pretrained(tmp_path / "vit")
    made, pictures = trunk(f"classifier:{tmp_path / 'vit'}"), noise(2)
    net = ViTForImageClassification.from_pretrained(tmp_path / "vit").eval()
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 127.5 - 1
    expected = net(x, output_hidden_states=True).logits
    got = net.classifier(torch.from_numpy(made.features(pictures)))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert made.id.startswith("vit-")


def test_clip_gives_unit_image_embeddings(tmp_path: Path):
    net, pictures = tiny_clip(tmp_path / "clip", processor=True), noise(3, 40, 56)
    made = trunk(f"clip:{tmp_path / 'clip'}")
    x = CLIPImageProcessorPil.from_pretrained(tmp_path / "clip")(pictures, return_tensors="pt")["pixel_values"]
    assert x.shape == (3, 3, 32, 32)
    ids = torch.tensor([[0, 1, 49407]]).clamp(max=49)
    with torch.no_grad():
        expected = net(input_ids=ids, pixel_values=x).image_embeds.numpy()
    np.testing.assert_allclose(made.features(pictures), expected, rtol=1e-5, atol=1e-6)
    assert made.id.startswith("clip-clip-")


def test_ids_name_the_weights(tmp_path: Path):
    net = tiny_clip(tmp_path / "a")
    net.save_pretrained(tmp_path / "copy" / "a")
    with torch.no_grad():
        net.visual_projection.weight[0, 0] += 1e-3
    net.save_pretrained(tmp_path / "other" / "a")
    one, copy, other = (trunk(f"clip:{tmp_path / where}").id for where in ("a", "copy/a", "other/a"))
    assert one == copy != other
    assert one.rpartition("-")[0] == other.rpartition("-")[0]


def onnx_file(path: Path, kind: str, shape: list[int | str]) -> Path:
    """A network that gives each picture's three channel means."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    h = onnx.helper
    dtype = onnx.TensorProto.UINT8 if kind == "uint8" else onnx.TensorProto.FLOAT
    nodes = [
        h.make_node("Cast", ["x"], ["f"], to=onnx.TensorProto.FLOAT),
        h.make_node("GlobalAveragePool", ["f"], ["y"]),
    ]
    graph = h.make_graph(
        nodes, "means", [h.make_tensor_value_info("x", dtype, shape)],
        [h.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [shape[0], 3, 1, 1])],
    )  # fmt: skip
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 13)], ir_version=8), path)
    return path


@pytest.mark.parametrize(("kind", "unit"), [("float", 255), ("uint8", 1)])
@pytest.mark.parametrize("count", ["n", 1, 5])
def test_onnx_gets_pictures_of_its_type(tmp_path: Path, kind: str, unit: int, count: int | str):
    made, pictures = trunk(f"onnx:{onnx_file(tmp_path / 'means.onnx', kind, [count, 3, 'h', 'w'])}"), noise(18, 8, 6)
    np.testing.assert_allclose(made.features(pictures), np.stack(pictures).mean((1, 2)) / unit, rtol=1e-5)
    assert made.id.startswith("onnx-means-")


def test_onnx_resizes_to_the_size_it_names(tmp_path: Path):
    made = trunk(f"onnx:{onnx_file(tmp_path / 'means.onnx', 'float', ['n', 3, 4, 12])}")
    plain = np.full((9, 30, 3), (10, 20, 30), dtype=np.uint8)
    np.testing.assert_allclose(made.features([plain, plain[::-1]]), [[10 / 255, 20 / 255, 30 / 255]] * 2, rtol=1e-5)
    fits = noise(1, 4, 12)
    np.testing.assert_allclose(made.features(fits), fits[0].mean((0, 1))[None] / 255, rtol=1e-5)


def test_onnx_of_another_kind_is_refused(tmp_path: Path):
    path = onnx_file(tmp_path / "grey.onnx", "float", ["n", 1, 4, 4])
    with pytest.raises(UsageError, match=r"expected an input \(N 3 H W\) of uint8 or float, got .* in grey.onnx"):
        trunk(f"onnx:{path}")
    with pytest.raises(UsageError, match=r"expected an ONNX file, got 'none.onnx'"):
        trunk("onnx:none.onnx")


def test_only_inceptions_distances_have_the_famous_names():
    assert distance_name("frechet", INCEPTION) == "FID"
    assert distance_name("kernel", INCEPTION) == "KID"
    assert distance_name("frechet", "moji-concept-12345678") == "Fréchet distance (moji-concept-12345678)"
    assert distance_name("kernel", "clip-x-1") == "kernel distance (clip-x-1)"
    with pytest.raises(UsageError, match="expected 'frechet' or 'kernel', got 'cmmd'"):
        distance_name("cmmd", INCEPTION)


def test_inception_is_asked_for_by_name_and_only_a_known_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(UsageError, match=r"pip install .efface\[inception\]."):
        trunk("inception")

    class Fake:
        """torch-fidelity's class as far as it is used: uint8 pictures (b 3 h w) to a tuple with one tensor."""

        def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str) -> None:
            assert features_list == ["2048"]
            opened.append(feature_extractor_weights_path)

        def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            assert (x.dtype, x.shape) == (torch.uint8, (16, 3, 64, 64))
            return (x.float().mean((2, 3)),)

    opened: list[str] = []
    package = type(sys)("torch_fidelity.feature_extractor_inceptionv3")
    package.FeatureExtractorInceptionV3 = Fake
    monkeypatch.setitem(sys.modules, "torch_fidelity", type(sys)("torch_fidelity"))
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(EffaceError, match=r"cannot be downloaded from https://github.com/toshas"):
        trunk("inception")
    path = tmp_path / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    path.write_bytes(b"another file")
    with pytest.raises(EffaceError, match="expected SHA-256 6726825d.*got another; delete it"):
        trunk("inception")
    assert not opened
    monkeypatch.setattr(trunks, "INCEPTION_SHA256", trunks.file_hash(path))
    made, pictures = trunk("inception"), noise(3)
    assert opened == [str(path)]
    np.testing.assert_allclose(made.features(pictures), np.stack(pictures).mean((1, 2)), rtol=1e-5)
    assert distance_name("frechet", made.id) == "FID"


def test_an_unknown_trunk_names_the_known(tmp_path: Path):
    for name in ("resnet", "clip:", "inception:x"):
        with pytest.raises(UsageError, match="expected one of moji-concept.*inception, got"):
            trunk(name)
    with pytest.raises(
        UsageError, match="expected a transformers folder, got .* without config.json; give one, or owner/name"
    ):
        ClassifierTrunk(str(tmp_path))
