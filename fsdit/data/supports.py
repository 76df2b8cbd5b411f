"""Support pictures to sample from: a user's files, or episodes of a dataset."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from fsdit import storage
from fsdit.config import Config, FeaturesConfig
from fsdit.data.images.filenames import is_image_name
from fsdit.data.images.photos import DEFAULT_PREPARATION, Preparation, read_photo
from fsdit.data.pipeline import evaluation_examples
from fsdit.data.run_dataset import read_run_dataset
from fsdit.errors import ConfigError, DataError, system_text

_NAMED = 5  # names in the line that says what was left out


@dataclasses.dataclass(frozen=True, eq=False)
class SupportSet:
    """Support pictures of one class. origin: where they came from, ready for JSON."""

    origin: dict[str, Any]
    images: UInt8[np.ndarray, "K H W C"]


def from_files(
    names: Iterable[storage.PathLike],
    image_size: int,
    channels: int,
    preparation: Preparation | None = DEFAULT_PREPARATION,
) -> SupportSet:
    """Reads picture files in the order given; a folder stands for its images in order of name.

    preparation: how the training images were made. None: that was not recorded, and a printed
    line says that the default is used. Folders inside a folder, and files that are no images by
    their names, are left out, and a printed line says so. Raises DataError for a file that is
    missing or no picture, and for a folder without one.
    """
    files = [file for name in names for file in _files(_local(name))]
    if not files:
        raise DataError("no support pictures are named: give one or more files, or a folder")
    used = preparation or DEFAULT_PREPARATION
    images = [read_photo(file, image_size, channels, used) for file in files]
    if preparation is None:
        print(
            f"how the training images were made was not recorded: supports are made {used}",
            flush=True,
        )
    return SupportSet({"files": [str(file.absolute()) for file in files]}, np.stack(images))


def _local(name: storage.PathLike) -> Path:
    return storage.local_copy(name if storage.is_remote(name) else Path(name).expanduser())


def _files(path: Path) -> list[Path]:
    """Returns the file, or the images of a folder."""
    try:
        if not path.is_dir():
            return [path]
        inside = sorted(p for p in path.iterdir() if not p.name.startswith("."))
        images = [p for p in inside if is_image_name(p.name) and p.is_file()]
    except OSError as error:  # for example a folder without permission
        raise DataError(f"{error.filename or path}: {system_text(error)}") from None
    if not images:
        raise DataError(f"{path}: this folder has no image files to take as supports")
    _say_left_out(path, sorted({p.name for p in inside} - {p.name for p in images}))
    return images


def _say_left_out(folder: Path, names: list[str]) -> None:
    """Prints the first few names, quoted, because a terminal may obey what a name holds."""
    if names:
        named = ", ".join(map(repr, names[:_NAMED]))
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        print(f"{folder}: left out, no image files: {named}{more}", flush=True)


def from_episodes(config: Config, split: str, indices: Sequence[int]) -> list[SupportSet]:
    """Returns the supports of the evaluation episodes with these indices.

    Raises DataError for a split that the dataset does not have, and ConfigError for an index
    that is too large.
    """
    # Only pictures are read, so precomputed features need not be there.
    config = dataclasses.replace(config, features=FeaturesConfig())
    read_run_dataset(config)  # names the setting where there is no dataset
    read, size = evaluation_examples(config, split)
    for index in indices:
        if not 0 <= index < size:
            raise ConfigError(f"episode {index} of the split {split!r}: it has 0 to {size - 1}")
    return [
        SupportSet({"split": split, "episode": index}, read.pictures(index)[0]) for index in indices
    ]
