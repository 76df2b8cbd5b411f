"""CSV lists of `filename,label` as the source of classes and splits."""

import csv
import dataclasses
import posixpath
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.conversion.inputs.entries import SPLIT_NAMES, Entry, Row, class_name, skipped
from fsdit.errors import DataError

_COLUMNS = ("filename", "label")
_DELIMITERS = ",;\t"
_MAX_BYTES = 2**30
_UPWARDS = re.compile(r"^(\.\./)+")  # in a list that lies in a folder beside the images


def relabel(
    entries: Sequence[Entry], lists: Sequence[Path], root: str = ""
) -> tuple[list[Entry], list[Row]]:
    """Returns the entries that the lists name, with their labels, and rows of the others.

    A list called train.csv, val.csv or test.csv also gives the split. A filename matches the
    end of a path: `a.jpg` finds `images/a.jpg`, and so does its path from `root`, the place of
    the input. Forms of Unicode, `./` and backslashes make no difference. Raises DataError for a
    filename that is absent or matches several files.
    """
    by_name: dict[str, list[tuple[str, Entry]]] = {}
    for entry in entries:
        path = _comparable(f"{root}/{entry.name}")
        by_name.setdefault(path.rsplit("/", 1)[-1], []).append((path, entry))
    found: dict[str, Entry] = {}
    for path in lists:
        split = SPLIT_NAMES.get(path.stem.strip().lower())
        absent = []
        for filename, label in _rows(path):
            matches = _named(filename, by_name)
            if not matches:
                absent.append(filename)
                continue
            entry = dataclasses.replace(matches[0], label=label, split=split)
            if len(matches) > 1 or found.setdefault(entry.name, entry) != entry:
                raise DataError(f"{path}: {filename!r} names several files, or is listed twice")
        if absent:
            raise DataError(
                f"{path}: {len(absent)} of its files are not in --input, the first is {absent[0]!r}"
            )
    others = [skipped(e.name, "in none of the lists") for e in entries if e.name not in found]
    return sorted(found.values(), key=lambda entry: entry.name), others


def _named(filename: str, by_name: dict[str, list[tuple[str, Entry]]]) -> list[Entry]:
    candidates = by_name.get(filename.rsplit("/", 1)[-1], ())
    ending = "/" + filename.lstrip("/")
    return [entry for path, entry in candidates if path.endswith(ending)]


def _rows(path: Path) -> Iterator[tuple[str, str]]:
    """Yields (filename, label) of each line. Raises DataError."""
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"--csv={path}: cannot be read: not a regular file")
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"--csv={path}: cannot be read: larger than {_MAX_BYTES} bytes")
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=_delimiter(first))
            columns = _columns(path, next(reader, []))
            for row in reader:
                if any(row):
                    yield _cells(path, reader.line_num, row, columns)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"--csv={path}: cannot be read: {error}") from None


def _header(cells: Sequence[str]) -> list[str]:
    return [cell.strip().casefold() for cell in cells]


def _delimiter(line: str) -> str:
    """Returns the delimiter that makes the first line a header; spreadsheets differ by country."""
    for delimiter in _DELIMITERS:
        if set(_COLUMNS) <= set(_header(next(csv.reader([line], delimiter=delimiter), []))):
            return delimiter
    return _DELIMITERS[0]


def _columns(path: Path, header: Sequence[str]) -> list[int]:
    names = _header(header)
    for column in _COLUMNS:
        if names.count(column) != 1:
            what = "two columns" if column in names else "no column"
            raise DataError(f"{path}: {what} {column!r} in its first line")
    return [names.index(column) for column in _COLUMNS]


def _cells(path: Path, line: int, row: Sequence[str], columns: Sequence[int]) -> tuple[str, str]:
    filename, label = (row[i].strip() if i < len(row) else "" for i in columns)
    if not filename or not label:
        raise DataError(f"{path}, line {line}: no filename or no label")
    return _UPWARDS.sub("", posixpath.normpath(_comparable(filename))), class_name(label)


def _comparable(path: str) -> str:
    return unicodedata.normalize("NFC", path).replace("\\", "/")
