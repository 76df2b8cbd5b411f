"""From finished shards to a dataset: duplicates, small classes, episodes, descriptions.

Reads the results of the tasks, not the images. A shard is rewritten, by copying its
records, only if it loses some or its class ids change; doing so again changes nothing,
so this too can be stopped at any moment and started again.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np

from data_prep.conversion.inputs.entries import Row
from data_prep.conversion.jobs import Plan, Shard, WorkingFolder
from data_prep.conversion.shards import read_result
from data_prep.conversion.splits import small_class
from data_prep.conversion.tables import write_table
from fsdit.data import layout, records
from fsdit.data.layout import SplitInfo
from fsdit.data.records import Episode
from fsdit.data.shards import read_shard, write_shard
from fsdit.errors import DataError

_REPEATED = "the same pixels as another image of its class"
_ELSEWHERE = "the same pixels as an image of another class or split"
# --shared_duplicates -> which of a group are dropped, from the how-manieth on
_FIRST_TO_GO = {"none": 0, "first": 1}


@dataclasses.dataclass(frozen=True)
class FinishOptions:
    shots: int
    drop_duplicates: bool
    shared_duplicates: Literal["keep", "first", "none"]
    drop_small_classes: bool
    draw_episodes: Callable[[SplitInfo], list[Episode]]


@dataclasses.dataclass(frozen=True)
class Finished:
    splits: dict[str, SplitInfo]
    image_size: int
    skipped: list[Row]
    duplicates: list[Row]  # pixel-identical images of different classes or splits, as they were


@dataclasses.dataclass(frozen=True)
class _Images:
    """Every converted image, by column, in the order of the shards."""

    shard: np.ndarray
    position: np.ndarray  # in its shard
    class_id: np.ndarray  # in its split, as planned
    digest: np.ndarray  # (N,) of 16 bytes


@dataclasses.dataclass(frozen=True)
class _Duplicates:
    """Indices of images. repeated: those that repeat one of their class, and go.

    across: (first of its group, image) of groups in several classes or splits. dropped: those
    of these that go.
    """

    repeated: list[int]
    across: list[tuple[int, int]]
    dropped: list[int]

    @property
    def named(self) -> set[int]:
        return {*self.repeated, *(i for pair in self.across for i in pair)}


def finish(folder: WorkingFolder, plan: Plan, options: FinishOptions) -> Finished:
    """Writes all but dataset.json. Raises DataError naming a class that is too small."""
    images, sizes, skipped = _collect(folder, plan)
    if len(sizes) > 1:
        raise DataError(
            f"images of different sizes ({', '.join(f'{s}x{s}' for s in sorted(sizes))}): "
            "a dataset has square images of one size; give --image_size"
        )
    found = _duplicates(plan, images, options)
    kept = _kept(images, found)
    names = _names(folder, plan, images, found.named)
    skipped += [(*names[i], _REPEATED) for i in found.repeated]
    skipped += [(*names[i], _ELSEWHERE) for i in found.dropped]
    counts = {}
    for split in plan.classes:  # all of them before anything is written
        counts[split], left_out = _class_sizes(plan, images, kept, split, options)
        skipped += left_out
        if not counts[split]:
            raise DataError(
                f"no class of {split} has enough usable images for --shots={options.shots}"
            )
    entries = _settle_all(folder, plan, images, kept, counts)
    splits = {}
    for split in plan.classes:
        info = _split_info(plan, split, counts[split], options)
        drawn = options.draw_episodes(info)
        splits[split] = dataclasses.replace(info, episodes=len(drawn))
        layout.finish_split(folder.root / split, entries[split], drawn)
    duplicates = [(*names[i], "/".join(names[first])) for first, i in found.across]
    _remove_leftovers(folder, plan)
    write_table(folder.root / "skipped.csv", "reason", skipped)
    write_table(folder.root / "duplicates.csv", "same_pixels_as", duplicates)
    return Finished(splits, sizes.pop(), skipped, duplicates)


def _collect(folder: WorkingFolder, plan: Plan) -> tuple[_Images, set[int], list[Row]]:
    columns: list[tuple[np.ndarray, ...]] = []
    sizes: set[int] = set()
    skipped: list[Row] = [tuple(row) for row in plan.left_out]
    for i, shard in enumerate(plan.shards):
        result = read_result(folder, shard)
        count = len(result["images"])
        digests = b"".join(bytes.fromhex(digest) for _, _, digest in result["images"])
        columns.append(
            (
                np.full(count, i, np.int32),
                np.arange(count, dtype=np.int32),
                np.array([class_id for _, class_id, _ in result["images"]], np.int32),
                np.frombuffer(digests, "S16"),
            )
        )
        sizes |= {result["image_size"]} - {None}
        skipped += [(shard.split, label, name, why) for label, name, why in result["skipped"]]
    return _Images(*map(np.concatenate, zip(*columns, strict=True))), sizes, skipped


def _kept(images: _Images, found: _Duplicates) -> np.ndarray:
    kept = np.ones(len(images.shard), bool)
    kept[found.repeated] = False
    kept[found.dropped] = False
    return kept


def _duplicates(plan: Plan, images: _Images, options: FinishOptions) -> _Duplicates:
    """The first of a class stays, wherever it is. Nothing is repeated where nothing is dropped."""
    order = np.argsort(images.digest, kind="stable")
    digests = images.digest[order]
    starts = np.flatnonzero(np.r_[True, digests[1:] != digests[:-1]])
    ends = np.r_[starts[1:], len(order)]
    repeated, across, dropped = [], [], []
    for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
        seen: dict[tuple[str, str], int] = {}
        members = []
        for i in sorted(order[start:end].tolist()):
            split = plan.shards[images.shard[i]].split
            label = plan.classes[split][images.class_id[i]]
            if options.drop_duplicates and any(label == other for _, other in seen):
                repeated.append(i)
                continue
            seen[split, label] = i
            members.append(i)
        if len(seen) > 1:
            across += [(members[0], i) for i in members]
            dropped += members[_FIRST_TO_GO.get(options.shared_duplicates, len(members)) :]
    return _Duplicates(sorted(repeated), across, sorted(dropped))


def _names(
    folder: WorkingFolder, plan: Plan, images: _Images, wanted: set[int]
) -> dict[int, tuple[str, str, str]]:
    """(split, class, file) of the images wanted, read again from the results."""
    found = {}
    of_shard: dict[int, list[int]] = {}
    for i in sorted(wanted):
        of_shard.setdefault(int(images.shard[i]), []).append(i)
    for number, members in of_shard.items():
        shard = plan.shards[number]
        rows = read_result(folder, shard)["images"]
        for i in members:
            name, class_id, _ = rows[images.position[i]]
            found[i] = (shard.split, plan.classes[shard.split][class_id], name)
    return found


def _class_sizes(
    plan: Plan, images: _Images, kept: np.ndarray, split: str, options: FinishOptions
) -> tuple[dict[int, int], list[Row]]:
    """(planned class id -> images, for the classes that stay; rows of those that do not)."""
    of_split = np.array([shard.split == split for shard in plan.shards])[images.shard]
    found = Counter(images.class_id[of_split & kept].tolist())
    counts, left_out = {}, []
    for class_id, label in enumerate(plan.classes[split]):
        count = found[class_id]
        if count > options.shots:
            counts[class_id] = count
            continue
        reason = f"{count} usable images, --shots={options.shots} needs {options.shots + 1}"
        if not options.drop_small_classes:
            raise DataError(small_class(split, label, reason))
        left_out.append((split, label, "", reason))
    return counts, left_out


def small_classes(folder: WorkingFolder, plan: Plan, options: FinishOptions) -> dict[str, str]:
    """Class -> why it has too few usable images, of those that another could replace."""
    images, _, _ = _collect(folder, plan)
    kept = _kept(images, _duplicates(plan, images, options))
    options = dataclasses.replace(options, drop_small_classes=True)
    rows = [row for s in plan.classes for row in _class_sizes(plan, images, kept, s, options)[1]]
    return {label: reason for _, label, _, reason in rows}


def _settle_all(
    folder: WorkingFolder,
    plan: Plan,
    images: _Images,
    kept: np.ndarray,
    counts: Mapping[str, Mapping[int, int]],
) -> dict[str, dict[str, Any]]:
    """split -> file name -> manifest entry"""
    bounds = np.searchsorted(images.shard, np.arange(len(plan.shards) + 1))
    entries: dict[str, dict[str, Any]] = {split: {} for split in plan.classes}
    for shard, start, end in zip(plan.shards, bounds[:-1], bounds[1:], strict=True):
        new_ids = {old: new for new, old in enumerate(counts[shard.split])}
        name = shard.file.split("/")[1]
        entries[shard.split][name] = _settle(folder, shard, kept[start:end], new_ids)
    return entries


def _settle(
    folder: WorkingFolder, shard: Shard, kept: np.ndarray, new_ids: Mapping[int, int]
) -> dict[str, Any]:
    """The manifest entry of a shard, rewritten if it holds what it should not."""
    result = read_result(folder, shard)
    wanted = {
        name: new_ids[class_id]
        for (name, class_id, _), keep in zip(result["images"], kept, strict=True)
        if keep and class_id in new_ids
    }
    if wanted == {name: class_id for name, class_id, _ in result["images"]}:
        return result["entry"]

    def payloads() -> Iterable[bytes]:
        for payload in read_shard(folder.root / shard.file):
            record = records.decode_image(payload)
            if record.key in wanted:
                yield records.encode_image(dataclasses.replace(record, class_id=wanted[record.key]))

    return write_shard(folder.root / shard.file, payloads())


def _split_info(
    plan: Plan, split: str, counts: Mapping[int, int], options: FinishOptions
) -> SplitInfo:
    return SplitInfo(
        classes=tuple(plan.classes[split][c] for c in counts),
        images_per_class=tuple(counts.values()),
        episodes=0,
        shots=options.shots,
    )


def _remove_leftovers(folder: WorkingFolder, plan: Plan) -> None:
    """Temporary files of attempts that were killed."""
    for directory in (folder.root, *(folder.root / split for split in plan.classes)):
        for path in directory.iterdir():  # a glob would take brackets in the path for a pattern
            if path.name.endswith(".partial"):
                path.unlink()
