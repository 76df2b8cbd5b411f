"""Opening one encoded image of any common format; nothing else in the project opens images.

The conversion of a dataset, its readers, and the supports that a user names all go through
here, so all refuse the same files: those of a format that starts a program, and those that would
take too much memory.
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
_MAX_MEMORY = 2**29  # bytes that decoding and converting one image may take
# Bytes for each pixel that a decoded image takes, and the same again as RGB; greyscale takes less.
_DECODED_BYTES = 4
# Bytes for each pixel and channel that a decoder takes beside that, as measured; others: none.
_DECODER_BYTES = {"WEBP": 4, "AVIF": 3, "JPEG2000": 6}
_PROGRESSIVE_BYTES = 2  # the same for a progressive JPEG
# PNG's raw mode -> what a decoder multiplies grey values by to fill 8 bits.
_GREY_FACTORS = {"L;2": 85, "L;4": 17}


class UnusableImageError(Exception):
    """A file that cannot be used; the message is the reason, to follow the file's name."""


def read_file(path: Path) -> bytes:
    """Reads a regular file of moderate size.

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
    """Opens an encoded image without decoding it.

    Any error inside the block is raised as UnusableImageError.
    """
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
    except Exception as error:  # for damaged files, decoders raise errors of nearly any type
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
    """Finds the ICC profile of a JPEG 2000 file (ISO 15444-1, annex I), which Pillow skips."""
    header = next((content for kind, content in _boxes(data) if kind == b"jp2h"), b"")
    for kind, content in _boxes(header):
        if kind == b"colr" and content[:1] in (
            b"\2",
            b"\3",
        ):  # it holds a profile, not the number of a colour space
            return content[3:]
    return None


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields (kind, content) of each box; a box without a length reaches to the end."""
    start = 0
    while len(head := data[start : start + 8]) == 8:
        length = int.from_bytes(head[:4], "big")
        end = start + length if length >= 8 else len(data)
        yield head[4:], data[start + 8 : end]
        start = end


def _correct_transparent_colour(image: Image.Image) -> None:
    """Scales a PNG's transparent colour to 8 bits; Pillow does so with the pixels only."""
    colour = image.info.get("transparency")
    if image.format != "PNG" or colour is None or not image.tile:
        return
    layout = image.tile[0].args
    if factor := _GREY_FACTORS.get(layout):
        image.info["transparency"] = min(colour * factor, 255)
    elif layout == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in colour)
