"""Detectors: pictures to ranked labels, by name. They know neither the method nor the attack that made a picture."""

from collections.abc import Callable, Sequence

from efface.core.errors import UsageError, nearest
from efface.metrics.detectors.base import Detector
from efface.metrics.detectors.classifier import Classifier
from efface.metrics.detectors.faces import Faces
from efface.metrics.detectors.model import ModelClassifier
from efface.metrics.detectors.nude import NudeNet
from efface.metrics.detectors.onnx_file import OnnxFile
from efface.metrics.detectors.pair import Pair
from efface.metrics.detectors.zero_shot import ZeroShot

__all__ = [
    "TABLE",
    "Classifier",
    "Detector",
    "Faces",
    "ModelClassifier",
    "NudeNet",
    "OnnxFile",
    "Pair",
    "ZeroShot",
    "detector",
]

# name, with what stands after its colon, to how it is opened: given that place and the labels
TABLE: dict[str, Callable[[str, Sequence[str]], Detector]] = {
    "moji-concept": lambda _, __: Classifier("moji-concept"),
    "moji-style": lambda _, __: Classifier("moji-style"),
    "moji-pair": lambda _, __: Pair(),
    "classifier:ID_OR_FOLDER": lambda place, _: Classifier(place),
    "clip:ID_OR_FOLDER": ZeroShot,
    "onnx:FILE": lambda place, _: OnnxFile(place),
    "nudenet": lambda _, __: NudeNet(),
    "faces:FOLDER": lambda place, _: Faces(place),
}


def detector(name: str, labels: Sequence[str] = ()) -> Detector:
    """Open a detector by name, such as "moji-style", "clip:openai/clip-vit-base-patch32", "faces:people".

    Args:
        name: one of `TABLE`, its capitals replaced by a place.
        labels: labels for CLIP to choose from; the other detectors have their own.

    Raises:
        UsageError: no such name, or it cannot be opened.
    """
    kind, colon, place = name.partition(":")
    for known, open_ in TABLE.items():
        known_kind, known_colon, _ = known.partition(":")
        if kind == known_kind and colon == known_colon and bool(place) == bool(colon):
            return open_(place, labels)
    raise UsageError(f"detector: unknown {name!r}; {nearest(name, TABLE)}")
