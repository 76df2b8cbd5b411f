"""Example supports beside weights in the package, and samples by which a test knows the weights."""

import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image

from fsdit.data.layout import read_dataset_info
from fsdit.data.readers import split_images
from fsdit.errors import DataError
from fsdit.sampling import exported

NUM_SAMPLES = 4
_SPLIT = "test"
_SHOTS = 5
_LEFT_OUT = ("letter", "capital", "small")  # words of a character's name


def slug(character: str) -> str:
    """Name of a character's folder: "greek-psi" for "Ψ"."""
    words = unicodedata.name(character).lower().split()
    return "-".join(word for word in words if word not in _LEFT_OUT)


def write_examples(folder: Path, dataset_dir: str, characters: str) -> None:
    """Writes a set of supports of each chosen character. Raises DataError for a seen one."""
    info = read_dataset_info(dataset_dir)
    split, images = info.split(_SPLIT), split_images(dataset_dir, info, _SPLIT)
    for character in characters:
        if character not in split.classes:
            raise DataError(f"--characters: {character} is not in the split {_SPLIT!r}")
        held = split.class_range(split.classes.index(character))
        chosen = np.linspace(held.start, held.stop - 1, _SHOTS).round().astype(int)
        place = folder / slug(character)
        place.mkdir(parents=True)
        for number, index in enumerate(chosen, 1):
            Image.fromarray(images[int(index)][..., 0]).save(place / f"{number}.png", optimize=True)


def example_samples(folder: Path) -> np.ndarray:
    """Samples (N, H, W, C) by the export in a folder, from its first example."""
    generator = exported.load(folder)
    first = min((folder / "examples").iterdir())
    return generator.generate(generator.read_supports([first]), NUM_SAMPLES, seed=0)
