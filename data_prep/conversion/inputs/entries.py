"""What every input comes down to: files with a name, a label and perhaps a split."""

import dataclasses
import unicodedata
from typing import Any

from fsdit.data.images import filenames

SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val",
    "validation": "val", "test": "test", "testing": "test",
}  # fmt: skip

# A line of skipped.csv and duplicates.csv: split, class, file, and what is to be said of it.
Row = tuple[str, str, str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One file of an input. label: "" where no folder says; place: where its reader looks."""

    name: str
    label: str
    split: str | None
    size: int
    place: Any


def printable(name: str) -> str:
    """Names that are no UTF-8 keep their odd bytes as escapes; control characters likewise."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return filenames.printable(text)


def class_name(text: str) -> str:
    """A class as datasets name it: systems write one accented name in several forms."""
    return unicodedata.normalize("NFC", printable(text))


def skipped(name: str, reason: str) -> Row:
    """A row for a file of which neither split nor class is known."""
    return ("", "", printable(name), reason)
