"""A complete input: images with their classes, rows of what is left out, notes for the user."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from etils import epath

from data_prep.conversion.inputs import classes, lists, sources
from data_prep.conversion.inputs.entries import Entry, Row, rows_of, shown_name


@dataclasses.dataclass(frozen=True)
class Input:
    """A read input. Entries and rows together are everything that it holds."""

    reader: sources.Reader
    entries: Sequence[Entry]
    rows: Sequence[Row]
    notes: Sequence[str]


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


def _notes(others: Counter[str]) -> Iterator[str]:
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
        yield f"passed over, by their names no images: {shown_name(kinds)}"
