"""The checks of `data_prep.verify`: descriptions, files, records, leakage between splits.

Each returns or yields the damages that it finds, as lines that name the file and the record.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from array_record.python import array_record_module

from fsdit.data import layout, manifests, readers, records
from fsdit.data.layout import DatasetInfo, FeaturesInfo, LatentsInfo
from fsdit.data.shards import open_shard, read_record, shard_name
from fsdit.errors import DataError, system_text

_FILE_NAME = re.compile(
    r"(images|episodes|(?:features|latents)-.+)-(\d{5})-of-(\d{5})\.array_record"
)
# One image in the search for leakage: 128 bits of a hash of its pixels, and its index.
FINGERPRINT = np.dtype([("high", "u8"), ("low", "u8"), ("index", "i8")])


@dataclasses.dataclass(frozen=True)
class Damage:
    """One line for people, and the split and file that it counts for.

    leakage: the file is valid, but another split has the same image or class.
    """

    split: str
    path: Path
    text: str
    leakage: bool = False


@dataclasses.dataclass(frozen=True)
class ListedFile:
    """One file as the manifest lists it. first: index in the split of its first record."""

    path: Path
    split: str
    kind: str
    first: int
    records: int
    bytes: int
    sha256: str

    @property
    def contents(self) -> str:
        """Which records it holds, for messages: "images 6 to 11 of train"."""
        if not self.records:
            return f"no {self.kind}"
        return f"{self.kind} {self.first} to {self.first + self.records - 1} of {self.split}"


def description_damages(info: DatasetInfo, path: Path) -> Iterator[Damage]:
    """Finds classes that are in a split twice, or in two splits that may share none."""
    owner: dict[str, str] = {}
    for name, split in info.splits.items():
        seen = set()
        for label in split.classes:
            if label in seen:
                yield Damage(name, path, f"{path}: {name} has class {label!r} twice")
            elif label in owner and not info.shared_classes:
                text = f"{path}: leakage: class {label!r} is in {owner[label]} and in {name}"
                yield Damage(name, path, text, leakage=True)
            seen.add(label)
            owner.setdefault(label, name)


def list_files(
    directory: Path, split: str, info: DatasetInfo
) -> tuple[list[ListedFile], list[Damage]]:
    """Returns the files that a split's manifest lists, and what is wrong with the list."""
    folder, path = directory / split, directory / split / "manifest.json"
    try:
        manifest = layout.read_manifest(folder)
    except DataError as error:
        return [], [Damage(split, path, str(error))]
    other = manifests.other_kinds(folder, info.splits[split].digests)
    damages = [Damage(split, path, other)] if other else []
    shards, first = [], dict.fromkeys(_expected_records(info, split), 0)
    for name in sorted(manifest):
        kind = _FILE_NAME.fullmatch(name)[1]
        shard = ListedFile(folder / name, split, kind, first.get(kind, 0), **manifest[name])
        first[kind] = shard.first + shard.records
        shards.append(shard)
    damages += [
        Damage(split, path, f"{path}: {t}") for t in _wrong_files(shards, first, info, split)
    ]
    listed = {*manifest, "manifest.json"}
    damages += [
        Damage(split, extra, f"{extra}: not in the manifest: delete it, or convert again")
        for extra in sorted(folder.iterdir())
        if extra.name not in listed
    ]
    return shards, damages


def _expected_records(info: DatasetInfo, split: str) -> dict[str, int]:
    """Returns kind of file -> number of records that a split must have of it."""
    images = info.splits[split].num_images
    return {
        "images": images,
        "episodes": info.splits[split].episodes,
        **{f"features-{name}": images for name in info.features},
        **{f"latents-{name}": images for name in info.latents},
    }


def _wrong_files(
    shards: list[ListedFile], found: Mapping[str, int], info: DatasetInfo, split: str
) -> Iterator[str]:
    expected = _expected_records(info, split)
    for kind, count in found.items():
        if kind not in expected:
            yield f"lists {kind} files, dataset.json does not"
            continue
        names = [_FILE_NAME.fullmatch(s.path.name).group(2, 3) for s in shards if s.kind == kind]
        total = int(names[0][1]) if names else 1
        for i in range(total):
            if (f"{i:05d}", f"{total:05d}") not in names:
                yield f"{shard_name(kind, i, total)} is not listed"
        if len(names) > total:
            yield f"lists {len(names)} {kind} files, where {total} are all"
        if count != expected[kind]:
            yield f"lists {count} {kind} records, dataset.json makes it {expected[kind]}"
        elif kind != "episodes":
            yield from _cut_otherwise(shards, kind)


def _cut_otherwise(shards: list[ListedFile], kind: str) -> Iterator[str]:
    """Finds files with another number of records than the image file of the same index."""
    images = [shard for shard in shards if shard.kind == "images"]
    for shard, image in zip((s for s in shards if s.kind == kind), images, strict=False):
        if shard.records != image.records:
            name = shard.path.name
            yield f"{name} has {shard.records} records, {image.path.name} {image.records} images"


def stray_damages(directory: Path, info: DatasetInfo) -> Iterator[Damage]:
    """Finds files and folders that belong to no split, such as an interrupted program leaves."""
    for path in sorted(directory.iterdir()):
        if path.name == layout.ENCODING:
            advice = "start it again with the same flags, or delete this"
            yield Damage("", path, f"{path}: left by data_prep.encode: {advice}")
            continue
        stray = path.suffix in (".partial", ".next", ".array_record")
        folder = path.is_dir() and any(path.glob("*.array_record"))
        if stray or path.name == layout.REBUILDING or (folder and path.name not in info.splits):
            yield Damage("", path, f"{path}: not part of the dataset: delete it")


