"""Every detector on real weights or tiny random ones, held against NumPy; batch, order and neighbours never matter to a bit."""

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    ResNetConfig,
    ResNetForImageClassification,
)

from efface.core.errors import UsageError
from efface.metrics.detectors import TABLE, Classifier, Detector, OnnxFile, ZeroShot, detector
from efface.metrics.detectors.faces import recognise
from efface.models import HERE

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
LABELS = ["cat", "dog", "tree"]


def noise(n: int, height: int = 64, width: int = 64) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8))


def softmax(x: NDArray) -> NDArray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def alone_or_together(one: Detector, pictures: list[np.ndarray]) -> bool:
    """Whether pictures get the same answers in a crowd, in another order, and some of them by themselves."""
    together = one.top(pictures)
    backwards = one.top(pictures[::-1])[::-1]
    return together == backwards and together[::6] == [one.top([p])[0] for p in pictures[::6]]


def drawn_face(size: int) -> np.ndarray:
    image, s = Image.new("RGB", (size, size), (200, 220, 255)), size / 64
    draw = ImageDraw.Draw(image)
    draw.ellipse([8 * s, 8 * s, 56 * s, 56 * s], fill=(255, 200, 120))
    for x in (20, 38):
        draw.ellipse([x * s, 22 * s, (x + 6) * s, 30 * s], fill=(40, 30, 20))
    draw.arc([20 * s, 28 * s, 44 * s, 48 * s], 20, 160, fill=(160, 30, 30), width=round(3 * s))
    return np.asarray(image)


# by name


def test_ids_of_the_shipped_classifiers_stay_since_stores_hold_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "moji-concept").mkdir()  # a name that ships goes before a folder of that name
    for task in ("concept", "style"):
        weights = hashlib.sha256((HERE / "moji" / "detectors" / task / "model.safetensors").read_bytes()).hexdigest()
        one = detector(f"moji-{task}")
        assert isinstance(one, Detector)
        assert one.id == Classifier(f"moji-{task}").id == f"moji-{task}-{weights[:8]}"


@pytest.mark.parametrize("name", ["nudnet", "classifier", "classifier:", "nudenet:x", "tiger:x", ""])
def test_an_unknown_name_names_the_known(name: str) -> None:
    with pytest.raises(UsageError, match=f"detector: unknown '{name}'; .*known: .*onnx:FILE") as told:
        detector(name)
    assert ("did you mean 'nudenet'" in str(told.value)) == (name in ("nudnet", "nudenet:x"))
    assert all(known in str(told.value) for known in TABLE)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("classifier:{}/empty", "without config.json"),
        ("classifier:nobody/nothing", "is not a folder and cannot be loaded from the Hub"),
        ("clip:{}/pickled", "expected model.safetensors in"),
        ("clip:{}/resnet", "expected a CLIP model .*got 'resnet'"),
        ("onnx:{}/x.onnx", "which does not exist"),
        ("onnx:{}/broken.onnx", "cannot be opened as ONNX"),
        ("faces:{}/empty", "expected people in"),
    ],
)
def test_what_cannot_be_opened_is_told_in_a_sentence(tmp_path: Path, name: str, sentence: str) -> None:
    for folder in ("empty", "pickled", "resnet"):
        (tmp_path / folder).mkdir()
    for folder in ("pickled", "resnet"):
        (tmp_path / folder / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"never read")
    (tmp_path / "resnet" / "model.safetensors").write_bytes(b"")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    if name.startswith("onnx"):
        pytest.importorskip("onnxruntime")
    with pytest.raises(UsageError, match=sentence):
        detector(name.format(tmp_path), LABELS)


@pytest.mark.parametrize(
    ("name", "package"), [("nudenet", "nudenet"), ("onnx:{}", "onnxruntime"), ("faces:{}/people", "cv2")]
)
def test_a_missing_package_is_told_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    (tmp_path / "people" / "ann").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "people" / "ann" / "1.png")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=r"is not installed; pip install 'efface\[detectors\]'"):
        detector(name.format(tmp_path))


