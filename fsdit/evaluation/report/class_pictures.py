"""Pictures of one episode of a class, and strips of images as data URIs for the page."""

import base64
import dataclasses
import io
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

_STRIP_COLUMNS = 5
# Pixels a side: images up to the first size are embedded without loss, larger ones are
# compressed and reduced to the second size.
_LOSSLESS_SIZE, _LARGEST_SIZE = 64, 128
_REDUCED_WIDTH = 68  # pixels on the page for each image that is not shown to the pixel


@dataclasses.dataclass(frozen=True, eq=False)
class ClassPictures:
    """One episode of the class `name`, from the table `table`.

    real: other images of the class. nearest_training: for each sample the training image
    nearest to it. Both are empty where there are none.
    """

    table: str
    name: str
    supports: UInt8[np.ndarray, "K H W C"]
    samples: UInt8[np.ndarray, "R H W C"]
    real: UInt8[np.ndarray, "S H W C"]
    nearest_training: UInt8[np.ndarray, "N H W C"]


@dataclasses.dataclass(frozen=True)
class Strip:
    """Images side by side as one data URI, `columns` of them in each line."""

    src: str
    columns: int


def evenly_spaced(pictures: Sequence[ClassPictures], table: str, most: int) -> list[ClassPictures]:
    """Up to `most` classes of a table, evenly spaced among all, whatever their scores are."""
    # One episode of each class.
    classes = list({each.name: each for each in pictures if each.table == table}.values())
    places = np.linspace(0, len(classes) - 1, min(most, len(classes)))
    return [classes[i] for i in places.round().astype(int)]


def strip(images: UInt8[np.ndarray, "N H W C"], most_columns: int = _STRIP_COLUMNS) -> Strip | None:
    """The images in lines of five, with transparent gaps between them; None for no images.

    Small images are stored without loss, larger ones with a loss that is hardly visible.
    """
    count, height, width, _ = images.shape
    if not count:
        return None
    gap, columns = max(1, height // 24), min(count, most_columns)
    lines = math.ceil(count / columns)
    sheet = Image.new(
        "RGBA", (columns * (width + gap) - gap, lines * (height + gap) - gap), (0, 0, 0, 0)
    )
    for i, image in enumerate(images):
        place = ((i % columns) * (width + gap), (i // columns) * (height + gap))
        sheet.paste(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image), place)
    file, kind = io.BytesIO(), "png"
    if max(height, width) <= _LOSSLESS_SIZE:
        (sheet.convert("LA") if images.shape[-1] == 1 else sheet).save(file, "PNG", optimize=True)
    else:
        kind, scale = "webp", min(1.0, _LARGEST_SIZE / max(height, width))
        size = (round(sheet.width * scale), round(sheet.height * scale))
        sheet.resize(size, Image.Resampling.LANCZOS).save(file, "WEBP", quality=80)
    return Strip(data_uri(f"image/{kind}", file.getvalue()), columns)


def data_uri(kind: str, content: bytes) -> str:
    """The content as an address that a page can embed. kind: its MIME type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def pixelated(pictures: Sequence[ClassPictures]) -> bool:
    """Whether all images are so small that a page should enlarge them without smoothing."""
    return all(max(each.samples.shape[1:3]) <= _LOSSLESS_SIZE for each in pictures)


def image_width(pictures: Sequence[ClassPictures]) -> int:
    """Width of an image on the page, in pixels; small images are enlarged by an integer."""
    if not pictures or not pixelated(pictures):
        return _REDUCED_WIDTH
    width = pictures[0].samples.shape[2]
    return width * max(1, 48 // width)
