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
from typing import Any

import msgpack
import numpy as np
from array_record.python import array_record_module
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from fsdit.errors import DataError, OutputError

FORMAT_VERSION = 1
SPLITS = ("train", "val", "test")

# One record a group makes random access cheap; images are compressed already.
_WRITER_OPTIONS = "group_size:1,uncompressed"


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
    """One target and K supports of the same class, as indices into the split's images."""

    class_id: int
    target: int
    supports: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class SplitInfo:
    """One split as `dataset.json` describes it."""

    classes: tuple[str, ...]
    images_per_class: tuple[int, ...]
    episodes: int
    shots: int

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

    image_size: int
    channels: int
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
        raise DataError(f"{kind.__name__} has fields {sorted(values)}, expected {sorted(names)}")
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
    """Writes `dataset.json`: the last file, its presence says that the dataset is whole."""
    values = {"version": FORMAT_VERSION, **dataclasses.asdict(info)}
    write_json(epath.Path(directory) / "dataset.json", values)


def write_json(path: epath.PathLike, value: Any) -> None:
    """Atomic: the old file or the new one, never half of one."""
    path = epath.Path(path)
    partial = path.with_name(f"{path.name}.{_attempt()}.partial")
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
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
    values = _read_json(path, "make one with `python -m data_prep.glyphs --output_dir=...`")
    version = values.pop("version", None)
    if version != FORMAT_VERSION:
        raise DataError(f"{path}: format version {version}, this program reads {FORMAT_VERSION}")
    try:
        splits = {
            name: SplitInfo(
                tuple(s["classes"]), tuple(s["images_per_class"]), s["episodes"], s["shots"]
            )
            for name, s in values.pop("splits").items()
        }
        return DatasetInfo(
            splits=splits,
            encoders=tuple(values.pop("encoders")),
            vaes=tuple(values.pop("vaes")),
            **values,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a dataset description: {error}") from None


def read_manifest(directory: Path) -> dict[str, dict[str, Any]]:
    """The manifest of a split: file name -> records, bytes, sha256. Raises DataError."""
    return _read_json(directory / "manifest.json", "the conversion did not finish; run it again")


def _read_json(path: Path, advice: str) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; {advice}")
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
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
        try:
            sizes = [int(manifest[name]["bytes"]) for name in self._names]
            self._ends = np.cumsum([int(manifest[name]["records"]) for name in self._names])
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{self.directory / 'manifest.json'}: not a manifest") from None
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
        try:
            return self._open(shard).read([record])[0]
        except Exception as error:
            reason = (str(error) or repr(error)).splitlines()[0]
            raise DataError(f"{self.describe(index)}: damaged: {reason}") from None

    def _locate(self, index: int) -> tuple[int, int]:
        """(file, record in it) of a global index."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - (int(self._ends[shard - 1]) if shard else 0)

    def _open(self, shard: int) -> array_record_module.ArrayRecordReader:
        if shard not in self._readers:
            self._readers[shard] = array_record_module.ArrayRecordReader(
                str(self.directory / self._names[shard]), "readahead_buffer_size:0"
            )
        return self._readers[shard]

    def describe(self, index: int) -> str:
        """File and record of a global index, for messages."""
        shard, record = self._locate(index)
        return f"{self.directory / self._names[shard]}, record {record}"


class ImageReader:
    """Decoded images of a split by index."""

    def __init__(self, directory: str | Path, image_size: int, channels: int):
        self._records = RecordReader(directory, "images")
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
        if len(episode.supports) != self._shots:
            raise DataError(
                f"{where}: {len(episode.supports)} supports, config.data.shots is {self._shots}; "
                "set config.data.shots, or config.data.source=sampled"
            )
        if not 0 <= episode.class_id < len(self._split.classes):
            raise DataError(f"{where}: class {episode.class_id} does not exist in this split")
        members = self._split.class_range(episode.class_id)
        for image in (episode.target, *episode.supports):
            if image not in members:
                raise DataError(
                    f"{where}: image {image} is not of class {episode.class_id} "
                    f"(its images are {members.start} to {members.stop - 1})"
                )
        return episode


def _located(error: DataError, records: RecordReader, index: int) -> str:
    message = str(error)
    return message if "record " in message else f"{records.describe(index)}: {message}"
