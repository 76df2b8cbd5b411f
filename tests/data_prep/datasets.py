"""A dataset of a few small images, made by the format's own writer, for tests to damage."""

import dataclasses
from pathlib import Path

import numpy as np

from fsdit.data import layout, records
from fsdit.data.episodes import draw_episodes
from fsdit.data.readers import split_images
from fsdit.data.records import ImageRecord
from fsdit.data.shards import open_shard, read_record, shard_name, write_shard

SIZE = 6
SHOTS = 2
CLASSES = {"train": ("ant", "bee", "cat"), "val": ("dog", "eel"), "test": ("fox", "gnu")}
IMAGES = (4, 3, 5)


def pixels(split: str, index: int, seed: int = 0) -> np.ndarray:
    key = [seed, *split.encode(), index]
    return np.random.default_rng(key).integers(0, 256, (SIZE, SIZE, 1), np.uint8)


def split_info(split: str, classes: tuple[str, ...] | None = None) -> layout.SplitInfo:
    classes = classes or CLASSES[split]
    sizes = IMAGES[: len(classes)]
    return layout.SplitInfo(classes, sizes, episodes=3 * len(classes), shots=SHOTS)


def images(split: str, info: layout.SplitInfo, seed: int = 0) -> list[ImageRecord]:
    classes = [c for c, count in enumerate(info.images_per_class) for _ in range(count)]
    return [
        ImageRecord(f"{split}/{i}", c, records.encode_pixels(pixels(split, i, seed)), SIZE, SIZE)
        for i, c in enumerate(classes)
    ]


def write(directory: Path, seed: int = 0, **changes) -> Path:
    """Writes a dataset with two image files in each split; `changes` go to its description."""
    infos = {name: split_info(name) for name in CLASSES}
    for name, info in infos.items():
        drawn = draw_episodes(info, SHOTS, 3, seed)
        layout.write_split(directory / name, images(name, info, seed), drawn, shards=2)
    info = layout.DatasetInfo(SIZE, 1, infos, "command", seed)
    layout.write_dataset_json(directory, dataclasses.replace(info, **changes))
    return directory


def first_classes(source: Path, directory: Path, counts: dict[str, int]) -> Path:
    """Writes a dataset of the first classes of another one. counts: their number, by split."""
    info = layout.read_dataset_info(source)
    splits = {}
    for name, count in counts.items():
        complete = info.split(name)
        sizes = complete.images_per_class[:count]
        kept = layout.SplitInfo(complete.classes[:count], sizes, episodes=3 * count, shots=SHOTS)
        read, classes = split_images(source, info, name), np.repeat(range(count), sizes)
        written = [
            ImageRecord(f"{name}/{i}", int(c), records.encode_pixels(read[i]), *read[i].shape[:2])
            for i, c in enumerate(classes)
        ]
        layout.write_split(directory / name, written, draw_episodes(kept, SHOTS, 3, seed=0))
        splits[name] = kept
    layout.write_dataset_json(directory, dataclasses.replace(info, splits=splits))
    return directory


def shard(directory: Path, split: str = "train", kind: str = "images", index: int = 1) -> Path:
    count = 1 if kind == "episodes" else 2
    return directory / split / shard_name(kind, min(index, count - 1), count)


def rewrite(path: Path, change) -> None:
    """Rewrites a file's records through `change`; manifest and dataset.json agree with it."""
    manifest = layout.read_manifest(path.parent)
    reader = open_shard(path, manifest[path.name]["records"])
    payloads = change([read_record(reader, path, i) for i in range(reader.num_records())])
    reader.close()
    manifest[path.name] = write_shard(path, payloads)
    layout.write_json(path.parent / "manifest.json", manifest)
    dataset = path.parent.parent
    layout.write_dataset_json(dataset, layout.read_dataset_json(dataset))


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