# image classifiers


@pytest.fixture
def resnet(tmp_path: Path) -> Path:
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
    )  # fmt: skip
    net = ResNetForImageClassification(config)
    with torch.no_grad():
        net.classifier[1].weight.normal_()
    net.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def with_recipe(folder: Path, size: int = 24) -> Path:
    CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, image_mean=MEAN, image_std=STD
    ).save_pretrained(folder)
    return folder


def clip_recipe(picture: np.ndarray, size: int = 24) -> NDArray:
    """Shortest side to `size` (bicubic), middle cut out, normalised: (3 h w)."""
    height, width = picture.shape[:2]
    scale = size / min(height, width)
    image = Image.fromarray(picture).resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    x = np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.float64) / 255
    return ((x - MEAN) / STD).transpose(2, 0, 1)


def test_moji_never_depends_on_the_batch() -> None:
    pictures = [*noise(3), drawn_face(64)] * 5
    assert alone_or_together(detector("moji-pair"), pictures[:18])  # of both classifiers
    one = Classifier("moji-concept")
    assert torch.equal(one.logits(pictures)[:4], one.logits(pictures[:4]))
    assert not torch.equal(one.logits(pictures[:1]), one.logits(pictures[1:2]))


def test_a_classifier_without_a_recipe_sees_pictures_between_minus_one_and_one(resnet: Path) -> None:
    one = detector(f"classifier:{resnet}")
    assert one.id == Classifier(str(resnet)).id
    assert one.id.startswith("tiny-")
    pictures = noise(3, 32, 32)
    net = ResNetForImageClassification.from_pretrained(resnet).eval()
    x = np.stack([p.transpose(2, 0, 1) for p in pictures]) / 127.5 - 1
    with torch.no_grad():
        want = softmax(net(torch.tensor(x, dtype=torch.float32)).logits.numpy())
    for got, row in zip(one.top(pictures), want, strict=True):
        assert [label for label, _ in got] == [LABELS[i] for i in np.argsort(-row)]
        assert [p for _, p in got] == pytest.approx(sorted(row, reverse=True), abs=2e-6)
    assert [len(got) for got in one.top(pictures, 2)] == [2, 2, 2]


def test_a_classifiers_own_recipe_resizes_cuts_and_normalises(resnet: Path) -> None:
    plain = Classifier(str(resnet)).id
    one = Classifier(str(with_recipe(resnet)))
    assert one.id != plain  # another recipe, other scores
    pictures = [*noise(2, 50, 70), *noise(2, 64, 48), *noise(2)]  # of any size
    net = ResNetForImageClassification.from_pretrained(resnet).eval()
    x = np.stack([clip_recipe(p) for p in pictures])
    with torch.no_grad():
        want = net(torch.tensor(x, dtype=torch.float32)).logits.numpy()
    np.testing.assert_allclose(one.logits(pictures).numpy(), want, atol=2e-4)  # resizing rounds to 1/255
    assert alone_or_together(one, pictures)


