"""LPIPS (Zhang et al. 2018, eq. 1) with AlexNet, one place and one channel at a time, in float64."""

import numpy as np


def convolve(x, weight, bias, stride, padding) -> np.ndarray:  # noqa: ANN001
    """Rectified convolution of one picture (c h w)."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    k = weight.shape[-1]
    size = (x.shape[-1] - k) // stride + 1
    out = np.zeros((len(weight), size, size))
    for i in range(size):
        for j in range(size):
            patch = x[:, i * stride : i * stride + k, j * stride : j * stride + k]
            out[:, i, j] = np.tensordot(weight, patch, 3) + bias
    return np.maximum(out, 0)


def pool(x) -> np.ndarray:  # noqa: ANN001
    """Largest of 3 x 3, every second place."""
    size = (x.shape[-1] - 3) // 2 + 1
    return np.array(
        [[x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2)) for j in range(size)] for i in range(size)]
    ).transpose(2, 0, 1)


def alexnet(picture, w) -> list[np.ndarray]:  # noqa: ANN001
    """The five convolutions of AlexNet on one picture (h w 3) in 0..255, shifted and scaled as the released code does."""
    x = picture.transpose(2, 0, 1) / 127.5 - 1
    x = np.stack([(x[c] - (-0.030, -0.088, -0.188)[c]) / (0.458, 0.448, 0.450)[c] for c in range(3)])
    one = convolve(x, w["features.0.weight"], w["features.0.bias"], 4, 2)
    two = convolve(pool(one), w["features.3.weight"], w["features.3.bias"], 1, 2)
    three = convolve(pool(two), w["features.6.weight"], w["features.6.bias"], 1, 1)
    four = convolve(three, w["features.8.weight"], w["features.8.bias"], 1, 1)
    return [one, two, three, four, convolve(four, w["features.10.weight"], w["features.10.bias"], 1, 1)]


def distance(a, b, weights) -> float:  # noqa: ANN001
    """Sum over layers of the mean over places of the weighted squared difference of unit channel vectors."""
    total = 0.0
    for x, y, w in zip(a, b, weights, strict=True):
        _, height, width = x.shape
        layer = 0.0
        for i in range(height):
            for j in range(width):
                p, q = x[:, i, j], y[:, i, j]
                p = p / np.sqrt((p**2).sum()) if p.any() else p
                q = q / np.sqrt((q**2).sum()) if q.any() else q
                layer += sum(w[c] * (p[c] - q[c]) ** 2 for c in range(len(p)))
        total += layer / (height * width)
    return total
