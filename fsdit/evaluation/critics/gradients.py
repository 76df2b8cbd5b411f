"""Fixed features of small images: which edges are where, and which colours.

Histograms of oriented gradients (Dalal and Triggs, CVPR 2005) on a grid of cells, 6 x 6 for the
critic, with signed directions, and the mean colours of the cells. A pixel counts in the nearest
cells and directions, with weights that fall linearly with the distance.
"""

from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

GRID = 6  # cells a side, for images of any size
DIRECTIONS = 12  # bins of an angle
_COLOUR_WEIGHT = 2.0  # of mean colours between 0 and 1, beside gradients whose squares average 1
_FAINT = 1e-3  # keeps an image of one colour at zero


def gradient_features(images: UInt8[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N F"]:
    """The features of images, F = 6 * 6 * (12 + C if C is 3, else 12), in float32.

    Directions of all cells are scaled by their root mean square, so that contrast does not
    count, and their square root is taken. In a pixel of several channels, the steepest counts.
    """
    found = _features(images, (GRID, GRID), np)
    return np.concatenate([x.reshape(len(images), -1) for x in found], 1, dtype=np.float32)


def gradient_cells(images: UInt8[Array, "N H W C"], grid: tuple[int, int]) -> Float[Array, "N M F"]:
    """The same features on any grid, M cells row by row with F = `cell_width(C)`, on the device."""
    found = jnp.concatenate(_features(images, grid, jnp), -1)
    return found.reshape(len(images), grid[0] * grid[1], -1)


def cell_width(channels: int) -> int:
    """The number of features of a cell."""
    return DIRECTIONS + (channels if channels == 3 else 0)


def _features(images: Any, grid: tuple[int, int], np: ModuleType) -> list[Any]:
    """Directions, and colours if there are any, of each cell: arrays (N, rows, columns, ...).

    np: NumPy, or JAX's, whose arrays the images are.
    """
    pixels = images.astype(np.float32) / 255
    rows, columns = (
        _cells(size, count) for size, count in zip(images.shape[1:3], grid, strict=True)
    )
    bins = np.einsum("iy,nyxb,jx->nijb", rows, _directions(pixels, np), columns, optimize=True)
    bins = bins / (np.sqrt(np.square(bins).mean((1, 2, 3), keepdims=True)) + _FAINT)
    found = [np.sqrt(bins)]
    if images.shape[-1] == 3:
        means = np.einsum("iy,nyxc,jx->nijc", rows, pixels, columns, optimize=True)
        found.append(_COLOUR_WEIGHT * means)
    return found


def _directions(pixels: Any, np: ModuleType) -> Any:
    """The length of each pixel's gradient, divided between the two nearest of B directions.

    pixels (N, H, W, C) -> (N, H, W, B).
    """
    padded = np.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    down = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    right = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    steepest = np.hypot(right, down).argmax(-1)[..., None]
    right, down = (np.take_along_axis(x, steepest, -1) for x in (right, down))
    angle = np.arctan2(down, right) * np.float32(DIRECTIONS / (2 * np.pi))
    half = DIRECTIONS / 2
    apart = np.abs((angle - np.arange(DIRECTIONS, dtype=np.float32) + half) % DIRECTIONS - half)
    return np.maximum(0, 1 - apart) * np.hypot(right, down)


def _cells(size: int, count: int) -> Float[np.ndarray, "G size"]:
    """Weights of the pixels of a row in the G cells along it; those of a cell sum to one."""
    width = size / count
    centres = (np.arange(count) + 0.5) * width - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(size) - centres[:, None]) / max(width, 1))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
