"""One task of a conversion: it writes its images, normalised, into one shard of the dataset.

A task is independent of all others, deterministic and idempotent. It can run anywhere, at any
time, even twice at once, and leaves the same two files: the shard, and then its result in the
conversion folder, whose presence says that the shard is complete.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from etils import epath

from data_prep.conversion.images import ImageOptions, NormalisedImage, normalise
from data_prep.conversion.inputs.entries import Entry, shown_name
from data_prep.conversion.inputs.sources import Reader
from data_prep.conversion.jobs import ConversionFolder, Shard, read_task
from fsdit.data import layout, records
from fsdit.data.images.image_files import MAX_FILE_BYTES, UnusableImageError
from fsdit.data.shards import write_shard
from fsdit.errors import DataError

_RESULT_FIELDS = {"entry", "images", "skipped", "image_size"}


@dataclasses.dataclass(frozen=True)
class Summary:
    """The result of a task in short: numbers of images, the first skipped one, the image size."""

    images: int
    skipped: int
    first_skipped: str
    image_size: int | None


@dataclasses.dataclass(frozen=True)
class ConvertShard:
    """The function that a runner maps over the shards."""

    folder: str
    reader: Reader
    options: ImageOptions
    max_file_bytes: int

    def __call__(self, shard: Shard) -> Summary:
        """Converts the images of one shard, unless its result is there already.

        Raises DataError for images that cannot form one dataset, and OutputError.
        """
        if done := self.finished(shard):
            return done
        folder = ConversionFolder(epath.Path(self.folder))
        images: list[tuple[str, int, str]] = []
        skipped: list[tuple[str, str, str]] = []
        sizes: set[int] = set()

        def payloads() -> Iterator[bytes]:
            written = 0
            for class_id, entry in read_task(folder.task(shard.stem)):
                try:
                    image = self._normalised(entry)
                except UnusableImageError as error:
                    skipped.append((entry.label, entry.name, shown_name(str(error))))
                    continue
                sizes.add(_one_size(entry.name, image.height, image.width, sizes))
                record = records.ImageRecord(
                    entry.name, class_id, image.data, image.height, image.width
                )
                payload = records.encode_image(record)
                written += len(payload)
                if written > self.max_file_bytes:
                    raise DataError(
                        f"{shard.file} would grow past --max_file_gb: choose a smaller --shard_mb"
                    )
                images.append((entry.name, class_id, image.digest))
                yield payload

        entry = write_shard(folder.root / shard.file, payloads())
        size = min(sizes, default=None)
        result = {"entry": entry, "images": images, "skipped": skipped, "image_size": size}
        layout.write_json(folder.result(shard.stem), result)
        return _summary(result)

    def finished(self, shard: Shard) -> Summary | None:
        """Returns the summary of a task that is done, None of another."""
        folder = ConversionFolder(epath.Path(self.folder))
        if not folder.result(shard.stem).exists():
            return None
        return _summary(read_result(folder, shard))

    def _normalised(self, entry: Entry) -> NormalisedImage:
        if entry.size > MAX_FILE_BYTES:
            raise UnusableImageError(f"a file of {entry.size} bytes")
        try:
            data = self.reader.read(entry.place)
        except Exception as error:  # a damaged member of an archive raises nearly anything
            raise UnusableImageError(f"cannot be read: {shown_name(str(error))}") from None
        return normalise(data, self.options)


def _one_size(name: str, height: int, width: int, sizes: set[int]) -> int:
    """Returns the side of a square image. Raises DataError for another shape or another size."""
    if height != width or sizes - {height}:
        others = f" among images of {min(sizes)}x{min(sizes)}" if sizes else ""
        raise DataError(
            f"{name} is {width}x{height}{others}: a dataset has square images of one size; "
            "give --image_size"
        )
    return height


def read_result(folder: ConversionFolder, shard: Shard) -> dict[str, Any]:
    """Reads the result of a task. Raises DataError.

    Its fields: `entry` of the manifest, `images` (name, class id, digest), `skipped` (class,
    name, reason), and `image_size` in pixels.
    """
    path, advice = folder.result(shard.stem), f"delete {folder.root} to begin again"
    try:
        result = layout.read_json(path, "its task did not finish")
    except DataError as error:
        raise DataError(f"{error}: {advice}") from None
    if result.keys() != _RESULT_FIELDS:
        raise DataError(f"{path}: not the result of a task: {advice}")
    return result


def _summary(result: dict[str, Any]) -> Summary:
    skipped = result["skipped"]
    first = f"{skipped[0][1]}: {skipped[0][2]}" if skipped else ""
    return Summary(len(result["images"]), len(skipped), first, result["image_size"])
