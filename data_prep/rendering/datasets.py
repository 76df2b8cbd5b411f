"""Rendered classes -> a dataset: its splits, its files, and their publication."""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from scipy.cluster.hierarchy import DisjointSet

from fsdit.data import episodes, layout, records
from fsdit.errors import ConfigError

# class -> (key of the record, pixels) of each of its images
Classes = Mapping[str, Sequence[tuple[str, UInt8[np.ndarray, "H W C"]]]]

_SPLIT_SHARES = {"train": 0.70, "val": 0.14}  # test: the rest


def lookalikes(classes: Classes) -> list[list[str]]:
    """Groups classes that share a pixel-identical image, such as Latin and Greek A.

    All classes of a group go to one split; otherwise training would see a test image.
    """
    groups = DisjointSet(classes)
    first: dict[bytes, str] = {}
    for name, images in classes.items():
        for _, pixels in images:
            groups.merge(first.setdefault(pixels.tobytes(), name), name)
    return sorted(sorted(group) for group in groups.subsets())


def split_classes(groups: list[list[str]], seed: int) -> dict[str, list[str]]:
    """Shuffles the groups by seed and deals them to train, val and test by share."""
    total = sum(map(len, groups))
    order = [groups[i] for i in np.random.default_rng(seed).permutation(len(groups))]
    splits: dict[str, list[str]] = {name: [] for name in layout.SPLITS}
    for group in order:
        name = next(
            (s for s, share in _SPLIT_SHARES.items() if len(splits[s]) < share * total), "test"
        )
        splits[name] += group
    return {name: sorted(members) for name, members in splits.items()}


def begin(output: Path) -> Path:
    """Returns the folder to write to before `output` gets its name.

    Removes what a killed start has left there. Raises ConfigError where `output` holds
    something, or something else has the folder's name.
    """
    if not layout.is_free(output):
        raise ConfigError(f"--output_dir={output} exists and is not empty: name a new folder")
    partial = output.with_name(output.name + ".partial")
    _remove_interrupted(partial)
    return partial


def _remove_interrupted(partial: Path) -> None:
    if not partial.exists():
        return
    ours = {*layout.SPLITS, "dataset.json"}
    if not partial.is_dir() or any(
        path.name not in ours and path.suffix != ".partial" for path in partial.iterdir()
    ):
        raise ConfigError(f"{partial} is not of an interrupted start: move it away first")
    shutil.rmtree(partial)


def write(
    directory: Path,
    classes: Classes,
    about: layout.DatasetInfo,
    shots: int,
    episodes_per_class: int,
) -> layout.DatasetInfo:
    """Writes the files of a dataset. Returns its description, which is `about` with the splits.

    about: its seed decides the splits and the episodes. Raises DataError for a K too large.
    """
    infos = {}
    for name, members in split_classes(lookalikes(classes), about.seed).items():
        info = layout.SplitInfo(
            classes=tuple(members),
            images_per_class=tuple(len(classes[c]) for c in members),
            episodes=episodes_per_class * len(members),
            shots=shots,
        )
        images = [
            records.ImageRecord(key, i, records.encode_pixels(pixels), *pixels.shape[:2])
            for i, c in enumerate(members)
            for key, pixels in classes[c]
        ]
        drawn = episodes.draw_episodes(info, shots, episodes_per_class, about.seed)
        layout.write_split(directory / name, images, drawn)
        infos[name] = info
    description = dataclasses.replace(about, splits=infos)
    layout.write_dataset_json(directory, description)
    return description
