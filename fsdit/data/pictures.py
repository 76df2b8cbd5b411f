"""Grids of episodes as pictures for people."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def episode_grid(
    supports: UInt8[np.ndarray, "B K H W C"], columns: list[UInt8[np.ndarray, "B H W C"]]
) -> UInt8[np.ndarray, "Y X C"]:
    """One row an episode: its supports, a bar, then each column, with thin gaps."""

    def framed(images: np.ndarray) -> np.ndarray:
        return np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=200)

    left = [framed(supports[:, k]) for k in range(supports.shape[1])]
    height = left[0].shape[1]
    bar = np.full((len(supports), height, 3, supports.shape[-1]), 90, np.uint8)
    rows = np.concatenate([*left, bar, *map(framed, columns)], axis=2)
    return rows.reshape(-1, *rows.shape[2:])


def save_picture(path: Path, pixels: UInt8[np.ndarray, "Y X C"], zoom: int = 2) -> None:
    """Writes a PNG, enlarged without smoothing; the file is whole or not there."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    size = (image.width * zoom, image.height * zoom)
    partial = path.with_name(path.name + ".partial")
    image.resize(size, Image.Resampling.NEAREST).save(partial, "PNG")
    partial.replace(path)
