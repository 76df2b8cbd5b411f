"""Handwriting in the layout of Omniglot's two zips: black strokes on white, one bit a pixel."""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

DRAWERS = 4
BACKGROUND = {"Greek": 3, "Korean": 2, "Latin": 3}  # alphabet -> characters
EVALUATION = {"Gurmukhi": 2, "Tibetan": 2}


def stroke(seed: int) -> bytes:
    points = np.random.default_rng(seed).integers(10, 95, size=(5, 2))
    image = Image.new("1", (105, 105), 1)
    ImageDraw.Draw(image).line([tuple(map(int, p)) for p in points], fill=0, width=3)
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def write_zip(path: Path, alphabets: dict[str, int], first: int) -> Path:
    """first: number of the first character, in the names of the drawings."""
    number = first
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{path.stem}/", b"")
        for alphabet, characters in alphabets.items():
            for character in range(1, characters + 1):
                for drawer in range(1, DRAWERS + 1):
                    archive.writestr(
                        f"{path.stem}/{alphabet}/character{character:02d}/"
                        f"{number:04d}_{drawer:02d}.png",
                        stroke(100 * number + drawer),
                    )
                number += 1
    return path


def write_zips(folder: Path) -> tuple[Path, Path]:
    """Writes (background, evaluation)."""
    return (
        write_zip(folder / "images_background.zip", BACKGROUND, 1),
        write_zip(folder / "images_evaluation.zip", EVALUATION, 965),
    )
