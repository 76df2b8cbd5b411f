"""One encoded image of any common kind -> one image as a dataset stores it.

What a viewer would show: EXIF orientation applied, the first frame of an animation,
alpha laid over a background, 16 bits scaled to 8, RGB or greyscale. Where nothing of
that changes the picture, and it already has the wanted size and format, its original
bytes are kept.
"""

import dataclasses
import hashlib
import io
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageColor, ImageOps

# Formats of photographs. Pillow knows more, among them EPS, which starts a program.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_STORED = ("JPEG", "PNG", "WEBP")
_MAX_PIXELS = 2**26  # 64 million: 200 MB in RGB; a small file can unpack to much more
_MODES = {1: "L", 3: "RGB"}
# Bytes a channel value takes, about, to plan files before anything is encoded.
_BYTES_PER_VALUE = {"auto": 0.35, "jpeg": 0.35, "png": 0.8, "webp": 0.25}


class UnusableImageError(Exception):
    """Why a file cannot be in a dataset, for the list of skipped files."""


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """How images are normalised and stored. image_size 0: as they come."""

    channels: int = 3
    image_size: int = 0
    resize: Literal["center_crop", "squash"] = "center_crop"
    background: str = "white"
    format: Literal["auto", "jpeg", "png", "webp"] = "auto"
    quality: int = 95

    def estimated_bytes(self, source_bytes: int) -> int:
        """Stored size of one image, roughly."""
        if not self.image_size:
            return source_bytes
        return int(self.image_size**2 * self.channels * _BYTES_PER_VALUE[self.format])


@dataclasses.dataclass(frozen=True)
class NormalisedImage:
    """`data`: encoded bytes of `height` x `width`; `digest`: of the pixels before encoding."""

    data: bytes
    height: int
    width: int
    digest: str


def normalise(data: bytes, options: ImageOptions) -> NormalisedImage:
    """Raises UnusableImageError with the reason."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise UnusableImageError(
                    f"{image.width}x{image.height} pixels, more than {_MAX_PIXELS}"
                )
            return _stored(data, image, options)
    except UnusableImageError:
        raise
    except Image.UnidentifiedImageError:
        raise UnusableImageError("not an image of a known format") from None
    except Exception as error:  # decoders of damaged files raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnusableImageError(f"cannot be decoded: {reason}") from None


def _stored(data: bytes, image: Image.Image, options: ImageOptions) -> NormalisedImage:
    kept = image.format in _STORED and options.format in ("auto", image.format.lower())
    kept &= getattr(image, "n_frames", 1) == 1
    size = options.image_size
    if size:
        # JPEG decoders can halve on the way; twice the size leaves the filter its work.
        image.draft(image.mode, (2 * size, 2 * size))
    source_mode, source_size = image.mode, image.size
    kept &= not image.has_transparency_data
    kept &= image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    ImageOps.exif_transpose(image, in_place=True)
    pixels = _flat(image, options)
    kept &= source_mode in ("L", pixels.mode)
    if size:
        pixels = _resized(pixels, size, options.resize)
        kept &= pixels.size == source_size
    digest = hashlib.sha256(pixels.tobytes())
    digest.update(repr(pixels.size).encode())
    stored = data if kept else _encode(pixels, options)
    return NormalisedImage(stored, pixels.height, pixels.width, digest.hexdigest()[:32])


def _flat(image: Image.Image, options: ImageOptions) -> Image.Image:
    """8-bit RGB or greyscale without alpha."""
    if image.mode == "F":
        raise UnusableImageError("floating-point pixels have no stated range")
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        colour = ImageColor.getrgb(options.background)[:3]
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*colour, 255)), image)
    mode = _MODES[options.channels]
    return image if image.mode == mode else image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.size and not 0 <= values.min() <= values.max() <= 65535:
        raise UnusableImageError("32-bit pixels have no stated range")
    scaled = (values.astype(np.uint32) * 255 + 32767) // 65535
    return Image.fromarray(scaled.astype(np.uint8))


def _resized(image: Image.Image, size: int, how: str) -> Image.Image:
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = ((image.width - side) / 2, (image.height - side) / 2)
    crop = (left, top, left + side, top + side)
    box = crop if how == "center_crop" else None
    return image.resize((size, size), Image.Resampling.LANCZOS, box=box)


def _encode(image: Image.Image, options: ImageOptions) -> bytes:
    buffer = io.BytesIO()
    if options.format == "png":
        image.save(buffer, "PNG")
    elif options.format == "webp":
        image.save(buffer, "WEBP", quality=options.quality)
    else:  # full colour resolution: these are what a generative model learns to draw
        image.save(buffer, "JPEG", quality=options.quality, subsampling=0)
    return buffer.getvalue()
