"""What every input is made of: files, then entries, which are images with a class.

Whatever an input holds ends as an `Entry`, or as a `Row` of skipped.csv that says why not.
"""

import dataclasses
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from fsdit.data.images.filenames import is_image_name
from fsdit.text import printable

SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val",
    "validation": "val", "test": "test", "testing": "test",
}  # fmt: skip

# Folders that operating systems and file managers make for themselves.
_SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"}
# A line of skipped.csv or duplicates.csv: split, class, file, and the reason or the twin.
Row = tuple[str, str, str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """One file of an input, before it has a class.

    path: below the input, with "/" between folders. size: in bytes. place: what its reader
    needs to find it.
    """

    path: str
    size: int
    place: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One image of an input. name: unique, safe to show. label: its class, "" if none is known.

    split: the one that its folder, file or list names, if any. size: in bytes. place: what its
    reader needs to find it.
    """

    name: str
    label: str
    split: str | None
    size: int
    place: Any


def shown_name(name: str) -> str:
    """Returns a name of the file system as text: what is no UTF-8 or cannot be seen is escaped."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return printable(text)


def class_name(text: str) -> str:
    """Returns a class as datasets name it: in one form of Unicode (NFC), since systems differ."""
    return unicodedata.normalize("NFC", shown_name(text))


def skipped(name: str, reason: str) -> Row:
    """Returns a row of skipped.csv for a file of which neither split nor class is known."""
    return ("", "", shown_name(name), reason)


def plain(name: str) -> str:
    """Returns a name as a path with "/", without the "./" that many tars put first.

    In a name without "/", backslashes are separators: Windows programs write such archives,
    and unpacking one on another system makes files with such names.
    """
    if "/" not in name:
        name = name.replace("\\", "/")
    return PurePosixPath(name).as_posix()


def is_hidden(part: str) -> bool:
    """Whether file managers hide a folder or file, or a system keeps it for itself."""
    return part.startswith(".") or part in _SYSTEM_FOLDERS


def images_of(files: Iterable[File]) -> tuple[list[File], Counter[str]]:
    """Returns the files that may be images, and the number of others by kind ("*.txt")."""
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
    """Returns a row of skipped.csv for each kind of file that is by its name no image."""
    return [
        skipped(kind, f"{count} files that are by their names no images")
        for kind, count in sorted(others.items())
    ]
