"""One encoded image of any common kind -> one image as a dataset stores it.

Where nothing of its normalisation changes the picture, and it already has the wanted size
and format, its original bytes are kept.
"""

import dataclasses
import hashlib
import io
from typing import Literal

from PIL import ExifTags, Image, ImageOps

from fsdit.data.images import colours, photos
from fsdit.data.images.image_files import opened

_STORED = ("JPEG", "PNG", "WEBP")
# Bytes a channel value takes, about, to plan files before anything is encoded.
_BYTES_PER_VALUE = {"auto": 0.35, "jpeg": 0.35, "png": 0.8, "webp": 0.25}


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """How images are normalised and stored. image_size 0: as they come."""

    channels: int = 3
    image_size: int = 0
    resize: photos.Resize = "center_crop"
    background: str = "white"
    format: Literal["auto", "jpeg", "png", "webp"] = "auto"
    quality: int = 95

    @property
    def preparation(self) -> photos.Preparation:
        return photos.Preparation(self.background, self.resize)

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
    with opened(data) as image:
        return _stored(data, image, options)


def _stored(data: bytes, image: Image.Image, options: ImageOptions) -> NormalisedImage:
    kept = image.format in _STORED and options.format in ("auto", image.format.lower())
    kept &= getattr(image, "n_frames", 1) == 1
    size = options.image_size
    if size:
        photos.hint_size(image, size)
    source_mode, source_size = image.mode, image.size
    kept &= not image.has_transparency_data and colours.to_srgb(image) is None
    kept &= image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    ImageOps.exif_transpose(image, in_place=True)
    pixels = photos.flat(image, options.channels, options.background)
    kept &= source_mode in ("L", pixels.mode)
    if size:
        pixels = photos.resized(pixels, size, options.preparation)
        kept &= pixels.size == source_size
    digest = hashlib.sha256(pixels.tobytes())
    digest.update(repr(pixels.size).encode())
    pixels.info.pop("icc_profile", None)  # or a PNG would be stored with it
    stored = data if kept else _encode(pixels, options)
    return NormalisedImage(stored, pixels.height, pixels.width, digest.hexdigest()[:32])


def _encode(image: Image.Image, options: ImageOptions) -> bytes:
    buffer = io.BytesIO()
    if options.format == "png":
        image.save(buffer, "PNG")
    elif options.format == "webp":
        image.save(buffer, "WEBP", quality=options.quality)
    else:  # full colour resolution: these are what a generative model learns to draw
        image.save(buffer, "JPEG", quality=options.quality, subsampling=0)
    return buffer.getvalue()
