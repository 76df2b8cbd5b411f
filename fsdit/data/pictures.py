"""Grids of episodes as pictures for people."""

import io
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fsdit.data.layout import publish, write_json


def episode_grid(
    supports: UInt8[np.ndarray, "B K H W C"], columns: list[UInt8[np.ndarray, "B H W C"]]
) -> UInt8[np.ndarray, "Y X C"]:
    """Makes a grid with one row for each episode: its supports, a bar, then each column."""

    def framed(images: np.ndarray) -> np.ndarray:
        return np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=200)

    left = [framed(supports[:, k]) for k in range(supports.shape[1])]
    height = left[0].shape[1]
    bar = np.full((len(supports), height, 3, supports.shape[-1]), 90, np.uint8)
    rows = np.concatenate([*left, bar, *map(framed, columns)], axis=2)
    return rows.reshape(-1, *rows.shape[2:])


def sample_grid(
    supports: UInt8[np.ndarray, "K H W C"], samples: UInt8[np.ndarray, "N H W C"]
) -> UInt8[np.ndarray, "Y X C"]:
    """Makes a grid of the supports, a bar and the samples, both in the same number of rows."""
    longest = max(len(supports), len(samples))
    columns = max(8, math.ceil(longest**0.5))
    rows = math.ceil(longest / columns)
    left, right = _wrapped(supports, rows), _wrapped(samples, rows)
    bar = np.full((len(left), 3, left.shape[-1]), 90, np.uint8)
    return np.concatenate([left, bar, right], axis=1)


def grid_of_sets(
    sets: Sequence[tuple[UInt8[np.ndarray, "K H W C"], UInt8[np.ndarray, "N H W C"]]],
) -> UInt8[np.ndarray, "Y X C"]:
    """Makes a grid of sets (supports, samples) of the same sizes, with a bar between two sets."""
    first, *others = [sample_grid(*each) for each in sets]
    bar = np.full((3, *first.shape[1:]), 90, np.uint8)
    return np.concatenate([first, *(part for other in others for part in (bar, other))])


def grid_between(
    first: UInt8[np.ndarray, "K H W C"],
    second: UInt8[np.ndarray, "J H W C"],
    samples: UInt8[np.ndarray, "S N H W C"],
) -> UInt8[np.ndarray, "Y X C"]:
    """Makes a grid of the first supports, a bar, N rows of S samples, a bar, the second ones."""
    places, rows = samples.shape[:2]
    by_row = samples.swapaxes(0, 1).reshape(rows * places, *samples.shape[2:])
    left, middle, right = (_wrapped(images, rows) for images in (first, by_row, second))
    bar = np.full((len(left), 3, left.shape[-1]), 90, np.uint8)
    return np.concatenate([left, bar, middle, bar, right], axis=1)


def _wrapped(images: np.ndarray, rows: int) -> np.ndarray:
    framed = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=200)
    _, height, width, channels = framed.shape
    columns = math.ceil(len(framed) / rows)
    cells = np.full((rows * columns, height, width, channels), 200, np.uint8)
    cells[: len(framed)] = framed
    cells = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return cells.reshape(rows * height, columns * width, channels)


def zoomed_png(grid: UInt8[np.ndarray, "Y X C"], image_size: int) -> bytes:
    """The PNG of a grid, enlarged where the images in it are small."""
    return png(grid, zoom=max(1, 96 // image_size))


def write_samples(
    output: Path,
    grid: UInt8[np.ndarray, "Y X C"],
    samples: UInt8[np.ndarray, "N H W C"],
    facts: Mapping[str, Any],
    *,
    singles: bool,
) -> None:
    """Writes the grid of all samples to `output`, and `facts` as JSON beside it.

    singles: whether to write each sample too, by its number, into a new folder with the name
    of `output` without its suffix. The JSON file is written last.
    """
    _write(output, zoomed_png(grid, samples.shape[1]))
    files: dict[str, np.ndarray] = {}
    if singles:
        files = {f"{i:03d}.png": image for i, image in enumerate(samples)}
        save_folder(output.with_suffix(""), files)
    named = {"grid": output.name, "singles": [f"{output.stem}/{name}" for name in files]}
    write_json(output.with_suffix(".json"), {**facts, **named})


def save_picture(path: Path, pixels: UInt8[np.ndarray, "Y X C"], zoom: int = 2) -> None:
    """Writes a PNG, enlarged without smoothing; the file is complete or absent."""
    _write(path, png(pixels, zoom))


def png(pixels: UInt8[np.ndarray, "Y X C"], zoom: int = 1) -> bytes:
    """The PNG of a picture, enlarged without smoothing."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    size = (image.width * zoom, image.height * zoom)
    file = io.BytesIO()
    image.resize(size, Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def save_folder(folder: Path, pictures: Mapping[str, UInt8[np.ndarray, "H W C"]]) -> None:
    """Writes PNG files by name into a new folder, which is complete or absent."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        for name, pixels in pictures.items():
            save_picture(partial / name, pixels, zoom=1)
        publish(partial, folder)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
