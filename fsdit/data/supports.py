"""Support pictures to draw from: a user's files, or episodes of a dataset."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from fsdit.config import Config, FeaturesConfig
from fsdit.data.input import evaluation_examples
from fsdit.data.photos import read_photo
from fsdit.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True, eq=False)
class SupportSet:
    """Pictures of one class. origin: where they are found again, ready for JSON."""

    origin: dict[str, Any]
    images: UInt8[np.ndarray, "K H W C"]


def from_files(names: Iterable[str | Path], image_size: int, channels: int) -> SupportSet:
    """Picture files in the order given; a folder stands for its files in order of name.

    Raises DataError for a file that is missing or no picture, and for an empty folder.
    """
    files = [file for name in names for file in _files(Path(name).expanduser())]
    if not files:
        raise DataError("no support pictures are named: give one or more files, or a folder")
    images = [read_photo(file, image_size, channels) for file in files]
    return SupportSet({"files": [str(file.absolute()) for file in files]}, np.stack(images))


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
    if not files:
        raise DataError(f"{path}: this folder has no files to take as supports")
    return files


def from_episodes(config: Config, split: str, numbers: Sequence[int]) -> list[SupportSet]:
    """The supports of the episodes that evaluation knows under these numbers.

    Raises DataError for a split that the dataset does not have, ConfigError for a number.
    """
    # Pictures are enough: what was precomputed of them need not be there.
    config = dataclasses.replace(config, features=FeaturesConfig())
    read, size = evaluation_examples(config, split)
    for number in numbers:
        if not 0 <= number < size:
            raise ConfigError(f"episode {number} of the split {split!r}: it has 0 to {size - 1}")
    return [
        SupportSet({"split": split, "episode": number}, read.pictures(number)[0])
        for number in numbers
    ]
