"""The dataset format, version 1: the only place where writer and reader meet.

A dataset directory holds `dataset.json` and one folder a split, in which images
and episodes lie in ArrayRecord files beside a `manifest.json` (records, bytes and
sha256 of each file). A record is a msgpack map: data only, nothing that can run.

A split's images are stored class by class, so the images of class c are one range
of indices, and `SplitInfo` alone tells which. Class ids number the classes of
their own split.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgpack
import numpy as np
import pydantic
from array_record.python import array_record_module
from etils import epath
from jaxtyping import UInt8
from PIL import Image
from pydantic import NonNegativeInt, PositiveInt

from fsdit.errors import DataError, OutputError

FORMAT_VERSION = 1
SPLITS = ("train", "val", "test")
# `dataset.json` is under this name while data_prep.episodes exchanges files.
REBUILDING = "dataset.json.rebuilding"

# One record a group makes random access cheap; images are compressed already.
_WRITER_OPTIONS = "group_size:1,uncompressed"

# Of `dataset.json` as it is read: no text for a number, no unknown field.
_STRICT = pydantic.ConfigDict(strict=True, extra="forbid")


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


@dataclasses.dataclass(frozen=True)
class SplitInfo:
    """One split as `dataset.json` describes it."""

    __pydantic_config__ = _STRICT

    classes: tuple[str, ...]
    images_per_class: tuple[PositiveInt, ...]
    episodes: NonNegativeInt
    shots: NonNegativeInt

    @property
    def num_images(self) -> int:
        return sum(self.images_per_class)

    def class_range(self, class_id: int) -> range:
        """Indices of the images of a class."""
        start = sum(self.images_per_class[:class_id])
        return range(start, start + self.images_per_class[class_id])


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What `dataset.json` says. `image_size` is the height and width in pixels.

    shared_classes: the splits are meant to have classes in common (and no image).
    """

    __pydantic_config__ = _STRICT

    image_size: PositiveInt
    channels: Literal[1, 3]
    splits: Mapping[str, SplitInfo]
    command: str
    seed: int
    encoders: tuple[str, ...] = ()
    vaes: tuple[str, ...] = ()
    shared_classes: bool = False

    def split(self, name: str) -> SplitInfo:
        if name not in self.splits:
            raise DataError(f"no split {name!r} in the dataset; it has {', '.join(self.splits)}")
        return self.splits[name]


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


def _attempt() -> str:
    """A name of its own for each attempt: a cluster may run one task twice at once."""
    return uuid.uuid4().hex


def write_shard(path: epath.PathLike, payloads: Iterable[bytes]) -> dict[str, Any]:
    """Writes one file under a temporary name, renames it, returns its manifest entry.

    Raises OutputError, such as for a full disk.
    """
    path = epath.Path(path)
    partial = path.with_name(f"{path.name}.{_attempt()}.partial")
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


def read_shard(path: epath.PathLike) -> Iterator[bytes]:
    """The records of one file in order. Raises DataError."""
    try:
        reader = array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0")
        for i in range(reader.num_records()):
            yield reader.read([i])[0]
    except (RuntimeError, ValueError, IndexError) as error:
        raise DataError(f"{path}: damaged: {error}") from None


def write_split(
    directory: Path, images: Sequence[ImageRecord], episodes: Sequence[Episode], shards: int = 1
) -> None:
    """Writes the files of one split, its manifest last.

    images: class by class. shards: image files, of consecutive images each.
    """
    directory.mkdir(parents=True, exist_ok=True)
    bounds = np.linspace(0, len(images), shards + 1).astype(int)
    entries = {}
    for i in range(shards):
        name = shard_name("images", i, shards)
        part = images[bounds[i] : bounds[i + 1]]
        entries[name] = write_shard(directory / name, map(encode_image, part))
    finish_split(directory, entries, episodes)


def finish_split(
    directory: epath.PathLike, images: Mapping[str, dict[str, Any]], episodes: Iterable[Episode]
) -> None:
    """Completes a split whose image files are written: its episodes, then its manifest.

    images: manifest entries of the image files by name.
    """
    directory = epath.Path(directory)
    name = shard_name("episodes", 0, 1)
    entry = write_shard(directory / name, map(encode_episode, episodes))
    write_json(directory / "manifest.json", {**images, name: entry})


def write_dataset_json(directory: epath.PathLike, info: DatasetInfo) -> None:
    """Writes `dataset.json`: the last file, its presence says that the dataset is whole.

    It carries a sum of its own content, as the manifests do of the other files.
    """
    values = {"version": FORMAT_VERSION, **dataclasses.asdict(info)}
    write_json(epath.Path(directory) / "dataset.json", {**values, "sha256": _content_sum(values)})


