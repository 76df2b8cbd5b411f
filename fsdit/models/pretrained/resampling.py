"""Resampling along one axis as a matrix (out, in): the filters of Pillow and of PyTorch."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(0.0, 1.0 - np.abs(x))


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Cubic convolution kernel (Keys, 1981), with x for its absolute value:

    (a + 2) x^3 - (a + 3) x^2 + 1 for x < 1; a (x^3 - 5 x^2 + 8 x - 4) for x < 2; else 0.
    """
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


# Pillow's filters (src/libImaging/Resample.c), and the distance at which they become zero.
_FILTERS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "bilinear": (_triangle, 1.0),
    "bicubic": (lambda x: _cubic(x, -0.5), 2.0),
}


def antialiased(size: int, new_size: int, name: str) -> Float[np.ndarray, "out in"]:
    """The matrix of Pillow's resize, and of PyTorch's interpolate(antialias=True).

    Neither is rounded here. The filter widens with the reduction. Each row is divided by its
    sum, so that weights outside the image are spread over those inside.
    """
    kernel, reach = _FILTERS[name]
    scale = size / new_size
    stretch = max(scale, 1.0)
    matrix = np.zeros((new_size, size))
    for row in range(new_size):
        centre = (row + 0.5) * scale
        low = max(int(centre - reach * stretch + 0.5), 0)
        high = min(int(centre + reach * stretch + 0.5), size)
        weights = kernel((np.arange(low, high) - centre + 0.5) * (1.0 / stretch))
        matrix[row, low:high] = weights / weights.sum()
    return matrix


def pointwise_bicubic(size: int, new_size: int) -> Float[np.ndarray, "out in"]:
    """The matrix of PyTorch's interpolate(mode="bicubic", align_corners=False).

    Pixels at the edge stand for those outside.
    """
    matrix = np.zeros((new_size, size))
    for row in range(new_size):
        centre = (row + 0.5) * size / new_size - 0.5
        taps = np.floor(centre) + np.arange(-1, 3)
        places = np.clip(taps, 0, size - 1).astype(int)
        np.add.at(matrix[row], places, _cubic(taps - centre, -0.75))
    return matrix
