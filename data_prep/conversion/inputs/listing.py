"""The files of an input before they have a class: which are images, and what becomes of others."""

import dataclasses
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from data_prep.conversion.inputs.entries import Row, skipped
from fsdit.data.images.filenames import is_image_name

# Folders that systems and file managers make for themselves.
_SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"}


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """path: with "/" between folders, below the input; place: where its reader looks."""

    path: str
    size: int
    place: Any


def plain(name: str) -> str:
    """A name as a path with "/", without the "./" with which many tars begin theirs.

    Backslashes are separators where nothing else is: Windows programs write such archives,
    and unpacking them elsewhere makes such files.
    """
    if "/" not in name:
        name = name.replace("\\", "/")
    return PurePosixPath(name).as_posix()


def is_hidden(part: str) -> bool:
    """Whether a folder or file is one that file managers do not show, or that is a system's."""
    return part.startswith(".") or part in _SYSTEM_FOLDERS


def images_of(files: Iterable[File]) -> tuple[list[File], Counter[str]]:
    """(files that may be images, how many there are of each kind of other ones)."""
    images: list[File] = []
    others: Counter[str] = Counter()
    for file in files:
        if any(map(is_hidden, file.path.split("/"))):
            others[".*"] += 1
        elif is_image_name(file.path):
            images.append(file)
        else:
            base = posixpath.basename(file.path)
            others[f"*{posixpath.splitext(base)[1].lower()}" if "." in base else base] += 1
    return images, others


def rows_of(others: Mapping[str, int]) -> list[Row]:
    """A row for each kind of file that is by its name no image."""
    return [
        skipped(kind, f"{count} files that are by their names no images")
        for kind, count in sorted(others.items())
    ]
