"""The plan of a conversion: which images go into which file, before any is decoded.

A pure function of the listed entries and the flags. It is kept in the working folder,
one small file a task, so that a task can be run by any process of any machine, and a
conversion that was stopped goes on with the same files.
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
    """One task: consecutive images of a split make its file `index` of `count`."""

    split: str
    index: int
    count: int

    @property
    def file(self) -> str:
        """Path of the file in the dataset."""
        return f"{self.split}/{shard_name('images', self.index, self.count)}"

    @property
    def stem(self) -> str:
        """Name of its task and result in the working folder."""
        return f"{self.split}-{self.index:05d}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is left to know once the tasks are written."""

    classes: Mapping[str, Sequence[str]]  # of each split
    shards: Sequence[Shard]
    left_out: Sequence[Row]
    shared_classes: bool
    num_images: int
    listing: str  # sum of the entries
    unused_classes: int = 0
    dropped: Sequence[str] = ()  # classes that an earlier plan had, too small as it turned out


@dataclasses.dataclass(frozen=True)
class WorkingFolder:
    """`D.partial`: a dataset in the making, and `work` for what is gone in the end."""

    root: epath.Path

    @property
    def work(self) -> epath.Path:
        return self.root / "work"

    @property
    def spool(self) -> epath.Path:
        return self.work / "spool"

    @property
    def plan(self) -> epath.Path:
        return self.work / "plan.json"

    @property
    def dropped(self) -> epath.Path:
        """Classes that turned out to be too small, and why."""
        return self.work / "dropped.json"

    def task(self, stem: str) -> epath.Path:
        return self.work / f"{stem}.task.json"

    def result(self, stem: str) -> epath.Path:
        return self.work / f"{stem}.result.json"


def make(
    folder: WorkingFolder,
    assignment: Assignment,
    settings: Mapping[str, Any],
    options: ImageOptions,
    shard_bytes: int,
) -> Plan:
    """Writes the tasks, then the plan; or finds the same ones. Raises ConfigError.

    settings: everything that decides the output; a folder begun with others is refused.
    """
    listing = _listing_sum(assignment.splits)
    if folder.plan.exists():
        check_same(folder, settings)
        plan = _read(folder)
        if tuple(plan.dropped) == assignment.dropped:
            if plan.listing != listing:
                raise ConfigError(
                    f"{folder.root} was begun when --input had other files: delete it to begin "
                    "again"
                )
            return plan
    cuts = {name: _cut(c, options, shard_bytes) for name, c in assignment.splits.items()}
    shards = []
    for split, parts in cuts.items():
        (folder.root / split).mkdir(parents=True, exist_ok=True)
        for i, images in enumerate(parts):
            shard = Shard(split, i, len(parts))
            _write_task(folder, shard, images)
            shards.append(shard)
    _remove_others(folder, shards)
    plan = Plan(
        classes={name: list(classes) for name, classes in assignment.splits.items()},
        shards=shards,
        left_out=assignment.left_out,
        shared_classes=assignment.shared_classes,
        num_images=sum(len(part) for parts in cuts.values() for part in parts),
        listing=listing,
        unused_classes=assignment.unused_classes,
        dropped=assignment.dropped,
    )
    write_json(folder.plan, {"settings": dict(settings), "plan": dataclasses.asdict(plan)})
    return plan


def dropped_classes(folder: WorkingFolder) -> dict[str, str]:
    """Classes that turned out to be too small, and why."""
    if not folder.dropped.exists():
        return {}
    try:
        return {str(k): str(v) for k, v in json.loads(folder.dropped.read_text()).items()}
    except (ValueError, AttributeError, RecursionError):
        raise DataError(f"{folder.dropped}: damaged: delete {folder.root} to begin again") from None


def drop_classes(folder: WorkingFolder, more: Mapping[str, str]) -> None:
    """The next plan does without these classes too."""
    write_json(folder.dropped, {**dropped_classes(folder), **more})


def check_same(folder: WorkingFolder, settings: Mapping[str, Any]) -> None:
    """Raises ConfigError when the folder was begun with other settings than these."""
    begun = _plan_json(folder)["settings"]
    for name, value in json.loads(json.dumps(settings)).items():
        if begun.get(name) != value:
            raise ConfigError(
                f"{folder.root} was begun with {name}={begun.get(name)}, this is --{name}={value}: "
                "go on with the same flags, or delete it"
            )


def _read(folder: WorkingFolder) -> Plan:
    values = _plan_json(folder)["plan"]
    try:
        values["shards"] = [Shard(**shard) for shard in values["shards"]]
        return Plan(**values)
    except (KeyError, TypeError, AttributeError):
        raise DataError(_not_a_plan(folder)) from None


def _plan_json(folder: WorkingFolder) -> dict[str, Any]:
    try:
        values = json.loads(folder.plan.read_text())
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or not all(
        isinstance(values.get(part), dict) for part in ("settings", "plan")
    ):
        raise DataError(_not_a_plan(folder))
    return values


def _not_a_plan(folder: WorkingFolder) -> str:
    return f"{folder.plan}: damaged, or of another version: delete {folder.root} to begin again"


def _listing_sum(splits: Splits) -> str:
    digest = hashlib.sha256()
    for split, classes in splits.items():
        for label, images in classes.items():
            for image in images:
                digest.update(repr((split, label, image.name, image.size)).encode())
    return digest.hexdigest()


def _cut(
    classes: Mapping[str, Sequence[Entry]], options: ImageOptions, shard_bytes: int
) -> list[list[tuple[int, Entry]]]:
    """(class id, image), class by class, cut where a file would grow past shard_bytes."""
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


def _write_task(folder: WorkingFolder, shard: Shard, images: Sequence[tuple[int, Entry]]) -> None:
    """The result of an earlier plan stays where its task was the same."""
    rows = [[c, e.name, e.label, e.size, e.place] for c, e in images]
    text = json.dumps(rows)
    task, result = folder.task(shard.stem), folder.result(shard.stem)
    if result.exists() and (
        not (folder.root / shard.file).exists() or not task.exists() or task.read_text() != text
    ):
        result.unlink()  # before its task changes, in case this is stopped in between
    task.write_text(text)


def _remove_others(folder: WorkingFolder, shards: Sequence[Shard]) -> None:
    """Files of an earlier plan that this one has no use for."""
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
    """(class id, image) of each image of a task, in order."""
    for class_id, name, label, size, place in json.loads(path.read_text()):
        yield class_id, Entry(name, label, None, size, place)
