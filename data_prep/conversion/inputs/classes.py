"""The class and the split of each file, from the folders it lies in."""

import dataclasses
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from data_prep.conversion.inputs.entries import SPLIT_NAMES, Entry, File, class_name, shown_name
from fsdit.errors import DataError


@dataclasses.dataclass(frozen=True)
class _Levels:
    """What the folders in the paths of an input mean.

    shared: number of leading folders that all files have in common. presplit: whether the next
    folders are splits. flat: whether all files lie in one folder.
    """

    shared: int
    presplit: bool
    flat: bool

    def split(self, parts: Sequence[str]) -> str | None:
        if self.presplit and len(parts) > self.shared:
            return SPLIT_NAMES[parts[self.shared].lower()]
        return None

    def inner(self, parts: Sequence[str]) -> Sequence[str]:
        """Returns the folders that name the class."""
        return parts[self.shared + bool(self.split(parts)) :]


def _levels(folders: Sequence[Sequence[str]]) -> _Levels:
    shared = len(os.path.commonprefix(folders))  # noqa: RUF071 (of lists, not of strings)
    tops = {parts[shared].lower() for parts in folders if len(parts) > shared}
    if tops and shared and folders[0][shared - 1].lower() in SPLIT_NAMES:
        return _Levels(shared - 1, presplit=True, flat=False)  # one split only
    # They are splits only if all of them are called so; a class may be called "train".
    return _Levels(shared, presplit=tops <= SPLIT_NAMES.keys(), flat=not tops)


def classify(files: Iterable[File], class_depth: int | None = None) -> list[Entry]:
    """Finds class and split of each file by its path; sorted by name.

    Folders that all files share mean nothing. If the next ones are all called train, val or
    test, they are splits. The class is the folder that holds the file, or the path of the first
    `class_depth` folders.
    """
    files = sorted(files, key=lambda f: f.path)
    folders = [f.path.split("/")[:-1] for f in files]
    levels = _levels(folders)
    entries = []
    for file, parts in zip(files, folders, strict=True):
        label = _label(parts, levels, class_depth)
        name, split = shown_name(file.path), levels.split(parts)
        entries.append(Entry(name, class_name(label), split, file.size, file.place))
    return entries


def _label(parts: Sequence[str], levels: _Levels, class_depth: int | None) -> str:
    inner = levels.inner(parts)
    if class_depth is not None:
        return "/".join(inner[:class_depth]) if len(inner) >= class_depth else ""
    if levels.flat and parts:
        return parts[-1]
    return inner[-1] if inner else ""


def check_same_names(entries: Sequence[Entry]) -> None:
    """Raises DataError where folders of one name in different places would become one class.

    Folders of one name in several splits are one class, as they should be. entries: from
    `classify` without a class_depth.
    """
    folders: dict[tuple[str | None, str], set[str]] = {}
    for entry in entries:
        if entry.label:
            folder = unicodedata.normalize("NFC", entry.name.rpartition("/")[0])
            folders.setdefault((entry.split, entry.label), set()).add(folder)
    repeated = {key: found for key, found in folders.items() if len(found) > 1}
    if not repeated:
        return
    (_, label), found = next(iter(sorted(repeated.items(), key=lambda item: item[0][1])))
    more = f", and {len(repeated) - 1} more names likewise" if len(repeated) > 1 else ""
    raise DataError(
        f"--input: {label!r} is the name of {len(found)} folders ({_some(found)}){more}: "
        + _advice(folders)
    )


def _some(names: Iterable[str]) -> str:
    first, second, *more = sorted(names)
    return f"{first}, {second}" + (", ..." if more else "")


def _advice(folders: Mapping[tuple[str | None, str], set[str]]) -> str:
    """Returns the --class_depth at which every folder of a split is a class, or other advice."""
    levels = _levels([f.split("/") for group in folders.values() for f in sorted(group)])
    inner: dict[str | None, list[tuple[str, ...]]] = {}
    for (split, _), group in folders.items():
        inner.setdefault(split, []).extend(tuple(levels.inner(f.split("/"))) for f in group)
    deepest = max(len(parts) for group in inner.values() for parts in group)
    for depth in range(1, deepest + 1):
        if all(len({parts[:depth] for parts in group}) == len(group) for group in inner.values()):
            return f"--class_depth={depth} tells them apart"
    return "rename them, or put what is one class in one folder"


def spellings(entries: Iterable[Entry]) -> list[str]:
    """Returns notes on folders whose names are equal up to the form of Unicode: one class."""
    forms: dict[str, set[str]] = {}
    for entry in entries:
        folder = entry.name.rpartition("/")[0].rpartition("/")[2]
        if not folder.isascii():
            forms.setdefault(class_name(folder), set()).add(folder)
    return [
        f"{label!r}: folders whose names differ only in their form of Unicode are one class"
        for label, found in sorted(forms.items())
        if len(found) > 1
    ]
