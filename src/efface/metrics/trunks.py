"""Feature extractors (trunks): networks that map pictures to feature vectors, which the distances compare."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from efface.core.errors import EffaceError, UsageError
from efface.metrics.detectors.base import folder_of, version
from efface.metrics.detectors.classifier import SHIPPED, SIZE, Classifier
from efface.models import HERE

T = TypeVar("T")
BATCH = 16
REFERENCE = SHIPPED["moji-concept"] / "reference.safetensors"  # features of the unedited Moji's pictures, for `quality`
SCORERS = {"moji": HERE / "moji" / "scorer"}

# FID and KID are values of this network with these weights: TensorFlow's Inception of 2015-12-05, as torch-fidelity publishes it.
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION = f"inception-{INCEPTION_SHA256[:8]}"


@runtime_checkable
class Trunk(Protocol):
    """Maps pictures to features. `id` identifies it with its weights: distances of different ids are never mixed."""

    id: str

    def features(self, pictures: list[np.ndarray]) -> Float[np.ndarray, "n d"]:
        """One row for each picture (H W 3, uint8)."""
        ...


def trunk(name: str) -> Trunk:
    """A trunk by name: "moji-concept", "moji-style", "classifier:ID_OR_FOLDER", "clip:ID_OR_FOLDER", "onnx:FILE" or "inception".

    Raises:
        UsageError: none of them, or its files or its package are missing.
    """
    kind, _, where = name.partition(":")
    if name in SHIPPED or (kind == "classifier" and where):
        return ClassifierTrunk(where or name)
    if kind == "clip" and where:
        return ClipTrunk(where)
    if kind == "onnx" and where:
        return OnnxTrunk(Path(where))
    if name == "inception":
        return InceptionTrunk()
    known = (*SHIPPED, "classifier:ID_OR_FOLDER", "clip:ID_OR_FOLDER", "onnx:FILE", "inception")
    raise UsageError(f"trunk: expected one of {', '.join(known)}, got {name!r}; give one of them")


def distance_name(kind: str, trunk_id: str) -> str:
    """The name of a "frechet" or "kernel" distance over this trunk: FID or KID for `INCEPTION` only.

    Raises:
        UsageError: another kind.
    """
    names = {"frechet": ("FID", "Fréchet distance"), "kernel": ("KID", "kernel distance")}
    if kind not in names:
        raise UsageError(f"kind: expected 'frechet' or 'kernel', got {kind!r}; give one of them")
    known, general = names[kind]
    return known if trunk_id == INCEPTION else f"{general} ({trunk_id})"


def in_batches(items: Sequence[T], net: Callable[[list[T]], Tensor], size: int = BATCH) -> Tensor:
    """Run `net` on batches of exactly `size` items, padded with the last one, so that an item's result does not depend on the others."""
    full = [*items, *[items[-1]] * (-len(items) % size)]
    return torch.cat([net(full[i : i + size]) for i in range(0, len(full), size)])[: len(items)]


def load(kind: type[Any], source: str | Path) -> Any:
    """A transformers model in float32 from a folder or the Hub, from safetensors only.

    Raises:
        UsageError: the model cannot be loaded.
    """
    try:
        return kind.from_pretrained(source, dtype=torch.float32, use_safetensors=True).eval()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"model: expected a folder or Hub id with config.json and safetensors weights, got {str(source)!r}; give one"
        ) from error


def preparation(source: str | Path, size: int) -> Callable[[list[np.ndarray]], Float[Tensor, "b 3 h w"]]:
    """A model's preprocessing: its own image processor, or for a folder without one, [-1, 1] at `size` pixels."""
    folder = Path(source)
    if folder.is_dir() and not (folder / "preprocessor_config.json").is_file():  # Moji's
        return lambda pictures: (
            torch.from_numpy(np.stack([resized(p, size) for p in pictures])).permute(0, 3, 1, 2).float() / 127.5 - 1
        )
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(
        source, backend="pil"
    )  # the same resizing with and without torchvision
    return lambda pictures: processor(pictures, return_tensors="pt")["pixel_values"]


def resized(picture: np.ndarray, size: int) -> np.ndarray:
    """A picture resized to a square of `size` pixels by Pillow's bicubic filter; unchanged if it has this size."""
    same = picture.shape[:2] == (size, size)
    return picture if same else np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC))


