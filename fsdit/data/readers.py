"""Random access to the records of a dataset, checked against its description."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from array_record.python import array_record_module
from jaxtyping import Float, UInt8

from fsdit import storage
from fsdit.data.layout import (
    DatasetInfo,
    FeaturesInfo,
    LatentsInfo,
    SplitInfo,
    files_of,
    read_manifest,
)
from fsdit.data.records import (
    Episode,
    FeatureRecord,
    LatentRecord,
    decode_episode,
    decode_features,
    decode_image,
    decode_latents,
    decode_pixels,
    num_supports,
)
from fsdit.data.shards import open_shard, read_record
from fsdit.errors import DataError


class RecordReader:
    """Random access to the records of one kind ("images", "features-siglip2") in a split.

    It opens the files that the manifest names, checks their sizes and counts, and names file
    and record when one cannot be read. It can be pickled, for worker processes. Raises DataError.
    """

    def __init__(self, directory: storage.PathLike, kind: str):
        self.directory = storage.place(directory)
        self.kind = kind
        manifest = read_manifest(self.directory)
        self._names = files_of(manifest, kind)
        if not self._names:
            raise DataError(f"{self.directory}: the manifest lists no {kind} files")
        sizes = [manifest[name]["bytes"] for name in self._names]
        self._counts = [manifest[name]["records"] for name in self._names]
        self._ends = np.cumsum(self._counts)
        for name, size in zip(self._names, sizes, strict=True):
            self._check_size(self.directory / name, size)
        self._readers: dict[int, array_record_module.ArrayRecordReader] = {}

    @staticmethod
    def _check_size(path: storage.AnyPath, size: int) -> None:
        if not path.is_file():
            raise DataError(f"{path}: missing, though the manifest lists it")
        if (found := storage.size_of(path)) != size:
            raise DataError(
                f"{path}: {found} bytes, the manifest says {size}: "
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
        """Returns (index of the file, index of the record in it) for an index in the split."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - (int(self._ends[shard - 1]) if shard else 0)

    def _open(self, shard: int) -> array_record_module.ArrayRecordReader:
        if shard not in self._readers:
            path = self.directory / self._names[shard]
            self._readers[shard] = open_shard(path, self._counts[shard])
        return self._readers[shard]

    def describe(self, index: int) -> str:
        """Returns file and record of an index in the split, for messages."""
        shard, record = self._locate(index)
        return f"{self.directory / self._names[shard]}, record {record}"


class ImageReader:
    """Decoded images of a split by index.

    count: their number by `dataset.json`; None: not checked. A manifest with a wrong number
    would shift the indices of all later files. Raises DataError.
    """

    def __init__(
        self, directory: storage.PathLike, image_size: int, channels: int, count: int | None = None
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

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "H W C"]]:
        return map(self.__getitem__, range(len(self)))

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


def split_images(dataset_dir: storage.PathLike, info: DatasetInfo, split: str) -> ImageReader:
    """Opens all images of a split. Raises DataError."""
    directory, count = storage.place(dataset_dir) / split, info.split(split).num_images
    return ImageReader(directory, info.image_size, info.channels, count)


class EpisodeReader:
    """Episodes of a split by index, checked against the split's description."""

    def __init__(self, directory: storage.PathLike, split: SplitInfo, shots: int):
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
    """Raises DataError for an episode that cannot be one of the split, with K = `shots`."""
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


class FeatureReader:
    """Features of a split's images by index, checked against their description.

    name: NAME of the files. count: images of the split. Raises DataError.
    """

    def __init__(self, directory: storage.PathLike, name: str, info: FeaturesInfo, count: int):
        self._records = _precomputed(directory, f"features-{name}", count)
        self._info = info

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Float[np.ndarray, "..."]]:
        """Reads `pooled` (D,), and `tokens` (T, D) if they are stored; both are read-only.

        Raises DataError naming file and record.
        """
        try:
            record = decode_features(self._records[index])
            check_features(record, self._info)
        except DataError as error:
            raise DataError(_located(error, self._records, index)) from None
        if record.tokens is None:
            return {"pooled": record.pooled}
        return {"pooled": record.pooled, "tokens": record.tokens}


class LatentReader:
    """Posteriors of a split's images by index, checked against their description.

    name: NAME of the files. count: images of the split. Raises DataError.
    """

    def __init__(self, directory: storage.PathLike, name: str, info: LatentsInfo, count: int):
        self._records = _precomputed(directory, f"latents-{name}", count)
        self._info = info

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(
        self, index: int
    ) -> tuple[Float[np.ndarray, "2 h w c"], Float[np.ndarray, "2 h w c"]]:
        """Reads (mean, log-variance) of the image [0] and its mirror image [1]; read-only.

        Raises DataError naming file and record.
        """
        try:
            record = decode_latents(self._records[index])
            check_latents(record, self._info)
        except DataError as error:
            raise DataError(_located(error, self._records, index)) from None
        return record.mean, record.log_variance


def _precomputed(directory: storage.PathLike, kind: str, count: int) -> RecordReader:
    records = RecordReader(directory, kind)
    if len(records) != count:
        raise DataError(
            f"{directory}: the manifest lists {len(records)} {kind} records for {count} images: "
            "copy it again, or make them again with data_prep.encode"
        )
    return records


def check_features(record: FeatureRecord, info: FeaturesInfo) -> None:
    """Raises DataError for features that are not as the description says."""
    tokens = None if record.tokens is None else record.tokens.shape
    found = (record.pooled.dtype.name, record.pooled.shape, tokens)
    expected = (info.dtype, (info.dim,), (info.num_tokens, info.dim) if info.tokens else None)
    if found != expected:
        raise DataError(f"features of type, pooled and tokens {found}, the dataset says {expected}")


def check_latents(record: LatentRecord, info: LatentsInfo) -> None:
    """Raises DataError for a posterior that is not as the description says."""
    found = (record.mean.dtype.name, record.mean.shape)
    expected = (info.dtype, (2, *info.shape))
    if found != expected:
        raise DataError(f"latents of type and shape {found}, the dataset says {expected}")


def _located(error: DataError, records: RecordReader, index: int) -> str:
    message = str(error)
    return message if "record " in message else f"{records.describe(index)}: {message}"