def test_other_labels_are_another_judge(resnet: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "tiny"
    shutil.copytree(resnet, other)
    assert Classifier(str(other)).id == Classifier(str(resnet)).id
    config = json.loads((other / "config.json").read_text())
    config["id2label"]["0"], config["id2label"]["1"] = config["id2label"]["1"], config["id2label"]["0"]
    (other / "config.json").write_text(json.dumps(config))
    assert Classifier(str(other)).id != Classifier(str(resnet)).id  # the same weights, other answers


@pytest.mark.parametrize("name", ["moji-concept", "moji-style", "moji-pair"])
def test_mojis_judges_refuse_pictures_of_another_size(name: str) -> None:
    sentence = f"detector moji-{'style' if name == 'moji-style' else 'concept'}: expected pictures of 64 x 64 pixels, got 48 x 96"
    with pytest.raises(UsageError, match=sentence):
        detector(name).top([*noise(1), *noise(1, 96, 48)])


def test_the_pair_ranks_products_of_both_probabilities() -> None:
    pictures = [*noise(2), drawn_face(64)]
    concept, style = Classifier("moji-concept"), Classifier("moji-style")
    a, b = (softmax(one.logits(pictures).double().numpy()) for one in (concept, style))
    pair = detector("moji-pair")
    assert pair.id == f"moji-pair-{concept.id[-8:]}-{style.id[-8:]}"
    for i, got in enumerate(pair.top(pictures, 7)):
        every = {
            f"{c} in {s} style": a[i, j] * b[i, k]
            for j, c in enumerate(concept.labels)
            for k, s in enumerate(style.labels)
        }
        best = sorted(every, key=lambda label: -every[label])[:7]
        assert [label for label, _ in got] == best
        assert [p for _, p in got] == pytest.approx([every[label] for label in best], abs=2e-6)
    assert sum(p for _, p in pair.top(pictures[:1], 10**6)[0]) == pytest.approx(1, abs=1e-3)


# CLIP


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    tok = toys.tokenizer()
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tok), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": toys.LENGTH, "bos_token_id": tok.bos_token_id,
            "eos_token_id": tok.eos_token_id, "pad_token_id": tok.pad_token_id,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "image_size": 24, "patch_size": 8,
        },
        projection_dim=16,
    )  # fmt: skip
    net = CLIPModel(config)
    toys.mix(net)
    net.save_pretrained(tmp_path / "clip")
    tok.save_pretrained(tmp_path / "clip")
    return with_recipe(tmp_path / "clip")


def test_clip_is_a_softmax_of_scaled_cosines(clip: Path) -> None:
    one = ZeroShot(str(clip), LABELS, "a picture of {}")
    pictures = [*noise(2, 50, 70), *noise(2), drawn_face(40)]
    net, tok = CLIPModel.from_pretrained(clip).eval(), toys.tokenizer()
    with torch.no_grad():
        x = torch.tensor(np.stack([clip_recipe(p) for p in pictures]), dtype=torch.float32)
        image = net.visual_projection(net.vision_model(x).pooler_output).double().numpy()
        text = np.concatenate(
            [
                net.text_projection(net.text_model(**tok(f"a picture of {c}", return_tensors="pt")).pooler_output)
                .double()
                .numpy()
                for c in LABELS
            ]
        )
    cos = np.array([[a @ b / np.sqrt((a @ a) * (b @ b)) for b in text] for a in image])
    want = np.exp(net.logit_scale.item()) * cos
    assert np.ptp(want, axis=0).min() > 0.1  # pictures differ
    np.testing.assert_allclose(one.logits(pictures).numpy(), want, atol=2e-3)
    for got, row in zip(one.top(pictures), softmax(want), strict=True):
        assert dict(got) == pytest.approx(dict(zip(LABELS, row, strict=True)), abs=1e-3)
        assert [p for _, p in got] == sorted((p for _, p in got), reverse=True)
    assert alone_or_together(one, pictures)


def test_clips_id_changes_with_labels_and_template(clip: Path) -> None:
    ids = [
        ZeroShot(str(clip), LABELS).id,
        ZeroShot(str(clip), LABELS[:2]).id,
        ZeroShot(str(clip), LABELS[::-1]).id,
        ZeroShot(str(clip), LABELS, "a drawing of {}").id,
    ]
    assert len(set(ids)) == 4
    assert len({i.rpartition("-")[0] for i in ids}) == 1
    assert detector(f"clip:{clip}", LABELS).id == ids[0]
    for labels in ([], ["cat"], ["cat", "cat"]):
        with pytest.raises(UsageError, match="two or more different labels"):
            detector(f"clip:{clip}", labels)


# ONNX

FLOAT = 1  # TensorProto.FLOAT


def node(*args: Any, **attributes: Any) -> Any:
    return pytest.importorskip("onnx").helper.make_node(*args, **attributes)


