"""Synthetic image collections for the tests, encoded by Pillow."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from fsdit.data.layout import read_dataset_info
from fsdit.data.readers import ImageReader, RecordReader
from fsdit.data.records import ImageRecord, decode_image


def photo(seed: int, width: int = 40, height: int = 40) -> Image.Image:
    """A smooth random RGB picture, a different one for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def class_folders(
    root: Path, classes: int = 6, images: int = 8, size: tuple[int, int] = (40, 40)
) -> Path:
    """Writes root/class00/000.jpg and so on; all pictures differ."""
    for c in range(classes):
        folder = root / f"class{c:02d}"
        folder.mkdir(parents=True)
        for i in range(images):
            (folder / f"{i:03d}.jpg").write_bytes(encoded(photo(1000 * c + i, *size)))
    return root


def files(directory: Path) -> dict[str, bytes]:
    """Relative path -> content of all files."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def stored(directory: Path, split: str) -> list[ImageRecord]:
    """The image records of a split, in order, each checked to decode."""
    info = read_dataset_info(directory)
    images = ImageReader(directory / split, info.image_size, info.channels)
    for i in range(len(images)):
        assert images[i].shape == (info.image_size, info.image_size, info.channels)
    raw = RecordReader(directory / split, "images")
    return [decode_image(raw[i]) for i in range(len(raw))]


def keys_by_class(directory: Path, split: str) -> dict[str, list[str]]:
    """Class -> keys of its images, from the records; checks that they agree with dataset.json."""
    info = read_dataset_info(directory).splits[split]
    found: dict[str, list[str]] = {name: [] for name in info.classes}
    order = []
    for record in stored(directory, split):
        found[info.classes[record.class_id]].append(record.key)
        order.append(record.class_id)
    assert order == sorted(order)
    assert tuple(map(len, found.values())) == info.images_per_class
    return found