def file_hash(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


class ClassifierTrunk:
    """A transformers image classifier without its head: the pooled last hidden state, or a ViT's first token.

    Its `id` is the classifier's: one network, one name. Moji's see 64 pixels: pictures of another size are resized (bicubic).
    """

    def __init__(self, name: str) -> None:
        self.classifier = Classifier(name)
        self.id, self.net = self.classifier.id, self.classifier.net.base_model
        self.size = SIZE if name in SHIPPED else 0  # 0: any

    @torch.no_grad()
    def features(self, pictures: list[np.ndarray]) -> Float[np.ndarray, "n d"]:
        """The input of the classifier's head, one row for each picture."""

        def pool(part: list[np.ndarray]) -> Tensor:
            out = self.net(self.prepare(part))
            pooled = getattr(out, "pooler_output", None)
            return (out.last_hidden_state[:, 0] if pooled is None else pooled).flatten(1)

        return in_batches(pictures, pool).numpy()

    def prepare(self, pictures: list[np.ndarray]) -> Float[Tensor, "b 3 h w"]:
        """Pictures preprocessed for the network."""
        return self.classifier.prepare([resized(p, self.size) if self.size else p for p in pictures])

    @torch.no_grad()
    def maps(self, pictures: list[np.ndarray]) -> list[Float[Tensor, "n c h w"]]:
        """The feature maps of every stage of a convolutional classifier, shallowest first."""
        return list(self.net(self.prepare(pictures), output_hidden_states=True).hidden_states)


class ClipTrunk:
    """CLIP's image embeddings, unit vectors; "moji" is the CLIP model that ships with Moji."""

    def __init__(self, name: str) -> None:
        from transformers import CLIPModel

        source = SCORERS.get(name, name)
        self.net = load(CLIPModel, source)
        self.id = f"clip-{Path(name).name}-{version(folder_of(str(source)))}"
        self.prepare = preparation(source, self.net.config.vision_config.image_size)

    @torch.no_grad()
    def features(self, pictures: list[np.ndarray]) -> Float[np.ndarray, "n d"]:
        """One unit vector for each picture."""

        def embed(part: list[np.ndarray]) -> Tensor:
            return self.net.visual_projection(self.net.vision_model(pixel_values=self.prepare(part)).pooler_output)

        return nn.functional.normalize(in_batches(pictures, embed), dim=1).numpy()


class OnnxTrunk:
    """An ONNX file: one input (N 3 H W), uint8 or float in 0..1, pictures resized to its H and W; its first output, flattened.

    Resizing is Pillow's bicubic and leaves pictures alone where the file names no size. A file with a fixed N is run N at a time.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise UsageError("trunk: onnxruntime is not installed; pip install 'efface[detectors]'") from None
        if not path.is_file():
            raise UsageError(f"trunk: expected an ONNX file, got {str(path)!r}; give a file's path")
        self.session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        entry = self.session.get_inputs()[0]
        kinds = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}
        if len(entry.shape) != 4 or entry.shape[1] != 3 or entry.type not in kinds:
            raise UsageError(
                f"trunk: expected an input (N 3 H W) of uint8 or float, got {entry.shape} of {entry.type} in {path.name}; export it so"
            )
        self.input, self.dtype = entry.name, kinds[entry.type]
        count, _, height, width = entry.shape
        self.count, self.height, self.width = (n if isinstance(n, int) else None for n in (count, height, width))
        self.id = f"onnx-{path.stem}-{file_hash(path)[:8]}"

    def features(self, pictures: list[np.ndarray]) -> Float[np.ndarray, "n d"]:
        """The first output, one row for each picture."""

        def run(part: list[np.ndarray]) -> Tensor:
            x = np.stack([self._fit(picture) for picture in part]).transpose(0, 3, 1, 2)
            x = x if self.dtype == np.uint8 else x.astype(np.float32) / 255
            return torch.from_numpy(self.session.run(None, {self.input: np.ascontiguousarray(x)})[0]).flatten(1)

        return in_batches(pictures, run, self.count or BATCH).numpy()

    def _fit(self, picture: np.ndarray) -> np.ndarray:
        size = (self.width or picture.shape[1], self.height or picture.shape[0])
        if size == (picture.shape[1], picture.shape[0]):
            return picture
        return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


class InceptionTrunk:
    """The 2048 pooled features of TensorFlow's Inception, by torch-fidelity: the one trunk of FID and KID.

    The weights are downloaded once to torch's hub folder. torch-fidelity unpickles that file, so its whole SHA-256 is checked before.
    """

    id = INCEPTION

    def __init__(self) -> None:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import (  # pyright: ignore[reportMissingImports]
                FeatureExtractorInceptionV3,
            )
        except ImportError:
            raise UsageError("trunk: torch-fidelity is not installed; pip install 'efface[inception]'") from None
        path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_URL.rpartition("/")[2]
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(INCEPTION_URL, str(path), hash_prefix=INCEPTION_SHA256, progress=False)
            except (OSError, RuntimeError) as error:
                raise EffaceError(
                    f"{path}: cannot be downloaded from {INCEPTION_URL} ({error}); put it there"
                ) from error
        if file_hash(path) != INCEPTION_SHA256:
            raise EffaceError(
                f"{path}: expected SHA-256 {INCEPTION_SHA256}, got another; delete it to download it again"
            )
        self.net = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))

    @torch.no_grad()
    def features(self, pictures: list[np.ndarray]) -> Float[np.ndarray, "n d"]:
        """2048 numbers for each picture; resizing to 299 is the network's own."""
        return in_batches(
            pictures, lambda part: self.net(torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2).contiguous())[0]
        ).numpy()
