"""The job list of a conversion: which images go into which shard, before any is decoded.

It is a pure function of the listed entries and the flags. The conversion folder keeps it, one
small file for each task, so that any process of any machine can run a task, and a conversion
that was stopped goes on with the same shards.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from data_prep.conversion.images import ImageOptions
from data_prep.conversion.inputs.entries import Entry, Row
from data_prep.conversion.splits import Assignment, Splits
from fsdit.data.layout import write_json
from fsdit.data.shards import shard_name
from fsdit.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class Shard:
    """One task: consecutive images of a split, which become its image file `index` of `count`."""

    split: str
    index: int
    count: int

    @property
    def file(self) -> str:
        """Path of the file in the dataset."""
        return f"{self.split}/{shard_name('images', self.index, self.count)}"

    @property
    def stem(self) -> str:
        """Name of its task and of its result in the conversion folder."""
        return f"{self.split}-{self.index:05d}"


@dataclasses.dataclass(frozen=True)
class JobList:
    """All tasks, and what the tasks themselves do not say. plan.json holds it in this form.

    classes: split -> names of its classes. left_out, shared_classes, unused_classes, dropped:
    those of the Assignment. num_images: images of all tasks. listing: sha256 of the names and
    sizes of all entries.
    """

    classes: Mapping[str, Sequence[str]]
    shards: Sequence[Shard]
    left_out: Sequence[Row]
    shared_classes: bool
    num_images: int
    listing: str
    unused_classes: int = 0
    dropped: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class ConversionFolder:
    """`D.partial`: a dataset in the making, with the files of the conversion itself in `work`.

    `work` is deleted when the dataset is complete.
    """

    root: epath.Path

    @property
    def work(self) -> epath.Path:
        return self.root / "work"

    @property
    def spool(self) -> epath.Path:
        return self.work / "spool"

    @property
    def test_spool(self) -> epath.Path:
        return self.work / "test_spool"

    @property
    def job_list(self) -> epath.Path:
        return self.work / "plan.json"

    @property
    def dropped(self) -> epath.Path:
        """The file of classes that turned out to be too small."""
        return self.work / "dropped.json"

    def task(self, stem: str) -> epath.Path:
        return self.work / f"{stem}.task.json"

    def result(self, stem: str) -> epath.Path:
        return self.work / f"{stem}.result.json"


def make(
    folder: ConversionFolder,
    assignment: Assignment,
    settings: Mapping[str, Any],
    options: ImageOptions,
    shard_bytes: int,
) -> JobList:
    """Writes the tasks, then the job list, or reads those that an earlier start has written.

    settings: all that decides the output. Raises ConfigError where the folder was begun with
    other settings or another input.
    """
    listing = _listing_digest(assignment.splits)
    if folder.job_list.exists():
        check_same(folder, settings)
        job_list = _read(folder)
        if tuple(job_list.dropped) == assignment.dropped:
            if job_list.listing != listing:
                raise ConfigError(
                    f"{folder.root} was begun when --input had other files: delete it to begin "
                    "again"
                )
            return job_list
    cuts = {name: _cut(c, options, shard_bytes) for name, c in assignment.splits.items()}
    shards = []
    for split, parts in cuts.items():
        (folder.root / split).mkdir(parents=True, exist_ok=True)
        for i, images in enumerate(parts):
            shard = Shard(split, i, len(parts))
            _write_task(folder, shard, images)
            shards.append(shard)
    _remove_others(folder, shards)
    job_list = JobList(
        classes={name: list(classes) for name, classes in assignment.splits.items()},
        shards=shards,
        left_out=assignment.left_out,
        shared_classes=assignment.shared_classes,
        num_images=sum(len(part) for parts in cuts.values() for part in parts),
        listing=listing,
        unused_classes=assignment.unused_classes,
        dropped=assignment.dropped,
    )
    write_json(folder.job_list, {"settings": dict(settings), "plan": dataclasses.asdict(job_list)})
    return job_list


def dropped_classes(folder: ConversionFolder) -> dict[str, str]:
    """Returns class -> reason for the classes that turned out to be too small."""
    if not folder.dropped.exists():
        return {}
    try:
        return {str(k): str(v) for k, v in json.loads(folder.dropped.read_text()).items()}
    except (ValueError, AttributeError, RecursionError):
        raise DataError(f"{folder.dropped}: damaged: delete {folder.root} to begin again") from None


def drop_classes(folder: ConversionFolder, more: Mapping[str, str]) -> None:
    """Records that the next job list has to do without these classes too."""
    write_json(folder.dropped, {**dropped_classes(folder), **more})


def check_same(folder: ConversionFolder, settings: Mapping[str, Any]) -> None:
    """Raises ConfigError when the folder was begun with other settings than these."""
    begun = _stored_json(folder)["settings"]
    for name, value in json.loads(json.dumps(settings)).items():
        if begun.get(name) != value:
            raise ConfigError(
                f"{folder.root} was begun with {name}={begun.get(name)}, this is --{name}={value}: "
                "go on with the same flags, or delete it"
            )


def _read(folder: ConversionFolder) -> JobList:
    values = _stored_json(folder)["plan"]
    try:
        values["shards"] = [Shard(**shard) for shard in values["shards"]]
        return JobList(**values)
    except (KeyError, TypeError, AttributeError):
        raise DataError(_not_a_job_list(folder)) from None


def _stored_json(folder: ConversionFolder) -> dict[str, Any]:
    try:
        values = json.loads(folder.job_list.read_text())
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or not all(
        isinstance(values.get(part), dict) for part in ("settings", "plan")
    ):
        raise DataError(_not_a_job_list(folder))
    return values


def _not_a_job_list(folder: ConversionFolder) -> str:
    return f"{folder.job_list}: damaged, or of another version: delete {folder.root} to begin again"


def _listing_digest(splits: Splits) -> str:
    """Returns a sha256 over split, class, name and size of every entry."""
    digest = hashlib.sha256()
    for split, classes in splits.items():
        for label, images in classes.items():
            for image in images:
                digest.update(repr((split, label, image.name, image.size)).encode())
    return digest.hexdigest()


def _cut(
    classes: Mapping[str, Sequence[Entry]], options: ImageOptions, shard_bytes: int
) -> list[list[tuple[int, Entry]]]:
    """Returns (class id, image) class by class, cut where a file would grow past shard_bytes."""
    parts: list[list[tuple[int, Entry]]] = [[]]
    filled = 0
    for class_id, images in enumerate(classes.values()):
        for image in images:
            size = options.estimated_bytes(image.size)
            if parts[-1] and filled + size > shard_bytes:
                parts.append([])
                filled = 0
            parts[-1].append((class_id, image))
            filled += size
    return parts


def _write_task(
    folder: ConversionFolder, shard: Shard, images: Sequence[tuple[int, Entry]]
) -> None:
    """Writes a task; a result that an earlier job list left stays if its task was the same."""
    rows = [[c, e.name, e.label, e.size, e.place] for c, e in images]
    text = json.dumps(rows)
    task, result = folder.task(shard.stem), folder.result(shard.stem)
    if result.exists() and (
        not (folder.root / shard.file).exists() or not task.exists() or task.read_text() != text
    ):
        result.unlink()  # first, so that no stop can leave it beside another task
    task.write_text(text)


def _remove_others(folder: ConversionFolder, shards: Sequence[Shard]) -> None:
    """Deletes files of an earlier job list that this one does not use."""
    kept = {folder.task(s.stem).name for s in shards} | {folder.result(s.stem).name for s in shards}
    for path in folder.work.iterdir():
        if path.name.endswith((".task.json", ".result.json")) and path.name not in kept:
            path.unlink()
    files = {shard.file for shard in shards}
    for split in {shard.split for shard in shards}:
        for path in (folder.root / split).iterdir():
            if path.name.endswith(".array_record") and f"{split}/{path.name}" not in files:
                path.unlink()


def read_task(path: epath.Path) -> Iterator[tuple[int, Entry]]:
    """Yields (class id, image) for each image of a task, in order."""
    for class_id, name, label, size, place in json.loads(path.read_text()):
        yield class_id, Entry(name, label, None, size, place)
