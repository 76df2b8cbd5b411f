"""The files of a dataset directory and what its JSON files say.

A dataset directory holds `dataset.json` and one folder for each split, in which images and
episodes lie in ArrayRecord files beside a `manifest.json` (records, bytes and sha256 of each
file).

A split's images are stored class by class, so the images of a class are a range of indices,
which `SplitInfo` knows. A class id is the index of a class in its own split.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from etils import epath

from fsdit import storage
from fsdit.data import manifests
from fsdit.data.images.filenames import is_plain_name
from fsdit.data.images.photos import Preparation
from fsdit.data.manifests import read_json, read_manifest, write_json
from fsdit.data.records import FORMAT_VERSION, Episode, ImageRecord, encode_episode, encode_image
from fsdit.data.shards import shard_kind, shard_name, write_shard
from fsdit.errors import DataError
from fsdit.text import printable

SPLITS = ("train", "val", "test")
# The kinds of file that every dataset has; features and latents are computed from these.
_KINDS = ("images", "episodes")
# `dataset.json` has this name while data_prep.episodes exchanges files.
REBUILDING = "dataset.json.rebuilding"
# The folder of files that data_prep.encode has made so far.
ENCODING = "encode.partial"
# Checks of `dataset.json`: no text in place of a number, no unknown field.
_STRICT = pydantic.ConfigDict(strict=True, extra="forbid")
# No dataset has more records, and products of such counts still fit in 64 bits.
Count = Annotated[int, pydantic.Field(ge=0, lt=2**40)]
PositiveCount = Annotated[int, pydantic.Field(gt=0, lt=2**40)]
Size = Annotated[int, pydantic.Field(gt=0, lt=2**20)]


@dataclasses.dataclass(frozen=True)
class SplitInfo:
    """One split as `dataset.json` describes it.

    shots: K of the episodes. digests: kind of file -> a digest of the manifest's files of this
    kind (`manifests.digests`), by which files of another split are noticed; older datasets have
    none. Two splits are equal whatever their digests are, so a split that is written equals
    the same one before.
    """

    __pydantic_config__ = _STRICT

    classes: tuple[str, ...]
    images_per_class: tuple[PositiveCount, ...]
    episodes: Count
    shots: Count
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)

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

    encoder: the location that the user named. sha256: that of its weight files. dim: width D.
    tokens: whether the T = grid[0] * grid[1] tokens of each image are stored beside its pooled
    vector.
    """

    __pydantic_config__ = _STRICT

    encoder: str
    sha256: str
    preprocessing: dict[str, Any]
    dtype: Literal["float16", "bfloat16"]
    dim: Size
    grid: tuple[Size, Size]
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
    shape: tuple[Size, Size, Size]


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """The content of `dataset.json`. image_size: height and width in pixels.

    features, latents: NAME of the files -> description. shared_classes: whether the splits are
    meant to share classes (they never share images). preparation: how the images were made of
    pictures of any size; None in older files, which do not say.
    sources: name of what the images come from -> its version, licence, author and address.
    """

    __pydantic_config__ = _STRICT

    image_size: Size
    channels: Literal[1, 3]
    splits: Mapping[str, SplitInfo]
    command: str
    seed: int
    features: Mapping[str, FeaturesInfo] = dataclasses.field(default_factory=dict)
    latents: Mapping[str, LatentsInfo] = dataclasses.field(default_factory=dict)
    shared_classes: bool = False
    preparation: Preparation | None = None
    sources: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)

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
    """Writes `dataset.json`, the last file: its presence says that the dataset is complete.

    It holds a sha256 of its own content, as the manifests hold those of the other files, and
    digests of the manifests that are there.
    """
    directory = epath.Path(directory)
    splits = {
        name: dataclasses.replace(split, digests=manifests.digests_in(directory / name))
        for name, split in info.splits.items()
    }
    described = dataclasses.asdict(dataclasses.replace(info, splits=splits))
    values = {"version": FORMAT_VERSION, **described}
    for name in ("sources", "preparation"):  # programs of before these read such a dataset
        if not values[name]:
            del values[name]
    write_json(directory / "dataset.json", {**values, "sha256": _content_sum(values)})


