"""One record of a dataset, format version 1: the only place where writer and reader meet.

A record is a msgpack map: data only, nothing that can run. Images hold encoded bytes,
episodes indices of images, features and latents raw arrays of 16-bit floats. The files that
hold records are `fsdit.data.shards`.
"""

import dataclasses
import io
import math
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from fsdit.data.images.image_files import UnusableImageError, opened
from fsdit.errors import DataError

FORMAT_VERSION = 1
# Types of stored features and latents, by name.
HALF_TYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclasses.dataclass(frozen=True)
class ImageRecord:
    """One encoded image. data: bytes of a PNG, JPEG or WebP of `height` x `width` pixels.

    key: its name in the input. class_id: index of its class in the split.
    """

    key: str
    class_id: int
    data: bytes
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class Episode:
    """One target and its supports, of the same class, as indices into the split's images.

    K distinct supports; for K = 0 the target is its own single support.
    """

    class_id: int
    target: int
    supports: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureRecord:
    """Outputs of a frozen encoder for one image; tokens: None where they are not stored."""

    pooled: Float[np.ndarray, "D"]
    tokens: Float[np.ndarray, "T D"] | None


@dataclasses.dataclass(frozen=True, eq=False)
class LatentRecord:
    """Posterior of a frozen VAE for one image: [0] as it is stored, [1] of its mirror image."""

    mean: Float[np.ndarray, "2 h w c"]
    log_variance: Float[np.ndarray, "2 h w c"]


def num_supports(shots: int) -> int:
    """Returns the number of supports for K = `shots`: for K = 0 one, the target itself."""
    return max(shots, 1)


def encode_image(record: ImageRecord) -> bytes:
    return msgpack.packb({"v": FORMAT_VERSION, **vars(record)})


def decode_image(payload: bytes) -> ImageRecord:
    """Inverse of `encode_image`. Raises DataError."""
    return ImageRecord(**_fields(payload, ImageRecord))


def encode_episode(episode: Episode) -> bytes:
    return msgpack.packb({"v": FORMAT_VERSION, **vars(episode)})


def decode_episode(payload: bytes) -> Episode:
    """Inverse of `encode_episode`. Raises DataError."""
    fields = _fields(payload, Episode)
    return Episode(fields["class_id"], fields["target"], tuple(fields["supports"]))


def encode_features(record: FeatureRecord) -> bytes:
    """Encodes features. Raises ValueError for arrays of a type that is not in HALF_TYPES."""
    tokens = None if record.tokens is None else _packed(record.tokens)
    return msgpack.packb({"v": FORMAT_VERSION, "pooled": _packed(record.pooled), "tokens": tokens})


def decode_features(payload: bytes) -> FeatureRecord:
    """Inverse of `encode_features`; the arrays are read-only. Raises DataError."""
    fields = _fields(payload, FeatureRecord)
    pooled = _unpacked("pooled", fields["pooled"], ndim=1)
    if fields["tokens"] is None:
        return FeatureRecord(pooled, None)
    tokens = _unpacked("tokens", fields["tokens"], ndim=2)
    if tokens.dtype != pooled.dtype or tokens.shape[1:] != pooled.shape:
        raise DataError(
            f"tokens are {tokens.dtype} {tokens.shape}, pooled {pooled.dtype} {pooled.shape}"
        )
    return FeatureRecord(pooled, tokens)


def encode_latents(record: LatentRecord) -> bytes:
    """Encodes latents. Raises ValueError for arrays of a type that is not in HALF_TYPES."""
    return msgpack.packb(
        {
            "v": FORMAT_VERSION,
            "mean": _packed(record.mean),
            "log_variance": _packed(record.log_variance),
        }
    )


def decode_latents(payload: bytes) -> LatentRecord:
    """Inverse of `encode_latents`; the arrays are read-only. Raises DataError."""
    fields = _fields(payload, LatentRecord)
    mean = _unpacked("mean", fields["mean"], ndim=4)
    log_variance = _unpacked("log_variance", fields["log_variance"], ndim=4)
    if mean.dtype != log_variance.dtype or mean.shape != log_variance.shape or len(mean) != 2:
        raise DataError(
            f"mean is {mean.dtype} {mean.shape}, log_variance {log_variance.dtype} "
            f"{log_variance.shape}; both should be of one type and (2, h, w, c)"
        )
    return LatentRecord(mean, log_variance)


def _packed(array: np.ndarray) -> dict[str, Any]:
    if array.dtype not in HALF_TYPES.values():
        raise ValueError(f"arrays are stored as {' or '.join(HALF_TYPES)}, not {array.dtype}")
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": array.tobytes()}


def _unpacked(name: str, value: dict[str, Any], ndim: int) -> np.ndarray:
    if value.keys() != {"dtype", "shape", "data"}:
        raise DataError(f"{name} has fields {sorted(map(str, value))}")
    kind, shape, data = value["dtype"], value["shape"], value["data"]
    if not isinstance(kind, str) or kind not in HALF_TYPES:
        raise DataError(f"{name} is of type {kind!r:.40}, not {' or '.join(HALF_TYPES)}")
    if (
        not isinstance(shape, list)
        or len(shape) != ndim
        or not all(type(size) is int and size > 0 for size in shape)
    ):
        raise DataError(f"{name} has shape {shape!r:.40}, not {ndim} positive sizes")
    dtype = HALF_TYPES[kind]
    if type(data) is not bytes or len(data) != math.prod(shape) * dtype.itemsize:
        size = f"{len(data)} bytes" if type(data) is bytes else type(data).__name__
        raise DataError(f"{name}: {size} do not fill shape {tuple(shape)} of {kind}")
    return np.frombuffer(data, dtype).reshape(shape)


_FIELD_TYPES = {
    "key": (str,), "class_id": (int,), "data": (bytes,), "height": (int,), "width": (int,),
    "target": (int,), "supports": (list,),
    "pooled": (dict,), "tokens": (dict, type(None)), "mean": (dict,), "log_variance": (dict,),
}  # fmt: skip


def _fields(payload: bytes, kind: type) -> dict[str, Any]:
    """Unpacks a record and checks version, names and types of its fields. Raises DataError."""
    try:
        values = msgpack.unpackb(payload)
        version = values.pop("v")
    except Exception as error:
        raise DataError(f"not a {kind.__name__}: {error}") from None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{kind.__name__} of format version {version}, this program reads {FORMAT_VERSION}"
        )
    names = {f.name for f in dataclasses.fields(kind)}
    if values.keys() != names:
        raise DataError(
            f"{kind.__name__} has fields {sorted(map(str, values))}, expected {sorted(names)}"
        )
    for name, value in values.items():
        if type(value) not in _FIELD_TYPES[name]:
            raise DataError(f"{kind.__name__}: {name} is {value!r:.40}")
    return values


def encode_pixels(pixels: UInt8[np.ndarray, "H W C"]) -> bytes:
    """Encodes a greyscale (C = 1) or RGB (C = 3) image as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def decode_pixels(data: bytes, channels: int) -> UInt8[np.ndarray, "H W C"]:
    """Decodes the pixels of an image, which keeps its size. Raises DataError."""
    try:
        with opened(data) as image:
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except UnusableImageError as error:
        raise DataError(f"image cannot be decoded: {error}") from None
    return pixels[..., None] if channels == 1 else pixels
