"""Images as a published image processor prepares them, on the device.

Resizing equals Pillow's to the bit. Pillow resizes uint8 images along x, rounds to uint8, then
along y, with weights that are multiples of 2^-22: integers w / 2^22. Here each w is split into
bytes, and each byte is multiplied with the pixels p in a matrix product of its own:

    w = 2^16 a + 2^8 b + c
    sum w p = 2^16 sum a p + 2^8 sum b p + sum c p

Each of the three sums is an integer below 2^24, which float32 holds, of factors that bfloat16
holds too. So they are exact on any backend and at any matmul precision.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, UInt8

from fsdit.config.bounds import ImageSize, real
from fsdit.config.problems import shown
from fsdit.errors import DataError
from fsdit.models.pretrained.resampling import antialiased
from fsdit.models.pretrained.stored.files import parse_fields, read_json

_FIXED_POINT_BITS = 22  # Pillow's PRECISION_BITS
_FILTERS = {2: "bilinear", 3: "bicubic"}  # values of PIL.Image.Resampling


@dataclass(frozen=True)
class Rectangle:
    height: ImageSize
    width: ImageSize


@dataclass(frozen=True)
class ShortestEdge:
    shortest_edge: ImageSize


_Mean = Annotated[float, real(-1e4, 1e4)]
_Deviation = Annotated[float, real(1e-6, 1e4)]
_Channels = tuple[float, float, float]


@dataclass(frozen=True)
class _Fields:
    """The fields of preprocessor_config.json that matter here, with the values that are done."""

    image_processor_type: str
    size: Rectangle | ShortestEdge
    image_mean: tuple[_Mean, _Mean, _Mean]
    image_std: tuple[_Deviation, _Deviation, _Deviation]
    resample: Literal[2, 3]
    crop_size: Rectangle | None = None
    rescale_factor: Annotated[float, real(1e-6, 1e3)] = 1 / 255
    do_resize: Literal[True] = True
    do_rescale: Literal[True] = True
    do_normalize: Literal[True] = True
    do_center_crop: bool | None = None
    do_pad: Literal[False] | None = None


@dataclass(frozen=True)
class Preprocessing:
    """Resizing, a crop of the centre, and (scale pixels - mean) / std in each channel.

    size: the size to resize to, in pixels. crop: size of the crop; None: no crop. resample:
    "bilinear" or "bicubic".
    """

    size: Rectangle | ShortestEdge
    crop: Rectangle | None
    resample: str
    scale: float
    mean: _Channels
    std: _Channels

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON gives them back, for comparison with stored ones."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @property
    def output_size(self) -> tuple[int, int]:
        """(height, width) of the prepared images, whatever size they had."""
        size = self.crop or self.size
        return size.height, size.width

    def __call__(self, images: UInt8[Array, "B H W C"]) -> Float[Array, "B h w 3"]:
        """Prepares images, in float32. Greyscale ones (C = 1) are repeated to three channels."""
        height, width = self._resized(*images.shape[1:3])
        images = resize(images, height, width, self.resample)
        if self.crop:
            top, left = (height - self.crop.height) // 2, (width - self.crop.width) // 2
            images = images[:, top : top + self.crop.height, left : left + self.crop.width]
        images = jnp.broadcast_to(images, (*images.shape[:3], 3)).astype(jnp.float32)
        mean, std = np.float32(self.mean), np.float32(self.std)
        return (images * np.float32(self.scale) - mean) / std

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if isinstance(self.size, Rectangle):
            return self.size.height, self.size.width
        short = self.size.shortest_edge
        if width <= height:
            return int(short * height / width), short
        return short, int(short * width / height)


def read_preprocessing(folder: Path) -> Preprocessing:
    """Reads the preprocessor_config.json in `folder`.

    Errors:
        DataError: it is missing, or names a step that this module does not do.
    """
    path = folder / "preprocessor_config.json"
    values = read_json(path)
    kind = values.get("image_processor_type", values.get("feature_extractor_type"))
    kind = str(kind).removesuffix("Fast").removesuffix("Pil")
    if kind not in ("SiglipImageProcessor", "BitImageProcessor"):
        raise DataError(
            f"{path}: image_processor_type is {shown(kind)}; "
            "SiglipImageProcessor and BitImageProcessor are the known ones"
        )
    # BitImageProcessor crops by default; SiglipImageProcessor never does.
    defaults = {"do_center_crop": kind == "BitImageProcessor"}
    given = {key: value for key, value in values.items() if value is not None}
    fields = parse_fields(_Fields, defaults | given | {"image_processor_type": kind}, str(path))
    crop = fields.crop_size if fields.do_center_crop else None
    if isinstance(fields.size, ShortestEdge) and (
        crop is None or max(crop.height, crop.width) > fields.size.shortest_edge
    ):
        raise DataError(f"{path}: size.shortest_edge needs a crop_size that fits into it")
    return Preprocessing(
        fields.size,
        crop,
        _FILTERS[fields.resample],
        fields.rescale_factor,
        fields.image_mean,
        fields.image_std,
    )


def resize(
    images: UInt8[Array, "B H W C"], height: int, width: int, resample: str
) -> UInt8[Array, "B h w C"]:
    """Resizes images as Pillow's Image.resize does, to the bit."""
    if images.shape[2] != width:
        images = _resample(images, 2, width, resample)
    if images.shape[1] != height:
        images = _resample(images, 1, height, resample)
    return images


def _resample(
    images: UInt8[Array, "B H W C"], axis: int, size: int, resample: str
) -> UInt8[Array, "B h w C"]:
    weights = _byte_weights(images.shape[axis], size, resample)
    subscripts = {1: "poh,bhwc->pbowc", 2: "pow,bhwc->pbhoc"}[axis]
    sums = jnp.einsum(subscripts, weights, images.astype(jnp.float32)).astype(jnp.int32)
    return _rounded((sums[0] << 16) + (sums[1] << 8) + sums[2])


def _rounded(sums: Int32[Array, "*S"]) -> UInt8[Array, "*S"]:
    half = 1 << (_FIXED_POINT_BITS - 1)
    return jnp.clip((sums + half) >> _FIXED_POINT_BITS, 0, 255).astype(jnp.uint8)


def _byte_weights(size: int, new_size: int, resample: str) -> Float[np.ndarray, "3 out in"]:
    """Returns Pillow's integer weights w = 2^16 a + 2^8 b + c as (a, b, c)."""
    matrix = antialiased(size, new_size, resample) * (1 << _FIXED_POINT_BITS)
    # Rounded half away from zero, like Pillow's normalize_coeffs_8bpc.
    weights = np.trunc(matrix + np.where(matrix < 0, -0.5, 0.5)).astype(np.int64)
    return np.stack([weights >> 16, (weights >> 8) & 255, weights & 255]).astype(np.float32)