def _content_sum(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


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


def read_dataset_info(directory: storage.PathLike) -> DatasetInfo:
    """Reads `dataset.json`, and compares the manifests that are there with it.

    Raises DataError naming what is missing or wrong.
    """
    info = read_dataset_json(directory)
    for name, split in info.splits.items():
        if other := manifests.other_kinds(storage.place(directory) / name, split.digests):
            raise DataError(other)
    return info


def read_dataset_json(directory: storage.PathLike) -> DatasetInfo:
    """Reads `dataset.json` alone. Raises DataError."""
    path = storage.place(directory) / "dataset.json"
    if not path.exists() and path.with_name(REBUILDING).exists():
        raise DataError(
            f"{path}: away while the episode files were rebuilt; "
            f"run `python -m data_prep.episodes --dataset_dir={directory} ...` again"
        )
    return read_description(path)


def read_description(path: storage.AnyPath) -> DatasetInfo:
    """Reads a dataset's description from a file of any name. Raises DataError."""
    values = read_json(path, "make one with `python -m data_prep.glyphs --output_dir=...`")
    version = values.pop("version", None)
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path}: format version {version!r:.40}, this program reads {FORMAT_VERSION}"
        )
    expected = values.pop("sha256", None)  # older files have none
    if expected not in (None, _content_sum({"version": version, **values})):
        raise DataError(f"{path}: damaged or edited: its sha256 is not that of its content")
    try:
        for unused in ("encoders", "vaes"):  # older files have these, always empty
            values.pop(unused, None)
        info = pydantic.TypeAdapter(DatasetInfo).validate_json(json.dumps(values))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = printable(".".join(map(str, first["loc"])))
        raise DataError(f"{path}: not a dataset description: {field}: {first['msg']}") from None
    _check_names(path, info)
    for name, split in info.splits.items():
        if len(split.classes) != len(split.images_per_class):
            raise DataError(f"{path}: splits.{name}: classes and images_per_class differ in length")
    order = sorted(
        info.splits, key=lambda name: (SPLITS.index(name) if name in SPLITS else 9, name)
    )
    return dataclasses.replace(info, splits={name: info.splits[name] for name in order})


def _check_names(path: storage.AnyPath, info: DatasetInfo) -> None:
    """Raises DataError for names that cannot be those of files: `../x` leads out of the dataset."""
    for kind in ("splits", "features", "latents"):
        for name in getattr(info, kind):
            if not is_plain_name(name):
                raise DataError(f"{path}: {kind}: {name!r:.80} is no name for files")
    if not info.splits:
        raise DataError(f"{path}: splits: there are none")


def default_name(location: str) -> str:
    """Returns the default NAME of features or latents: the last part of the network's location."""
    return Path(location).name


def files_of(manifest: Mapping[str, Any], kind: str) -> list[str]:
    """Returns the names of a manifest's files of one kind, in order."""
    return sorted(name for name in manifest if shard_kind(name) == kind)


def dataset_fingerprint(directory: storage.PathLike, kinds: Sequence[str] = ()) -> str:
    """Identifies a dataset by its content: a sha256 over the checksums in its manifests.

    kinds: files to cover beside images and episodes, such as "features-siglip2". Raises
    DataError where a split has none of them.
    """
    digest = hashlib.sha256()
    for split in sorted(read_dataset_info(directory).splits):
        folder = storage.place(directory) / split
        manifest = read_manifest(folder)
        present = set(map(shard_kind, manifest))
        for kind in kinds:
            if kind not in present:
                raise DataError(f"{folder}: the manifest lists no {kind} files")
        for name, entry in sorted(manifest.items()):
            if shard_kind(name) in (*_KINDS, *kinds):
                digest.update(f"{split}/{name} {entry['sha256']}\n".encode())
    return digest.hexdigest()
