"""A complete input: images with their classes, rows of what is left out, notes for the user."""

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from data_prep.conversion.inputs import classes, lists, sources
from data_prep.conversion.inputs.entries import Entry, Row, rows_of, shown_name
from fsdit.errors import DataError


@dataclasses.dataclass(frozen=True)
class Input:
    """A read input. Entries and rows together are everything that it holds.

    test_classes: classes that came as those of the test split.
    """

    reader: sources.Reader
    entries: Sequence[Entry]
    rows: Sequence[Row]
    notes: Sequence[str]
    test_classes: Collection[str] = ()


@dataclasses.dataclass(frozen=True)
class _Readers:
    """Reads two inputs. A place says first which of them it is in."""

    readers: tuple[sources.Reader, sources.Reader]

    def read(self, place: Sequence[Any]) -> bytes:
        which, inner = place
        return self.readers[which].read(inner)


def read_input(
    path: Path,
    spool: epath.Path,
    class_depth: int | None,
    columns: tuple[str, str],
    csv_lists: Sequence[Path],
) -> Input:
    """Reads the input at `path`. Raises DataError. For other parameters see `list_input`.

    csv_lists: if there are any, they name the classes instead of the folders.
    """
    source = sources.list_input(path, spool, class_depth, columns)
    read = Counter({"*.csv": sum(path in file.parents for file in csv_lists)})
    others = source.others - read
    rows, notes = [*source.rows, *rows_of(others)], list(_notes(others))
    if csv_lists:
        root = path.absolute().as_posix() if path.is_dir() else ""
        entries, unlisted = lists.relabel(source.entries, csv_lists, root)
        return Input(source.reader, entries, [*rows, *unlisted], notes)
    if source.by_folder and class_depth is None:
        classes.check_same_names(source.entries)
        notes += classes.spellings(source.entries)
    return Input(source.reader, source.entries, rows, notes)


def with_test_input(
    first: Input,
    path: Path,
    spool: epath.Path,
    class_depth: int | None,
    columns: tuple[str, str],
) -> Input:
    """Reads a second input, whose classes are those of the test split, and joins it to `first`.

    For the parameters see `read_input`. Raises DataError, also where both inputs have a class
    or a file of the same name.
    """
    try:
        second = read_input(path, spool, class_depth, columns, [])
    except DataError as error:
        raise DataError(str(error).replace("--input", "--test_input")) from None
    _check_apart("class", *({e.label for e in i.entries if e.label} for i in (first, second)))
    _check_apart("file", *({e.name for e in i.entries} for i in (first, second)))
    entries = [
        dataclasses.replace(entry, place=(which, entry.place))
        for which, found in enumerate((first, second))
        for entry in found.entries
    ]
    return Input(
        _Readers((first.reader, second.reader)),
        entries,
        [*first.rows, *second.rows],
        [*first.notes, *second.notes],
        test_classes={entry.label for entry in second.entries},
    )


def _check_apart(what: str, ours: set[str], theirs: set[str]) -> None:
    if both := sorted(ours & theirs):
        raise DataError(
            f"--test_input: the {what} {both[0]!r} is in --input too, one of {len(both)}: its "
            "classes have to be others"
        )


def _notes(others: Counter[str]) -> Iterator[str]:
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
        yield f"passed over, by their names no images: {shown_name(kinds)}"