def _content_sum(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def write_json(path: epath.PathLike, value: Any) -> None:
    """Atomic: the old file or the new one, never half of one."""
    path = epath.Path(path)
    partial = path.with_name(f"{path.name}.{_attempt()}.partial")
    text = json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    partial.write_bytes(text.encode())
    partial.replace(path)


def publish(partial: epath.PathLike, directory: epath.PathLike) -> None:
    """Renames a finished dataset folder into place; an empty folder there is replaced."""
    directory = epath.Path(directory)
    if directory.is_dir():
        directory.rmdir()
    epath.Path(partial).rename(directory)


def read_dataset_info(directory: str | Path) -> DatasetInfo:
    """Reads `dataset.json`. Raises DataError naming what is missing or wrong."""
    path = Path(directory) / "dataset.json"
    if not path.exists() and path.with_name(REBUILDING).exists():
        raise DataError(
            f"{path}: away while the episode files were rebuilt; "
            f"run `python -m data_prep.episodes --dataset_dir={directory} ...` again"
        )
    return read_description(path)


def read_description(path: Path) -> DatasetInfo:
    """Reads a description under any name. Raises DataError."""
    values = _read_json(path, "make one with `python -m data_prep.glyphs --output_dir=...`")
    version = values.pop("version", None)
    if version != FORMAT_VERSION:
        raise DataError(f"{path}: format version {version}, this program reads {FORMAT_VERSION}")
    expected = values.pop("sha256", None)  # absent in files older than the sum
    if expected not in (None, _content_sum({"version": version, **values})):
        raise DataError(f"{path}: damaged or edited: its sha256 is not that of its content")
    try:
        info = pydantic.TypeAdapter(DatasetInfo).validate_json(json.dumps(values))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise DataError(f"{path}: not a dataset description: {field}: {first['msg']}") from None
    for name, split in info.splits.items():
        if len(split.classes) != len(split.images_per_class):
            raise DataError(f"{path}: splits.{name}: classes and images_per_class differ in length")
    order = sorted(
        info.splits, key=lambda name: (SPLITS.index(name) if name in SPLITS else 9, name)
    )
    return dataclasses.replace(info, splits={name: info.splits[name] for name in order})


def read_manifest(directory: Path) -> dict[str, dict[str, Any]]:
    """The manifest of a split: file name -> records, bytes, sha256. Raises DataError."""
    path = directory / "manifest.json"
    manifest = _read_json(path, "the conversion did not finish; run it again")
    for name, entry in manifest.items():
        if not _is_file_entry(entry):
            raise DataError(f"{path}: not a manifest: {name!r} needs records, bytes and sha256")
    return manifest


def _is_file_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or entry.keys() != {"records", "bytes", "sha256"}:
        return False
    count, size, digest = entry["records"], entry["bytes"], entry["sha256"]
    if not (type(count) is type(size) is int and isinstance(digest, str)):
        return False
    return 0 <= count <= size < 2**63


def _read_json(path: Path, advice: str) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; {advice}")
    try:
        values = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: not a JSON object")
    return values


def dataset_fingerprint(directory: str | Path) -> str:
    """Identifies a dataset by content: a sha256 over its manifests' sums."""
    digest = hashlib.sha256()
    for split in sorted(read_dataset_info(directory).splits):
        for name, entry in sorted(read_manifest(Path(directory) / split).items()):
            digest.update(f"{split}/{name} {entry['sha256']}\n".encode())
    return digest.hexdigest()


def open_shard(path: Path, count: int) -> array_record_module.ArrayRecordReader:
    """Opens a file of `count` records. Raises DataError.

    The library opens whatever it is given: a file whose index is damaged has no records.
    """
    try:
        reader = array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0")
        if not reader.ok():
            reader.read([0])  # raises what ails it
        found = reader.num_records()
    except Exception as error:
        raise DataError(
            f"{path}: cannot be opened, no record can be read: {_reason(error)}"
        ) from None
    if found != count:
        raise DataError(f"{path}: has {found} records, the manifest says {count}")
    return reader


def read_record(reader: array_record_module.ArrayRecordReader, path: Path, index: int) -> bytes:
    """One record of an open file. Raises DataError naming file and record."""
    try:
        return reader.read([index])[0]
    except Exception as error:
        raise DataError(f"{path}, record {index}: damaged: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return (str(error) or repr(error)).splitlines()[0].strip()


class RecordReader:
    """Random access to the records of one kind ("images", "episodes") in a split.

    Opens the files that the manifest names, checks their sizes and counts, and
    names file and record when one cannot be read. Picklable, for worker processes.
    """

    def __init__(self, directory: str | Path, kind: str):
        self.directory = Path(directory)
        self.kind = kind
        manifest = read_manifest(self.directory)
        self._names = sorted(name for name in manifest if name.startswith(f"{kind}-"))
        if not self._names:
            raise DataError(f"{self.directory}: the manifest lists no {kind} files")
        sizes = [manifest[name]["bytes"] for name in self._names]
        self._counts = [manifest[name]["records"] for name in self._names]
        self._ends = np.cumsum(self._counts)
        for name, size in zip(self._names, sizes, strict=True):
            self._check_size(self.directory / name, size)
        self._readers: dict[int, array_record_module.ArrayRecordReader] = {}

    @staticmethod
    def _check_size(path: Path, size: int) -> None:
        if not path.is_file():
            raise DataError(f"{path}: missing, though the manifest lists it")
        if path.stat().st_size != size:
            raise DataError(
                f"{path}: {path.stat().st_size} bytes, the manifest says {size}: "
                "damaged or half-copied; copy or convert it again"
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": {}}

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise DataError(
                f"{self.directory}: {self.kind} record {index} does not exist, "
                f"there are {len(self)}"
            )
        shard, record = self._locate(index)
        return read_record(self._open(shard), self.directory / self._names[shard], record)

    def _locate(self, index: int) -> tuple[int, int]:
        """(file, record in it) of a global index."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - (int(self._ends[shard - 1]) if shard else 0)

    def _open(self, shard: int) -> array_record_module.ArrayRecordReader:
        if shard not in self._readers:
            path = self.directory / self._names[shard]
            self._readers[shard] = open_shard(path, self._counts[shard])
        return self._readers[shard]

    def describe(self, index: int) -> str:
        """File and record of a global index, for messages."""
        shard, record = self._locate(index)
        return f"{self.directory / self._names[shard]}, record {record}"


class ImageReader:
    """Decoded images of a split by index.

    count: how many `dataset.json` promises. A manifest that lists another number would
    shift the indices of all files after the one it is wrong about. Raises DataError.
    """

    def __init__(
        self, directory: str | Path, image_size: int, channels: int, count: int | None = None
    ):
        self._records = RecordReader(directory, "images")
        if count not in (None, len(self._records)):
            raise DataError(
                f"{directory}: the manifest lists {len(self._records)} images, dataset.json "
                f"makes it {count}: copy or convert it again"
            )
        self._shape = (image_size, image_size, channels)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "H W C"]:
        """Raises DataError naming file and record."""
        try:
            record = decode_image(self._records[index])
            pixels = decode_pixels(record.data, self._shape[-1])
        except DataError as error:
            raise DataError(_located(error, self._records, index)) from None
        if pixels.shape != self._shape:
            raise DataError(
                f"{self._records.describe(index)}: image of shape {pixels.shape}, "
                f"the dataset says {self._shape}"
            )
        return pixels


class EpisodeReader:
    """Episodes of a split by index, checked against the split's description."""

    def __init__(self, directory: str | Path, split: SplitInfo, shots: int):
        self._records = RecordReader(directory, "episodes")
        if not len(self._records):
            raise DataError(f"{directory}: has no episodes; make some, or set data.source=sampled")
        self._split = split
        self._shots = shots

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Episode:
        """Raises DataError naming file and record."""
        try:
            episode = decode_episode(self._records[index])
        except DataError as error:
            raise DataError(_located(error, self._records, index)) from None
        where = self._records.describe(index)
        if len(episode.supports) != num_supports(self._shots):
            raise DataError(
                f"{where}: {len(episode.supports)} supports, config.data.shots is {self._shots}; "
                "set config.data.shots, or config.data.source=sampled"
            )
        try:
            check_episode(episode, self._split, self._shots)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        return episode


def check_episode(episode: Episode, split: SplitInfo, shots: int) -> None:
    """Raises DataError for an episode that cannot be one of K = `shots` of the split."""
    if len(episode.supports) != num_supports(shots):
        raise DataError(f"{len(episode.supports)} supports, not {num_supports(shots)}")
    if not 0 <= episode.class_id < len(split.classes):
        raise DataError(f"class {episode.class_id} does not exist in this split")
    members = split.class_range(episode.class_id)
    images = (episode.target, *episode.supports)
    for image in images:
        if image not in members:
            raise DataError(
                f"image {image} is not of class {episode.class_id} "
                f"(its images are {members.start} to {members.stop - 1})"
            )
    if len(set(images)) != shots + 1:
        raise DataError(f"target and supports {images} are not {shots + 1} distinct images")


def _located(error: DataError, records: RecordReader, index: int) -> str:
    message = str(error)
    return message if "record " in message else f"{records.describe(index)}: {message}"
