"""What a visitor of the page does: gathers supports, chooses settings, gets samples.

A browser can send anything, so all of it is checked here, and all sizes have limits. Errors are
those of `fsdit.errors`, which the page shows as a message.
"""

import base64
import binascii
import dataclasses
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from fsdit.config import SamplingConfig
from fsdit.data.images.image_files import UnusableImageError, opened, read_file
from fsdit.errors import ConfigError, DataError, system_text
from fsdit.sampling.generator import Generator

MAX_SUPPORTS = 5
MAX_FILE_BYTES = 10 * 2**20
MAX_PIXELS = 32_000_000  # photographs of a telephone have 12 or 24 million
MAX_SAMPLES = 32
MAX_STEPS = 100
MAX_GUIDANCE = 10.0
MAX_SEED = 2**32 - 1
BATCH_SIZE = 4  # samples that appear at once
_DRAWING = "data:image/png;base64,"

# Supports or samples, any number: what is added to them has the same letters.
Pictures = UInt8[np.ndarray, "_ H W C"]


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of the model: N samples, strength of guidance, steps of the solver, seed."""

    num_samples: int
    guidance_scale: float
    num_steps: int
    seed: int


def no_supports(generator: Generator) -> Pictures:
    """The supports of a visitor who has added none."""
    size = generator.spec.image_size
    return np.empty((0, size, size, generator.spec.channels), np.uint8)


def with_files(generator: Generator, supports: Pictures, files: Sequence[str | Path]) -> Pictures:
    """Adds picture files, prepared as the training images were.

    Raises DataError, which names a file without its folder, where one is no picture, too large,
    or all of one colour, and where there would be more than MAX_SUPPORTS.
    """
    if len(supports) + len(files) > MAX_SUPPORTS:
        raise DataError(
            f"{len(supports) + len(files)} pictures are more than {MAX_SUPPORTS}: remove some"
        )
    added = [_prepared(generator, Path(file), Path(file).name) for file in files]
    return np.concatenate([supports, *added])


def with_drawing(generator: Generator, supports: Pictures, drawing: str | None) -> Pictures:
    """Adds what was drawn on the canvas, a data URL of a PNG. Raises DataError."""
    if len(supports) >= MAX_SUPPORTS:
        raise DataError(f"there are {MAX_SUPPORTS} supports already: remove one")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "drawing.png"
        file.write_bytes(_decoded(drawing))
        return np.concatenate([supports, _prepared(generator, file, "the drawing")])


def _decoded(drawing: str | None) -> bytes:
    text = drawing or ""
    if not text.startswith(_DRAWING) or len(text) > MAX_FILE_BYTES:
        raise DataError("the drawing did not arrive: draw it again")
    try:
        return base64.b64decode(text.removeprefix(_DRAWING), validate=True)
    except binascii.Error:
        raise DataError("the drawing did not arrive: draw it again") from None


def _prepared(generator: Generator, file: Path, name: str) -> Pictures:
    """A picture as the model takes it (1, H, W, C). name: what messages call it."""
    try:
        _check_size(file)
        found = generator.read_supports([file])
    except DataError as error:
        raise DataError(str(error).replace(str(file), name)) from None
    except (UnusableImageError, OSError) as error:
        raise DataError(f"{name}: {system_text(error)}") from None
    if found.min() == found.max():
        raise DataError(f"{name} is empty: it has one colour only")
    return found


def _check_size(file: Path) -> None:
    """Raises UnusableImageError or OSError, before a pixel is decoded."""
    if file.stat().st_size > MAX_FILE_BYTES:
        raise UnusableImageError(f"more than {MAX_FILE_BYTES >> 20} MB: name a smaller file")
    with opened(read_file(file)) as image:
        if image.width * image.height > MAX_PIXELS:
            raise UnusableImageError(
                f"{image.width} x {image.height} pixels, more than {MAX_PIXELS // 10**6} million: "
                "name a smaller picture"
            )


def without_last(supports: Pictures) -> Pictures:
    return supports[:-1]


def inverted(supports: Pictures) -> Pictures:
    """Exchanges dark and light."""
    return 255 - supports


def checked(num_samples: object, guidance: object, num_steps: object, seed: object) -> Request:
    """Makes a request of what a browser sent. Raises ConfigError."""
    return Request(
        _whole("number of samples", num_samples, 1, MAX_SAMPLES),
        _finite("guidance", guidance, 0, MAX_GUIDANCE),
        _whole("steps", num_steps, 1, MAX_STEPS),
        _whole("seed", seed, 0, MAX_SEED),
    )


def _whole(name: str, value: object, low: int, high: int) -> int:
    found = _finite(name, value, low, high)
    if found != int(found):
        raise ConfigError(f"{name}: {value} is no whole number")
    return int(found)


def _finite(name: str, value: object, low: int | float, high: int | float) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:
        raise ConfigError(f"{name}: choose a number from {low:g} to {high:g}")
    return float(value)


def sampling_of(generator: Generator, request: Request) -> SamplingConfig:
    """The model's own settings of sampling with what was asked for."""
    return dataclasses.replace(
        generator.config.sampling,
        guidance_scale=request.guidance_scale,
        num_steps=request.num_steps,
    )


def sampled(generator: Generator, supports: Pictures, request: Request) -> Iterator[Pictures]:
    """Yields all samples so far after each batch of BATCH_SIZE.

    Raises ConfigError without supports.
    """
    if not len(supports):
        raise ConfigError("add one to five pictures first")
    batches = generator.stream(
        supports,
        request.num_samples,
        seed=request.seed,
        sampling=sampling_of(generator, request),
        batch_size=BATCH_SIZE,
    )
    made = supports[:0]
    for images in batches:
        made = np.concatenate([made, images])
        yield made
