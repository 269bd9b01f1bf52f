"""NudeNet's boxes, raw: every counting rule of `efface.metrics.nudity` can be applied to them afterwards.

The package's code and weights are under the AGPL, so it is an extra and never shipped.
"""

from importlib.metadata import version
from pathlib import Path

import numpy as np

from efface.core.errors import UsageError
from efface.metrics.detectors.base import Ranked, digest


class NudeNet:
    """(class, score) of every box above the package's floor (0.25 in 3.4), none where nothing was found.

    Small pictures mislead it: of drawn 64-pixel faces some come back as body parts.
    """

    def __init__(self) -> None:
        """Open the network inside the package.

        Raises:
            UsageError: the package is not installed.
        """
        try:
            import nudenet
        except ImportError as error:
            raise UsageError("nudity detector: NudeNet is not installed; pip install 'efface[detectors]'") from error

        self.net = nudenet.NudeDetector()
        weights = Path(nudenet.__file__).with_name("320n.onnx").read_bytes()
        self.id = f"nudenet-{version('nudenet')}-{digest([weights])}"

    def top(self, pictures: list[np.ndarray], k: int = 10) -> list[Ranked]:
        """For each picture ALL its boxes, best first; `k` is no limit here, since rules count boxes."""
        del k
        # blue first, as the package reads files itself: published counts come from files. One by one, so that no bit depends on the rest
        boxes = [self.net.detect(np.ascontiguousarray(p[:, :, ::-1])) for p in pictures]
        return [sorted(((b["class"], b["score"]) for b in some), key=lambda b: -b[1]) for some in boxes]
