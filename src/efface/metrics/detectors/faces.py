"""Face recognition by reference pictures: the cosine between face embeddings, for any people."""

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from efface.core.errors import UsageError
from efface.metrics.detectors.base import Ranked, digest

NOBODY, OTHER = "no face", "other face"
KINDS = (".png", ".jpg", ".jpeg", ".webp")


@runtime_checkable
class Embedder(Protocol):
    """Finds faces and embeds them. `id` identifies it with its weights; faces with a cosine above `same` are one person."""

    id: str
    same: float

    def __call__(self, picture: np.ndarray) -> list[np.ndarray]:
        """A vector for each face in a picture (H W 3, uint8)."""
        ...


class OpenCV:
    """YuNet finds faces, SFace embeds them; both are files of OpenCV's model zoo."""

    same = 0.363  # OpenCV's own advice for SFace

    def __init__(self, folder: Path) -> None:
        """Open yunet.onnx and sface.onnx.

        Raises:
            UsageError: OpenCV is not installed, or a file is missing or damaged.
        """
        try:
            import cv2
        except ImportError as error:
            raise UsageError("face detector: OpenCV is not installed; pip install 'efface[detectors]'") from error

        files = [folder / "yunet.onnx", folder / "sface.onnx"]
        for file in files:
            if not file.is_file():
                raise UsageError(
                    f"detector: {file} is missing; put OpenCV's YuNet and SFace there as yunet.onnx and sface.onnx"
                )
        try:
            self.finder = cv2.FaceDetectorYN.create(str(files[0]), "", (320, 320))
            self.embedder = cv2.FaceRecognizerSF.create(str(files[1]), "")
        except cv2.error as error:
            raise UsageError(
                f"detector: OpenCV cannot open the networks in {folder}: {error.err}; download them again"
            ) from error
        self.id = f"sface-{digest(f.read_bytes() for f in files)}"

    def __call__(self, picture: np.ndarray) -> list[np.ndarray]:
        """A vector for each face in a picture."""
        blue_first = np.ascontiguousarray(picture[:, :, ::-1])
        self.finder.setInputSize((picture.shape[1], picture.shape[0]))
        _, faces = self.finder.detect(blue_first)
        crops = [] if faces is None else [self.embedder.alignCrop(blue_first, face) for face in faces]
        return [self.embedder.feature(crop).flatten() for crop in crops]


class Faces:
    """Scores are the best cosine of a face in the picture with a person's mean reference.

    "other face" stands in the ranking at the cosine that makes one person: who comes after it is not recognised. A picture without
    a face gives "no face" alone, so that an edit that destroys faces is not taken for one that changes them.
    """

    def __init__(self, folder: str, embed: Embedder | None = None) -> None:
        """Embed every reference picture.

        Args:
            folder: with a sub-folder of pictures for each person.
            embed: YuNet and SFace from the folder if not given.

        Raises:
            UsageError: no people, a person without pictures, a picture without exactly one face, or a network is missing.
        """
        root = Path(folder)
        people = {sub.name: _pictures(sub) for sub in sorted(root.glob("*")) if sub.is_dir()}
        if not people:
            raise UsageError(
                f"detector: expected people in {folder!r}, got none; give a folder with a sub-folder of pictures for each person"
            )
        self.embed = embed or OpenCV(root)
        self.people = {
            name: _unit(np.mean([self._reference(f) for f in files], axis=0)) for name, files in people.items()
        }
        seen = digest(part for name, files in people.items() for f in files for part in (name.encode(), f.read_bytes()))
        self.id = f"faces-{root.name}-{self.embed.id}-{seen}"

    def top(self, pictures: list[np.ndarray], k: int = 10) -> list[Ranked]:
        """For each picture its `k` best names with their cosines, best first."""
        return [recognise(self.embed(p), self.people, self.embed.same)[:k] for p in pictures]

    def _reference(self, file: Path) -> np.ndarray:
        from PIL import Image

        faces = self.embed(np.asarray(Image.open(file).convert("RGB")))
        if len(faces) != 1:
            raise UsageError(f"detector: expected one face in {file}, found {len(faces)}; crop or remove it")
        return _unit(faces[0])


def recognise(faces: list[np.ndarray], people: dict[str, np.ndarray], same: float) -> Ranked:
    """People (unit vectors) and "other face" by the cosine with the face most like them; "no face" where there is none."""
    if not faces:
        return [(NOBODY, 1.0)]
    seen = np.stack([_unit(face) for face in faces])
    scores = {name: round(float((seen @ mean).max()), 6) for name, mean in people.items()}
    return sorted([*scores.items(), (OTHER, same)], key=lambda pair: -pair[1])


def _pictures(folder: Path) -> list[Path]:
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in KINDS)
    if not files:
        raise UsageError(f"detector: expected pictures in {folder}, got none; add some or remove the folder")
    return files


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x)
