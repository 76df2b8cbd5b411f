"""One image of any common kind -> what a viewer would show, in 8 bits, RGB or greyscale.

EXIF orientation applied, the first frame of an animation, alpha laid over a background,
16 bits scaled to 8; then a square of one size. The conversion of a dataset and supports
that a user names pass through here alike.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageColor, ImageOps

from fsdit.errors import DataError

# Formats of photographs. Pillow knows more, among them EPS, which starts a program.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_MAX_PIXELS = 2**26  # 64 million: 200 MB in RGB; a small file can unpack to much more
_MODES = {1: "L", 3: "RGB"}


class UnusableImageError(Exception):
    """Why a file cannot be used, in words that follow its name."""


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """An encoded image, not yet decoded. What its use raises is an UnusableImageError."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise UnusableImageError(
                    f"{image.width}x{image.height} pixels, more than {_MAX_PIXELS}"
                )
            yield image
    except UnusableImageError:
        raise
    except Image.UnidentifiedImageError:
        raise UnusableImageError("not an image of a known format") from None
    except Exception as error:  # decoders of damaged files raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnusableImageError(f"cannot be decoded: {reason}") from None


def read_photo(path: Path, image_size: int, channels: int) -> UInt8[np.ndarray, "H W C"]:
    """A file as a dataset of this size would hold it by default. Raises DataError."""
    try:
        with opened(path.read_bytes()) as image:
            hint_size(image, image_size)
            ImageOps.exif_transpose(image, in_place=True)
            pixels = np.asarray(resized(flat(image, channels, "white"), image_size, "center_crop"))
    except (UnusableImageError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: {reason}") from None
    return pixels.reshape(image_size, image_size, channels)


def hint_size(image: Image.Image, size: int) -> None:
    """JPEG decoders can halve on the way; twice the size leaves the filter its work."""
    image.draft(image.mode, (2 * size, 2 * size))


def flat(image: Image.Image, channels: int, background: str) -> Image.Image:
    """8-bit RGB or greyscale without alpha. Raises UnusableImageError."""
    if image.mode == "F":
        raise UnusableImageError("floating-point pixels have no stated range")
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        colour = ImageColor.getrgb(background)[:3]
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*colour, 255)), image)
    mode = _MODES[channels]
    return image if image.mode == mode else image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.size and not 0 <= values.min() <= values.max() <= 65535:
        raise UnusableImageError("32-bit pixels have no stated range")
    scaled = (values.astype(np.uint32) * 255 + 32767) // 65535
    return Image.fromarray(scaled.astype(np.uint8))


def resized(image: Image.Image, size: int, how: Literal["center_crop", "squash"]) -> Image.Image:
    """A square of `size`, antialiased."""
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = ((image.width - side) / 2, (image.height - side) / 2)
    crop = (left, top, left + side, top + side)
    box = crop if how == "center_crop" else None
    return image.resize((size, size), Image.Resampling.LANCZOS, box=box)
