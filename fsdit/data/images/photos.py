"""One image of any common kind -> what a viewer would show, in 8 bits, RGB or greyscale.

Orientation follows EXIF, an animation gives its first frame, colours of an embedded profile
become sRGB, transparency shows a background, and 16 bits are scaled to 8; then the image becomes
a square of one size. The conversion of a dataset and the supports that a user names both go
through here.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageColor, ImageOps

from fsdit.data.images import colours
from fsdit.data.images.image_files import UnusableImageError, opened, read_file
from fsdit.errors import DataError, system_text

Resize = Literal["center_crop", "squash", "pad"]
_MODES = {1: "L", 3: "RGB"}
_BAND_PIXELS = 2**20
_SIGNED = 2  # a TIFF's SampleFormat
_WHITE_IS_ZERO = 0  # a TIFF's PhotometricInterpretation


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How a picture becomes one of a dataset; supports have to be prepared in the same way.

    background: a CSS colour, behind transparent pixels and beside padded pictures. resize: how
    a picture becomes a square: its centre, all of it distorted, or all of it padded.
    """

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    background: str = "white"
    resize: Resize = "center_crop"

    def __post_init__(self):
        """Raises ValueError where `background` is no colour."""
        ImageColor.getrgb(self.background)

    def __str__(self) -> str:
        """The flags of `data_prep.convert` that prepare pictures so, for messages."""
        return f"by --resize={self.resize} --background={self.background}"


# Used where a dataset, run or export does not say how its images were made; most were made so.
DEFAULT_PREPARATION = Preparation()


def read_photo(
    path: Path,
    image_size: int,
    channels: int,
    preparation: Preparation = DEFAULT_PREPARATION,
) -> UInt8[np.ndarray, "H W C"]:
    """Reads a picture as a dataset with this preparation would hold it. Raises DataError."""
    try:
        with opened(read_file(path)) as image:
            hint_size(image, image_size)
            ImageOps.exif_transpose(image, in_place=True)
            flattened = flat(image, channels, preparation.background)
            pixels = np.asarray(resized(flattened, image_size, preparation))
    except (UnusableImageError, OSError) as error:
        raise DataError(f"{path}: {system_text(error)}") from None
    return pixels.reshape(image_size, image_size, channels)


def hint_size(image: Image.Image, size: int) -> None:
    """Lets a JPEG decoder halve the image while it stays at least twice as large as `size`."""
    image.draft(image.mode, (2 * size, 2 * size))


def flat(image: Image.Image, channels: int, background: str) -> Image.Image:
    """Converts to 8-bit RGB or greyscale, in sRGB, without alpha. Raises UnusableImageError."""
    mode, samples = _MODES[channels], _deep_samples(image)
    to_srgb = colours.to_srgb(image)
    if image.mode == mode and to_srgb is None and not image.has_transparency_data:
        return image

    def flattened(part: Image.Image) -> Image.Image:
        part = part if samples is None else _in_eight_bits(part, *samples)
        if part.has_transparency_data:
            part = part.convert("RGBA")
        part = to_srgb(part) if to_srgb else part
        if part.mode in ("LA", "RGBA"):
            colour = (*ImageColor.getrgb(background)[:3], 255)
            part = Image.alpha_composite(Image.new("RGBA", part.size, colour), part)
        elif part.mode == "LAB":  # Pillow converts it to grey by way of RGB only
            part = part.convert("RGB")
        return part.convert(mode)

    return _by_bands(image, mode, flattened)


def _by_bands(
    image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    """Applies `convert`, which works pixel by pixel, to one band of rows after another.

    The intermediate images of a conversion take several times the memory of its result.
    """
    rows = max(1, _BAND_PIXELS // image.width)
    if rows >= image.height:
        return convert(image)
    result = Image.new(mode, image.size)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        part = convert(image.crop(box))
        result.paste(part, box)
        result.info = part.info  # for example a comment, which is stored in a JPEG
    return result


def _deep_samples(image: Image.Image) -> tuple[int, bool] | None:
    """Returns (largest value, whether it is black) for more than 8 bits; None for other images.

    Raises UnusableImageError where no range is stated.
    """
    if image.mode == "F":
        raise UnusableImageError("floating-point pixels have no stated range")
    if not image.mode.startswith("I"):
        return None
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(ExifTags.Base.BitsPerSample, (16,))[0]
    if bits > 16:
        raise UnusableImageError(f"{bits}-bit pixels have no stated range")
    if _SIGNED in tags.get(ExifTags.Base.SampleFormat, ()):
        raise UnusableImageError("pixels of signed numbers have no stated range")
    inverted = tags.get(ExifTags.Base.PhotometricInterpretation) == _WHITE_IS_ZERO
    return 2**bits - 1, inverted


def _in_eight_bits(image: Image.Image, brightest: int, inverted: bool) -> Image.Image:
    """Scales greyscale to 8 bits, with alpha if the image has a transparent value."""
    values = np.asarray(image).astype(np.uint32)
    scaled = ((values * 255 + brightest // 2) // brightest).astype(np.uint8)
    result = Image.fromarray(255 - scaled if inverted else scaled)
    if (transparent := image.info.get("transparency")) is not None:
        result.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return result


def resized(image: Image.Image, size: int, preparation: Preparation) -> Image.Image:
    """Resizes to a square of `size` pixels a side, with antialiasing."""
    if image.size == (size, size):
        return image
    if preparation.resize == "pad":
        return _padded(image, size, preparation.background)
    side = min(image.size)
    left, top = ((image.width - side) / 2, (image.height - side) / 2)
    crop = (left, top, left + side, top + side)
    box = crop if preparation.resize == "center_crop" else None
    return image.resize((size, size), Image.Resampling.LANCZOS, box=box)


def _padded(image: Image.Image, size: int, background: str) -> Image.Image:
    """Puts all of the image into the middle of a square of the background's colour."""
    longer = max(image.size)
    width, height = (max(1, round(side * size / longer)) for side in image.size)
    colour = ImageColor.getcolor(background, image.mode)
    square = Image.new(image.mode, (size, size), colour)
    inner = image.resize((width, height), Image.Resampling.LANCZOS)
    square.paste(inner, ((size - width) // 2, (size - height) // 2))
    return square
