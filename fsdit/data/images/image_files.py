"""Opening one encoded image of any common kind: the only place where it is done.

The conversion of a dataset, its readers, and the supports that a user names come here, so
that all refuse the same files: those of a format that starts a program, and those that
would take too much memory.
"""

import io
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

# Formats of photographs, those of datasets first. Pillow knows more, among them EPS, which
# starts a program.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "JPEG2000", "PPM", "TIFF")
MAX_FILE_BYTES = 2**28  # no photograph is larger, and a file has to fit in memory
_MAX_PIXELS = 2**26  # 64 million; a small file can unpack to much more
_MAX_MEMORY = 2**29  # of an image that is decoded and converted, in bytes
# Bytes a pixel that an image takes once it is decoded, and again as RGB. Of greyscale, fewer.
_DECODED_BYTES = 4
# Bytes a pixel and channel that a decoder takes besides, as measured; of other formats, none.
_DECODER_BYTES = {"WEBP": 4, "AVIF": 3, "JPEG2000": 6}
_PROGRESSIVE_BYTES = 2
# Levels of grey that a decoder multiplies by to fill 8 bits, by raw mode of a PNG.
_GREY_FACTORS = {"L;2": 85, "L;4": 17}


class UnusableImageError(Exception):
    """Why a file cannot be used, in words that follow its name."""


def read_file(path: Path) -> bytes:
    """The content of a regular file of moderate size.

    Raises UnusableImageError for a FIFO, a device (whose content may have no end) or a huge
    file, and OSError.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UnusableImageError("not a regular file")
    if status.st_size > MAX_FILE_BYTES:
        raise UnusableImageError(f"a file of {status.st_size} bytes, more than {MAX_FILE_BYTES}")
    with path.open("rb") as file:
        return file.read(MAX_FILE_BYTES)


def begins_as_image(head: bytes) -> bool:
    """Whether the first bytes of a file can be those of an image that `opened` takes."""
    Image.init()
    return any(Image.OPEN[name][1](head) for name in _FORMATS if name in Image.OPEN)


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """An encoded image, not yet decoded. What its use raises is an UnusableImageError."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_size(image)
            _correct_transparent_colour(image)
            if image.format == "JPEG2000" and (profile := _jpeg2000_profile(data)):
                image.info["icc_profile"] = profile
            yield image
    except UnusableImageError:
        raise
    except Image.UnidentifiedImageError:
        raise UnusableImageError("not an image of a known format") from None
    except Exception as error:  # decoders of damaged files raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnusableImageError(f"cannot be decoded: {reason}") from None


def _check_size(image: Image.Image) -> None:
    pixels, size = image.width * image.height, f"{image.width}x{image.height} pixels"
    if pixels > _MAX_PIXELS:
        raise UnusableImageError(f"{size}, more than {_MAX_PIXELS} in all")
    decoder = _DECODER_BYTES.get(image.format, 0)
    if image.info.get("progressive"):
        decoder = _PROGRESSIVE_BYTES
    needed = _DECODED_BYTES + max(_DECODED_BYTES, decoder * len(image.getbands()))
    if pixels * needed > _MAX_MEMORY:
        raise UnusableImageError(
            f"{size} of {image.format} take about {pixels * needed >> 20} MiB to decode, more "
            f"than {_MAX_MEMORY >> 20}"
        )


def _jpeg2000_profile(data: bytes) -> bytes | None:
    """The ICC profile of a JPEG 2000 file, which Pillow does not read (ISO 15444-1, annex I)."""
    header = next((content for kind, content in _boxes(data) if kind == b"jp2h"), b"")
    for kind, content in _boxes(header):
        if kind == b"colr" and content[:1] in (b"\2", b"\3"):  # a profile, no number of a space
            return content[3:]
    return None


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, content) one after the other; one without a length of its own reaches to the end."""
    start = 0
    while len(head := data[start : start + 8]) == 8:
        length = int.from_bytes(head[:4], "big")
        end = start + length if length >= 8 else len(data)
        yield head[4:], data[start + 8 : end]
        start = end


def _correct_transparent_colour(image: Image.Image) -> None:
    """A PNG's transparent colour in 8 bits, as Pillow makes its pixels but not this colour."""
    colour = image.info.get("transparency")
    if image.format != "PNG" or colour is None or not image.tile:
        return
    layout = image.tile[0].args
    if factor := _GREY_FACTORS.get(layout):
        image.info["transparency"] = min(colour * factor, 255)
    elif layout == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in colour)