def file_damage(shard: ListedFile) -> str | None:
    """Returns whether a file is missing, unreadable, or of another size or sha256; None: fine."""
    path = shard.path
    if not path.is_file():
        return f"{path}: missing, though the manifest lists it: {shard.contents}"
    if (size := path.stat().st_size) != shard.bytes:
        how = "truncated" if size < shard.bytes else "too long"
        return f"{path}: {how}: {size} bytes, the manifest says {shard.bytes}: {shard.contents}"
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"{path}: cannot be read: {system_text(error)}: {shard.contents}"
    return None if found == shard.sha256 else f"{path}: its sha256 is not the manifest's"


@dataclasses.dataclass(frozen=True)
class Checked:
    """The damages found in some records of a file, and the FINGERPRINT of each valid image."""

    damages: list[str]
    fingerprints: np.ndarray


def check_records(shard: ListedFile, chosen: range, info: DatasetInfo) -> Checked:
    """Reads the chosen records of a file and checks each against the description."""
    try:
        reader = _open(shard)
    except DataError as error:
        return Checked([f"{error}: {shard.contents}"], np.empty(0, FINGERPRINT))
    check = _record_check(shard, info)
    damages, fingerprints = [], []
    for i in chosen:
        try:
            fingerprint = check(read_record(reader, shard.path, i), shard.first + i)
        except DataError as error:
            where = f"{shard.path}, record {i}"
            text = str(error)
            damages.append(text if text.startswith(where) else f"{where}: {text}")
        else:
            if fingerprint is not None:
                fingerprints.append((*fingerprint, shard.first + i))
    return Checked(damages, np.array(fingerprints, FINGERPRINT))


@functools.lru_cache(maxsize=2)
def _open(shard: ListedFile) -> array_record_module.ArrayRecordReader:
    return open_shard(shard.path, shard.records)


def _record_check(
    shard: ListedFile, info: DatasetInfo
) -> Callable[[bytes, int], tuple[int, int] | None]:
    """Returns the check of one record of a file.

    It maps (payload, index in the split) to the two halves of an image's fingerprint, or None
    for other records, and raises DataError.
    """
    split = info.splits[shard.split]
    if shard.kind == "episodes":
        return lambda payload, index: readers.check_episode(
            records.decode_episode(payload), split, split.shots
        )
    if shard.kind == "images":
        ends = np.cumsum(split.images_per_class)
        return lambda payload, index: _check_image(
            records.decode_image(payload), int(np.searchsorted(ends, index, side="right")), info
        )
    kind, _, name = shard.kind.partition("-")
    if kind == "features" and name in info.features:
        return lambda payload, index: _check_features(payload, info.features[name])
    if kind == "latents" and name in info.latents:
        return lambda payload, index: _check_latents(payload, info.latents[name])
    return lambda payload, index: None  # not described: it is enough that it can be read


def _check_features(payload: bytes, info: FeaturesInfo) -> None:
    record = records.decode_features(payload)
    readers.check_features(record, info)
    _check_finite("pooled", record.pooled)
    if record.tokens is not None:
        _check_finite("tokens", record.tokens)


def _check_latents(payload: bytes, info: LatentsInfo) -> None:
    record = records.decode_latents(payload)
    readers.check_latents(record, info)
    _check_finite("mean", record.mean)
    _check_finite("log_variance", record.log_variance)


def _check_finite(name: str, array: np.ndarray) -> None:
    if bad := int(np.count_nonzero(~np.isfinite(array))):
        raise DataError(f"{name}: {bad} of {array.size} values are not finite")


def _check_image(record: records.ImageRecord, class_id: int, info: DatasetInfo) -> tuple[int, int]:
    if record.class_id != class_id:
        raise DataError(f"image of class {record.class_id} in the place of one of {class_id}")
    pixels = records.decode_pixels(record.data, info.channels)
    shape = (info.image_size, info.image_size, info.channels)
    if pixels.shape != shape:
        raise DataError(f"image of shape {pixels.shape}, the dataset says {shape}")
    if (record.height, record.width) != pixels.shape[:2]:
        raise DataError(
            f"says {record.height} x {record.width}, its image is "
            f"{pixels.shape[0]} x {pixels.shape[1]}"
        )
    digest = hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def shared_images(images: Mapping[str, np.ndarray]) -> Iterator[list[tuple[str, int]]]:
    """Yields groups of pixel-identical images that lie in several splits, as (split, index).

    images: split -> FINGERPRINT of its images.
    """
    names = list(images)
    every = np.concatenate([*images.values(), np.empty(0, FINGERPRINT)])
    if not len(every):
        return
    owner = np.repeat(np.arange(len(names)), [len(part) for part in images.values()])
    order = np.lexsort((every["index"], owner, every["low"], every["high"]))
    every, owner = every[order], owner[order]
    key = every[["high", "low"]]
    starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    stops = np.append(starts[1:], len(every))
    mixed = owner[starts] != owner[stops - 1]  # sorted by owner within a group
    for start, stop in zip(starts[mixed], stops[mixed], strict=True):
        yield [(names[owner[i]], int(every["index"][i])) for i in range(start, stop)]


def locate(shards: list[ListedFile], split: str, index: int) -> str:
    """Returns file and record of an image, for messages."""
    for shard in shards:
        if shard.split == split and shard.kind == "images":
            place = index - shard.first
            if 0 <= place < shard.records:
                return f"{shard.path}, record {place}"
    return f"{split} image {index}"
