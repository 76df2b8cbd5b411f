"""One encoded image of any common kind -> one image as a dataset stores it.

An image that normalisation does not change, and that has the wanted size and format, keeps
its original bytes.
"""

import dataclasses
import hashlib
import io
from typing import Literal

from PIL import ExifTags, Image, ImageOps

from fsdit.data.images import colours, photos
from fsdit.data.images.image_files import opened

_STORED = ("JPEG", "PNG", "WEBP")
# About how many bytes one value of one channel takes, to cut shards before anything is encoded.
_BYTES_PER_VALUE = {"auto": 0.35, "jpeg": 0.35, "png": 0.8, "webp": 0.25}


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """How images are normalised and stored. image_size: in pixels; 0: as the images are."""

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
        """Returns about how many bytes one image takes when it is stored."""
        if not self.image_size:
            return source_bytes
        return int(self.image_size**2 * self.channels * _BYTES_PER_VALUE[self.format])


@dataclasses.dataclass(frozen=True)
class NormalisedImage:
    """One image to be stored.

    data: the encoded image of `height` x `width` pixels. digest: 32 hexadecimal digits of a
    hash of its pixels and size, before encoding.
    """

    data: bytes
    height: int
    width: int
    digest: str


def normalise(data: bytes, options: ImageOptions) -> NormalisedImage:
    """Decodes, normalises and encodes one image. Raises UnusableImageError with the reason."""
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
    pixels.info.pop("icc_profile", None)  # Pillow would write it into a PNG
    stored = data if kept else _encode(pixels, options)
    return NormalisedImage(stored, pixels.height, pixels.width, digest.hexdigest()[:32])


def _encode(image: Image.Image, options: ImageOptions) -> bytes:
    buffer = io.BytesIO()
    if options.format == "png":
        image.save(buffer, "PNG")
    elif options.format == "webp":
        image.save(buffer, "WEBP", quality=options.quality)
    else:  # colours at full resolution, because a generative model learns to make them
        image.save(buffer, "JPEG", quality=options.quality, subsampling=0)
    return buffer.getvalue()
