"""One record of a dataset, format version 1: the only place where writer and reader meet.

A record is a msgpack map: data only, nothing that can run. Images hold encoded bytes,
episodes indices of images. Records lie in ArrayRecord files, one a group.
"""

import contextlib
import dataclasses
import hashlib
import io
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import msgpack
import numpy as np
from array_record.python import array_record_module
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from fsdit.errors import DataError, OutputError

FORMAT_VERSION = 1
# One record a group makes random access cheap; images are compressed already; threads of
# the writer cost a small record three times what it takes to write.
_WRITER_OPTIONS = "group_size:1,uncompressed,max_parallelism:1"


@dataclasses.dataclass(frozen=True)
class ImageRecord:
    """One encoded image. `data`: bytes of a PNG, JPEG or WebP of `height` x `width`."""

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


def num_supports(shots: int) -> int:
    """Supports of an episode of K = `shots`: for K = 0 one, the target itself."""
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


_FIELD_TYPES = {
    "key": str, "class_id": int, "data": bytes, "height": int, "width": int,
    "target": int, "supports": list,
}  # fmt: skip


def _fields(payload: bytes, kind: type) -> dict[str, Any]:
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
        if type(value) is not _FIELD_TYPES[name]:
            raise DataError(f"{kind.__name__}: {name} is {value!r:.40}")
    return values


def encode_pixels(pixels: UInt8[np.ndarray, "H W C"]) -> bytes:
    """PNG bytes of a greyscale (C = 1) or RGB (C = 3) image."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def decode_pixels(data: bytes, channels: int) -> UInt8[np.ndarray, "H W C"]:
    """Pixels of an encoded image, as stored: no resizing. Raises DataError."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except Exception as error:
        raise DataError(f"image cannot be decoded: {error}") from None
    return pixels[..., None] if channels == 1 else pixels


def shard_name(kind: str, index: int, count: int) -> str:
    return f"{kind}-{index:05d}-of-{count:05d}.array_record"


def attempt_name() -> str:
    """A name of its own for each attempt: a cluster may run one task twice at once."""
    return uuid.uuid4().hex


def write_shard(path: epath.PathLike, payloads: Iterable[bytes]) -> dict[str, Any]:
    """Writes one file under a temporary name, renames it, returns its manifest entry.

    Raises OutputError, such as for a full disk.
    """
    path = epath.Path(path)
    partial = path.with_name(f"{path.name}.{attempt_name()}.partial")
    try:
        records = _write_records(partial, payloads)
        with partial.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        entry = {"records": records, "bytes": partial.stat().length, "sha256": digest}
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return entry


def _write_records(path: epath.Path, payloads: Iterable[bytes]) -> int:
    def written(action: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return action(*arguments)
        except (RuntimeError, ValueError) as error:  # the library has no other kinds
            raise OutputError(f"{path.parent}: could not be written: {error}") from None

    writer = written(array_record_module.ArrayRecordWriter, str(path), _WRITER_OPTIONS)
    records = 0
    try:
        for payload in payloads:
            written(writer.write, payload)
            records += 1
    except BaseException:
        with contextlib.suppress(RuntimeError, ValueError):
            writer.close()
        raise
    written(writer.close)
    return records
