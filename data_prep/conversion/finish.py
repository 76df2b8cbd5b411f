"""From finished shards to a dataset: duplicates, small classes, episodes, descriptions.

Finishing reads the results of the tasks, not the images. It rewrites a shard, by copying its
records, only where it loses some or its class ids change. Doing so twice changes nothing, so
finishing too can be stopped at any moment and started again.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np

from data_prep.conversion.inputs.entries import Row
from data_prep.conversion.jobs import ConversionFolder, JobList, Shard
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
# --shared_duplicates -> how many images of a group of duplicates stay; "keep": all.
_STAYING = {"none": 0, "first": 1}


@dataclasses.dataclass(frozen=True)
class FinishOptions:
    """What the flags of the program say about duplicates, small classes and episodes."""

    shots: int
    drop_duplicates: bool
    shared_duplicates: Literal["keep", "first", "none"]
    drop_small_classes: bool
    draw_episodes: Callable[[SplitInfo], list[Episode]]


@dataclasses.dataclass(frozen=True)
class Finished:
    """What the finished dataset holds, and the rows of its two lists.

    image_size: height and width in pixels. skipped: rows of skipped.csv. duplicates: rows of
    duplicates.csv, pixel-identical images of different classes or splits, also those that
    were dropped.
    """

    splits: dict[str, SplitInfo]
    image_size: int
    skipped: list[Row]
    duplicates: list[Row]


@dataclasses.dataclass(frozen=True)
class _Images:
    """All N converted images in the order of the shards, one array (N,) for each property.

    shard: index of its shard. position: index in its shard. class_id: its class in the job
    list's numbering of its split. digest: 16 bytes of a hash of its pixels.
    """

    shard: np.ndarray
    position: np.ndarray
    class_id: np.ndarray
    digest: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Duplicates:
    """Groups of pixel-identical images, as indices into _Images.

    repeated: images that repeat one of their own class, and are left out. across: (first of
    its group, image) for groups that lie in several classes or splits. dropped: the images
    of such groups that are left out.
    """

    repeated: list[int]
    across: list[tuple[int, int]]
    dropped: list[int]

    @property
    def named(self) -> set[int]:
        return {*self.repeated, *(i for pair in self.across for i in pair)}


def finish(folder: ConversionFolder, job_list: JobList, options: FinishOptions) -> Finished:
    """Writes everything but dataset.json. Raises DataError naming a class that is too small."""
    images, sizes, skipped = _collect(folder, job_list)
    if len(sizes) > 1:
        raise DataError(
            f"images of different sizes ({', '.join(f'{s}x{s}' for s in sorted(sizes))}): "
            "a dataset has square images of one size; give --image_size"
        )
    found = _duplicates(job_list, images, options)
    kept = _kept(images, found)
    names = _names(folder, job_list, images, found.named)
    skipped += [(*names[i], _REPEATED) for i in found.repeated]
    skipped += [(*names[i], _ELSEWHERE) for i in found.dropped]
    counts = {}
    for split in job_list.classes:  # all splits are checked before anything is written
        counts[split], left_out = _class_sizes(job_list, images, kept, split, options)
        skipped += left_out
        if not counts[split]:
            raise DataError(
                f"no class of {split} has enough usable images for --shots={options.shots}"
            )
    entries = _settle_all(folder, job_list, images, kept, counts)
    splits = {}
    for split in job_list.classes:
        info = _split_info(job_list, split, counts[split], options)
        drawn = options.draw_episodes(info)
        splits[split] = dataclasses.replace(info, episodes=len(drawn))
        layout.finish_split(folder.root / split, entries[split], drawn)
    duplicates = [(*names[i], "/".join(names[first])) for first, i in found.across]
    _remove_leftovers(folder, job_list)
    write_table(folder.root / "skipped.csv", "reason", skipped)
    write_table(folder.root / "duplicates.csv", "same_pixels_as", duplicates)
    return Finished(splits, sizes.pop(), skipped, duplicates)


def _collect(folder: ConversionFolder, job_list: JobList) -> tuple[_Images, set[int], list[Row]]:
    """Reads all results: (images, sizes of images in pixels, rows of what is left out)."""
    columns: list[tuple[np.ndarray, ...]] = []
    sizes: set[int] = set()
    skipped: list[Row] = [tuple(row) for row in job_list.left_out]
    for i, shard in enumerate(job_list.shards):
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
    shard, position, class_id, digest = (
        np.concatenate(parts) for parts in zip(*columns, strict=True)
    )
    return _Images(shard, position, class_id, digest), sizes, skipped


def _kept(images: _Images, found: _Duplicates) -> np.ndarray:
    kept = np.ones(len(images.shard), bool)
    kept[found.repeated] = False
    kept[found.dropped] = False
    return kept


def _duplicates(job_list: JobList, images: _Images, options: FinishOptions) -> _Duplicates:
    """Finds pixel-identical images.

    Of a group in one class, in any split, the first stays and the others are `repeated`,
    unless the flags keep duplicates.
    """
    order = np.argsort(images.digest, kind="stable")
    digests = images.digest[order]
    starts = np.flatnonzero(np.r_[True, digests[1:] != digests[:-1]])
    ends = np.r_[starts[1:], len(order)]
    repeated, across, dropped = [], [], []
    for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
        seen: dict[tuple[str, str], int] = {}
        members = []
        for i in sorted(order[start:end].tolist()):
            split = job_list.shards[images.shard[i]].split
            label = job_list.classes[split][images.class_id[i]]
            if options.drop_duplicates and any(label == other for _, other in seen):
                repeated.append(i)
                continue
            seen[split, label] = i
            members.append(i)
        if len(seen) > 1:
            across += [(members[0], i) for i in members]
            dropped += members[_STAYING.get(options.shared_duplicates, len(members)) :]
    return _Duplicates(sorted(repeated), across, sorted(dropped))


def _names(
    folder: ConversionFolder, job_list: JobList, images: _Images, wanted: set[int]
) -> dict[int, tuple[str, str, str]]:
    """Reads (split, class, file) of the wanted images from the results."""
    found = {}
    of_shard: dict[int, list[int]] = {}
    for i in sorted(wanted):
        of_shard.setdefault(int(images.shard[i]), []).append(i)
    for index, members in of_shard.items():
        shard = job_list.shards[index]
        rows = read_result(folder, shard)["images"]
        for i in members:
            name, class_id, _ = rows[images.position[i]]
            found[i] = (shard.split, job_list.classes[shard.split][class_id], name)
    return found


def _class_sizes(
    job_list: JobList, images: _Images, kept: np.ndarray, split: str, options: FinishOptions
) -> tuple[dict[int, int], list[Row]]:
    """Returns class id -> number of images for classes that stay, and rows of the others.

    The ids are those of the job list. Raises DataError for a small class that may not go.
    """
    of_split = np.array([shard.split == split for shard in job_list.shards])[images.shard]
    found = Counter(images.class_id[of_split & kept].tolist())
    counts, left_out = {}, []
    for class_id, label in enumerate(job_list.classes[split]):
        count = found[class_id]
        if count > options.shots:
            counts[class_id] = count
            continue
        reason = f"{count} usable images, --shots={options.shots} needs {options.shots + 1}"
        if not options.drop_small_classes:
            raise DataError(small_class(split, label, reason))
        left_out.append((split, label, "", reason))
    return counts, left_out


def small_classes(
    folder: ConversionFolder, job_list: JobList, options: FinishOptions
) -> dict[str, str]:
    """Returns class -> why it has too few usable images, for classes that others can replace."""
    images, _, _ = _collect(folder, job_list)
    kept = _kept(images, _duplicates(job_list, images, options))
    options = dataclasses.replace(options, drop_small_classes=True)
    rows = [
        row for s in job_list.classes for row in _class_sizes(job_list, images, kept, s, options)[1]
    ]
    return {label: reason for _, label, _, reason in rows}


def _settle_all(
    folder: ConversionFolder,
    job_list: JobList,
    images: _Images,
    kept: np.ndarray,
    counts: Mapping[str, Mapping[int, int]],
) -> dict[str, dict[str, Any]]:
    """Settles all shards. Returns split -> file name -> manifest entry."""
    bounds = np.searchsorted(images.shard, np.arange(len(job_list.shards) + 1))
    entries: dict[str, dict[str, Any]] = {split: {} for split in job_list.classes}
    for shard, start, end in zip(job_list.shards, bounds[:-1], bounds[1:], strict=True):
        new_ids = {old: new for new, old in enumerate(counts[shard.split])}
        name = shard.file.split("/")[1]
        entries[shard.split][name] = _settle(folder, shard, kept[start:end], new_ids)
    return entries


def _settle(
    folder: ConversionFolder, shard: Shard, kept: np.ndarray, new_ids: Mapping[int, int]
) -> dict[str, Any]:
    """Rewrites a shard whose records or class ids change. Returns its manifest entry.

    kept: for each record, whether it stays. new_ids: class id of the job list -> class id.
    """
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
    job_list: JobList, split: str, counts: Mapping[int, int], options: FinishOptions
) -> SplitInfo:
    return SplitInfo(
        classes=tuple(job_list.classes[split][c] for c in counts),
        images_per_class=tuple(counts.values()),
        episodes=0,
        shots=options.shots,
    )


def _remove_leftovers(folder: ConversionFolder, job_list: JobList) -> None:
    """Deletes temporary files of attempts that were killed."""
    for directory in (folder.root, *(folder.root / split for split in job_list.classes)):
        for path in directory.iterdir():  # a glob would take brackets in the path for a pattern
            if path.name.endswith(".partial"):
                path.unlink()
