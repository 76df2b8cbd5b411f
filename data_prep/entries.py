"""What every input comes down to: files with a name, a label and perhaps a split."""

import dataclasses
from typing import Any

SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val",
    "validation": "val", "test": "test", "testing": "test",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One file of an input. label: "" where no folder says; place: where its reader looks."""

    name: str
    label: str
    split: str | None
    size: int
    place: Any


def printable(name: str) -> str:
    """Names that are no UTF-8 keep their odd bytes as escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