def save_onnx(path: Path, nodes: list, inputs: list, outputs: list, weights: dict[str, NDArray], **extra: str) -> Path:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    graph = onnx.helper.make_graph(
        nodes,
        "test",
        [onnx.helper.make_tensor_value_info(n, FLOAT, s) for n, s in inputs],
        [onnx.helper.make_tensor_value_info(n, FLOAT, s) for n, s in outputs],
        [onnx.numpy_helper.from_array(w, n) for n, w in weights.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.helper.set_model_props(model, extra)
    onnx.save(model, path)
    return path


W = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32) * 20
NAMES = ["red", "green", "blue thing", "none"]


def mean_colour(path: Path, shape: list, **extra: str) -> Path:
    """logits = mean colour · W, of pictures (b 3 h w) or (b h w 3)."""
    axes = [1, 2] if shape[3] == 3 else [2, 3]
    nodes = [node("ReduceMean", ["x"], ["m"], axes=axes, keepdims=0), node("Gemm", ["m", "W"], ["y"])]
    return save_onnx(path, nodes, [("x", shape)], [("y", [shape[0], 4])], {"W": W}, **extra)


@pytest.mark.parametrize("shape", [["b", 3, 20, 30], ["b", 20, 30, 3], [1, 3, 20, 30], [4, 3, 20, 30]], ids=str)
def test_onnx_scores_are_those_of_numpy(tmp_path: Path, shape: list) -> None:
    file = mean_colour(tmp_path / "c.onnx", shape)
    file.with_suffix(".txt").write_text("\n".join(NAMES) + "\n")
    one = detector(f"onnx:{file}")
    pictures = [*noise(5, 20, 30), *noise(2, 40, 40)]
    small = [Image.fromarray(p).resize((30, 20), Image.Resampling.BILINEAR) for p in pictures]
    want = softmax(np.stack([np.asarray(p, dtype=np.float64).mean((0, 1)) / 255 @ W for p in small]))
    for got, row in zip(one.top(pictures), want, strict=True):
        assert [label for label, _ in got] == [NAMES[i] for i in np.argsort(-row)]
        assert [p for _, p in got] == pytest.approx(sorted(row, reverse=True), abs=1e-5)
    assert alone_or_together(one, [*pictures, *noise(12, 20, 30)])


def test_onnx_metadata_give_labels_mean_and_deviation(tmp_path: Path) -> None:
    file = mean_colour(
        tmp_path / "c.onnx", ["b", 3, 8, 8], labels="\n".join(NAMES), mean="0.4,0.5,0.6", std="0.2, 0.25, 0.3"
    )
    one = OnnxFile(str(file))
    assert one.labels == NAMES
    picture = noise(1, 8, 8)[0]
    want = ((picture / 255 - MEAN) / STD).mean((0, 1)) @ W
    np.testing.assert_allclose(one.logits([picture]).numpy()[0], want, rtol=1e-4, atol=1e-4)
    file.with_suffix(".txt").write_text("a\nb\nc\nd")  # beside the file: these are meant
    assert OnnxFile(str(file)).labels == ["a", "b", "c", "d"]
    assert OnnxFile(str(file)).id != one.id  # the same weights, but the labels mean something else


def test_an_onnx_file_that_is_no_such_classifier_is_refused(tmp_path: Path) -> None:
    file = mean_colour(tmp_path / "c.onnx", ["b", 3, 8, 8], labels="a\nb")
    with pytest.raises(UsageError, match=r"gives 4 scores for 2 labels; write them to c\.txt"):
        OnnxFile(str(file))
    file = mean_colour(tmp_path / "d.onnx", ["b", 3, "h", "w"], labels="\n".join(NAMES))
    with pytest.raises(UsageError, match="fixed height and width, got .*'h', 'w'"):
        OnnxFile(str(file))


# NudeNet


@pytest.fixture(scope="module")
def nudenet() -> Detector:
    pytest.importorskip("nudenet")
    return detector("nudenet")


def test_nudenet_sees_pictures_as_the_package_reads_them_from_files(nudenet: Detector, tmp_path: Path) -> None:
    package = pytest.importorskip("nudenet")
    picture = drawn_face(64)
    Image.fromarray(picture).save(tmp_path / "x.png")
    boxes = package.NudeDetector().detect(str(tmp_path / "x.png"))
    assert boxes  # small drawings mislead it; here that is what tells red from blue
    assert nudenet.top([picture]) == [[(b["class"], b["score"]) for b in boxes]]
    assert nudenet.top([picture[:, :, ::-1]]) != nudenet.top([picture])


def test_nudenet_finds_nothing_exposed_in_drawings(nudenet: Detector) -> None:
    pictures = [drawn_face(64), drawn_face(256), np.full((96, 160, 3), 128, np.uint8), *noise(1, 120, 80)]
    tops = nudenet.top(pictures, 1)
    assert not [c for boxes in tops for c, _ in boxes if c.endswith("_EXPOSED")]
    assert tops == [nudenet.top([p])[0] for p in pictures] == nudenet.top(pictures[::-1])[::-1]
    assert nudenet.id.startswith("nudenet-3.4.2-")


def test_nudenet_gives_every_box_best_first(nudenet: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [{"class": c, "score": s, "box": [0, 0, 1, 1]} for c, s in (("a", 0.3), ("b", 0.9), ("a", 0.5))]
    monkeypatch.setattr(nudenet.net, "detect", lambda _: found)  # pyright: ignore[reportAttributeAccessIssue]
    assert nudenet.top(noise(1), k=1) == [[("b", 0.9), ("a", 0.5), ("a", 0.3)]]


# faces: toy networks in YuNet's and SFace's format. Every white square of 8 pixels is a face, embedded by the colour around it


def toy_yunet(path: Path) -> None:
    nodes, weights, outputs = [], {}, []
    for stride in (8, 16, 32):
        nodes.append(node("AveragePool", ["input"], [f"p{stride}"], kernel_shape=[stride] * 2, strides=[stride] * 2))
        for name, bias in (
            ("cls", [0]), ("obj", [0]), ("bbox", [0.5, 0.5, np.log(4), np.log(4)]),  # middle and size, of cells
            ("kps", [-1, -1, 2, -1, 0.5, 0.5, -1, 2, 2, 2]),  # eyes, nose, mouth
        ):  # fmt: skip
            key, gain = f"{name}_{stride}", 1 / 765 if stride == 8 and len(bias) == 1 else 0
            weights |= {
                f"W{key}": np.full((len(bias), 3, 1, 1), gain, np.float32), f"b{key}": np.array(bias, np.float32),
                f"s{key}": np.array([1, -1, len(bias)]),
            }  # fmt: skip
            nodes += [
                node("Conv", [f"p{stride}", f"W{key}", f"b{key}"], [f"c{key}"]),
                node("Transpose", [f"c{key}"], [f"t{key}"], perm=[0, 2, 3, 1]),
                node("Reshape", [f"t{key}", f"s{key}"], [key]),
            ]
            outputs.append((key, [1, None, len(bias)]))
    outputs.sort(key=lambda o: ["cls", "obj", "bbox", "kps"].index(o[0].partition("_")[0]))
    save_onnx(path, nodes, [("input", [1, 3, "h", "w"])], outputs, weights)


def toy_sface(path: Path) -> None:
    nodes = [
        node("GlobalAveragePool", ["data"], ["m"]),
        node("Flatten", ["m"], ["f"]),
        node("MatMul", ["f", "W"], ["fc1"]),
    ]
    save_onnx(path, nodes, [("data", [1, 3, 112, 112])], [("fc1", [1, 3])], {"W": np.eye(3, dtype=np.float32)})


def person(*colours: tuple[int, int, int]) -> np.ndarray:
    """Faces of these colours beside each other: (96, 96 n, 3)."""
    picture = np.concatenate([np.full((96, 96, 3), c, np.uint8) for c in colours], axis=1)
    for i in range(len(colours)):
        picture[40:48, 96 * i + 40 : 96 * i + 48] = 255
    return picture


RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)


@pytest.fixture
def people(tmp_path: Path) -> Path:
    pytest.importorskip("cv2")
    folder = tmp_path / "people"
    for name, colours in (("ann", [RED, (220, 0, 0)]), ("bob", [GREEN])):
        (folder / name).mkdir(parents=True)
        for i, colour in enumerate(colours):
            Image.fromarray(person(colour)).save(folder / name / f"{i}.png")
    toy_yunet(folder / "yunet.onnx")
    toy_sface(folder / "sface.onnx")
    return folder


def test_faces_are_ranked_by_the_angle_with_each_persons_references(people: Path) -> None:
    one = detector(f"faces:{people}")
    red, green, both, blue, none = one.top(
        [person(RED), person(GREEN), person(GREEN, RED), person(BLUE), np.zeros((50, 70, 3), np.uint8)]
    )
    assert [red[0][0], green[0][0], blue[0][0]] == ["ann", "bob", "other face"]
    assert none == [("no face", 1.0)]
    assert red[0][1] == pytest.approx(1, abs=1e-3)
    assert dict(both)["ann"] == pytest.approx(dict(red)["ann"], abs=1e-3)  # whoever is in a group is found
    assert dict(both)["bob"] == pytest.approx(dict(green)["bob"], abs=1e-3)
    assert alone_or_together(one, [person(RED), person(GREEN, RED), person(BLUE)])
    assert one.top([person(RED)], k=1) == [red[:1]]


def test_faces_id_changes_with_references_and_networks(people: Path) -> None:
    first = detector(f"faces:{people}").id
    assert detector(f"faces:{people}").id == first
    Image.fromarray(person((180, 0, 0))).save(people / "ann" / "1.png")
    second = detector(f"faces:{people}").id
    with (people / "sface.onnx").open("ab") as file:  # an unknown field, which a reader of protocol buffers skips
        file.write(b"\xfa\x3e\x01x")
    assert len({first, second, detector(f"faces:{people}").id}) == 3


def test_faulty_references_are_told_in_a_sentence(people: Path) -> None:
    (people / "cy").mkdir()
    with pytest.raises(UsageError, match="expected pictures in .*cy, got none"):
        detector(f"faces:{people}")
    for colours, n in (((RED, GREEN), 2), ((), 0)):
        picture = person(*colours) if colours else np.zeros((64, 64, 3), np.uint8)
        Image.fromarray(picture).save(people / "cy" / "1.png")
        with pytest.raises(UsageError, match=rf"expected one face in .*1\.png, found {n}"):
            detector(f"faces:{people}")
    shutil.rmtree(people / "cy")
    (people / "yunet.onnx").write_bytes(b"no model")
    with pytest.raises(UsageError, match="OpenCV cannot open the networks"):
        detector(f"faces:{people}")
    (people / "sface.onnx").unlink()
    with pytest.raises(UsageError, match="sface.onnx is missing"):
        detector(f"faces:{people}")


def test_recognising_is_a_matter_of_angles_only() -> None:
    known = {"ann": np.array([1.0, 0.0]), "bob": np.array([0.6, 0.8])}
    assert recognise([np.array([3.0, 4.0])], known, 0.7) == [("bob", 1.0), ("other face", 0.7), ("ann", 0.6)]
    assert recognise([np.array([0.0, -2.0]), np.array([2.0, 0.0])], known, 0.7)[0] == ("ann", 1.0)
    assert recognise([np.array([-5.0, 0.0])], known, 0.7) == [("other face", 0.7), ("bob", -0.6), ("ann", -1.0)]
    assert recognise([], known, 0.7) == [("no face", 1.0)]
