"""The files of a dataset directory and what its JSON files say.

A dataset directory holds `dataset.json` and one folder a split, in which images
and episodes lie in ArrayRecord files beside a `manifest.json` (records, bytes and
sha256 of each file).

A split's images are stored class by class, so the images of class c are one range
of indices, and `SplitInfo` alone tells which. Class ids number the classes of
their own split.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
from etils import epath
from pydantic import NonNegativeInt, PositiveInt

from fsdit.data.photos import DEFAULT_PREPARATION, Preparation
from fsdit.data.records import (
    FORMAT_VERSION,
    Episode,
    ImageRecord,
    attempt_name,
    encode_episode,
    encode_image,
    shard_kind,
    shard_name,
    write_shard,
)
from fsdit.errors import DataError

SPLITS = ("train", "val", "test")
# The kinds of file that a dataset is made of; features and latents are made from it.
_KINDS = ("images", "episodes")
# `dataset.json` is under this name while data_prep.episodes exchanges files.
REBUILDING = "dataset.json.rebuilding"
# What data_prep.encode has made lies here until all is there.
ENCODING = "encode.partial"
# Of `dataset.json` as it is read: no text for a number, no unknown field.
_STRICT = pydantic.ConfigDict(strict=True, extra="forbid")


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
class FeaturesInfo:
    """How a set of features was made, and the shapes of its records.

    encoder: the location that was named; sha256: of its weight files. tokens: whether the
    grid[0] * grid[1] tokens of each image are kept beside the pooled ones.
    """

    __pydantic_config__ = _STRICT

    encoder: str
    sha256: str
    preprocessing: dict[str, Any]
    dtype: Literal["float16", "bfloat16"]
    dim: PositiveInt
    grid: tuple[PositiveInt, PositiveInt]
    tokens: bool

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]


@dataclasses.dataclass(frozen=True)
class LatentsInfo:
    """How a set of latents was made, and the shape (h, w, c) of each posterior's mean."""

    __pydantic_config__ = _STRICT

    codec: str
    sha256: str
    dtype: Literal["float16", "bfloat16"]
    shape: tuple[PositiveInt, PositiveInt, PositiveInt]


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What `dataset.json` says. `image_size` is the height and width in pixels.

    features, latents: by the name that is in their files' names.
    shared_classes: the splits are meant to have classes in common (and no image).
    preparation: how the images were made of any pictures. Older files, which do not say,
    were mostly made with its defaults.
    """

    __pydantic_config__ = _STRICT

    image_size: PositiveInt
    channels: Literal[1, 3]
    splits: Mapping[str, SplitInfo]
    command: str
    seed: int
    features: Mapping[str, FeaturesInfo] = dataclasses.field(default_factory=dict)
    latents: Mapping[str, LatentsInfo] = dataclasses.field(default_factory=dict)
    shared_classes: bool = False
    preparation: Preparation = DEFAULT_PREPARATION

    def split(self, name: str) -> SplitInfo:
        if name not in self.splits:
            raise DataError(f"no split {name!r} in the dataset; it has {', '.join(self.splits)}")
        return self.splits[name]


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
    partial = path.with_name(f"{path.name}.{attempt_name()}.partial")
    text = json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    partial.write_bytes(text.encode())
    partial.replace(path)


def is_free(directory: epath.PathLike) -> bool:
    """Whether `publish` may put a folder there."""
    path = epath.Path(directory)
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


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
        for unused in ("encoders", "vaes"):  # of older files, always empty
            values.pop(unused, None)
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


def default_name(location: str) -> str:
    """Name of the features or latents of the network at `location`: its last part."""
    return Path(location).name


def files_of(manifest: Mapping[str, Any], kind: str) -> list[str]:
    """Names of a manifest's files of one kind, in order."""
    return sorted(name for name in manifest if shard_kind(name) == kind)


def dataset_fingerprint(directory: str | Path, kinds: Sequence[str] = ()) -> str:
    """Identifies a dataset by content: a sha256 over its manifests' sums.

    kinds: of other files to cover than images and episodes, "features-siglip2". Raises
    DataError where there are none.
    """
    digest = hashlib.sha256()
    for split in sorted(read_dataset_info(directory).splits):
        folder = Path(directory) / split
        manifest = read_manifest(folder)
        present = set(map(shard_kind, manifest))
        for kind in kinds:
            if kind not in present:
                raise DataError(f"{folder}: the manifest lists no {kind} files")
        for name, entry in sorted(manifest.items()):
            if shard_kind(name) in (*_KINDS, *kinds):
                digest.update(f"{split}/{name} {entry['sha256']}\n".encode())
    return digest.hexdigest()
