"""LPIPS and perceptual distances between an unedited and an edited picture of the same prompt and seed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d

from efface.core.errors import UsageError
from efface.metrics.trunks import ClassifierTrunk, file_hash, in_batches

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and deviation for pictures in -1..1
LAYERS = ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1))  # torchvision's features.N, stride, padding


def unit(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Every place's channel vector at length 1; a zero vector stays zero."""
    return maps / (maps.norm(dim=1, keepdim=True) + 1e-10)


def layered(
    a: Sequence[Float[Tensor, "b ..."]],
    b: Sequence[Float[Tensor, "b ..."]],
    weights: Sequence[Float[Tensor, " _"]] | None = None,
) -> Float[Tensor, " b"]:
    """Σ_l mean_hw Σ_c w_lc (â - b̂)² over feature maps (b c h w) of layers l (Zhang et al. 2018, eq. 1), with w = 1 if not given.

    The paper squares w with the difference, the released code and its weights do not; this follows the code.
    """
    squares = [(unit(x) - unit(y)) ** 2 for x, y in zip(a, b, strict=True)]
    if weights is not None:
        squares = [s * w[:, None, None] for s, w in zip(squares, weights, strict=True)]
    return torch.stack([s.sum(1).mean((1, 2)) for s in squares]).sum(0)


class LPIPS:
    r"""Learned perceptual distance over AlexNet (Zhang et al. 2018, arXiv:1801.03924, version 0.1).

    Pictures are resized to `size` with Pillow's bilinear filter (64 in ESD, AdvAnchor and RECE; 512 in Bui et al.): values of
    different sizes cannot be converted, so `id` names the size, the net and the weights.

    The weights are one safetensors file, made once where torchvision and lpips are installed:

        alex, lins = torchvision.models.alexnet(weights="IMAGENET1K_V1").state_dict(), lpips.LPIPS(net="alex").state_dict()
        save_file({k: v for k, v in (alex | lins).items() if re.match(r"features|lin\d", k)}, "lpips-alex.safetensors")
    """

    def __init__(self, weights: Path | str, size: int = 64) -> None:
        """Read the weights.

        Raises:
            UsageError: no such file, or a tensor is missing in it.
        """
        path = Path(weights)
        if not path.is_file():
            raise UsageError(
                f"weights: expected a safetensors file, got {str(path)!r}; see help(LPIPS) for how to make it"
            )
        tensors = load_file(path)
        names = [f"features.{n}.{part}" for n, _, _ in LAYERS for part in ("weight", "bias")]
        lins = [f"lin{k}.model.1.weight" for k in range(len(LAYERS))]
        if missing := [name for name in (*names, *lins) if name not in tensors]:
            raise UsageError(
                f"weights: expected {missing[0]} in {path.name}, got none; see help(LPIPS) for how to make it"
            )
        self.tensors = {name: tensors[name].float() for name in names}
        self.weights = [tensors[name].float().flatten() for name in lins]
        self.size = size
        self.id = f"lpips-alex-{size}-{file_hash(path)[:8]}"

    @torch.no_grad()
    def distances(self, a: list[np.ndarray], b: list[np.ndarray]) -> list[float]:
        """One for each pair of pictures (H W 3, uint8).

        Raises:
            UsageError: not as many of one as of the other.
        """
        return in_batches(
            _pairs(a, b),
            lambda part: layered(self.maps([x for x, _ in part]), self.maps([y for _, y in part]), self.weights),
        ).tolist()

    def maps(self, pictures: list[np.ndarray]) -> list[Tensor]:
        """The five rectified convolutions' outputs."""
        small = [
            np.asarray(Image.fromarray(p).resize((self.size, self.size), Image.Resampling.BILINEAR)) for p in pictures
        ]
        x = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float() / 127.5 - 1
        x = (x - torch.tensor(SHIFT)[:, None, None]) / torch.tensor(SCALE)[:, None, None]
        outs: list[Tensor] = []
        for k, (n, stride, padding) in enumerate(LAYERS):
            if k in (1, 2):
                x = max_pool2d(x, 3, 2)
            weight, bias = self.tensors[f"features.{n}.weight"], self.tensors[f"features.{n}.bias"]
            x = conv2d(x, weight, bias, stride=stride, padding=padding).relu()
            outs.append(x)
        return outs


@torch.no_grad()
def perceptual(a: list[np.ndarray], b: list[np.ndarray], trunk: ClassifierTrunk) -> list[float]:
    """LPIPS' formula, unweighted, over a convolutional classifier's stages: needs no download, and is never called LPIPS.

    Raises:
        UsageError: not as many pictures of one as of the other.
    """
    return in_batches(
        _pairs(a, b), lambda part: layered(trunk.maps([x for x, _ in part]), trunk.maps([y for _, y in part]))
    ).tolist()


def perceptual_name(trunk: ClassifierTrunk) -> str:
    """The name of `perceptual` for a given classifier."""
    return f"perceptual distance ({trunk.id})"


def lpips_d(lpips_e: float, lpips_u: float) -> float:
    """RECE's LPIPS_d: LPIPS_e of the erased artist (higher is better) - LPIPS_u of the others (lower is better)."""
    return lpips_e - lpips_u


def _pairs(a: list[np.ndarray], b: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    if len(a) != len(b):
        raise UsageError(
            f"b: expected {len(a)} pictures, one for each of a, got {len(b)}; pair them by prompt and seed"
        )
    return list(zip(a, b, strict=True))
