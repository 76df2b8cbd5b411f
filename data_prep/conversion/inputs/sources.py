"""Inputs: what images there are, of which class, and their bytes at random.

Folders, zip and tar archives and Parquet files are listed as sorted entries. Archives
are read in place: nothing is ever written to a name that an archive holds. What cannot
be read at random (a compressed tar, Parquet) is copied once into a spool file.
"""

import dataclasses
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from etils import epath

from data_prep.conversion.inputs import archives, folders
from data_prep.conversion.inputs.classes import classify
from data_prep.conversion.inputs.entries import Entry, File, Row, images_of, is_hidden, skipped
from data_prep.conversion.inputs.spool import RangeReader, Spool
from fsdit.errors import DataError, system_text


class Reader(Protocol):
    """Bytes of entries at random. Picklable: files are opened where they are read."""

    def read(self, place: Any) -> bytes: ...


@dataclasses.dataclass(frozen=True)
class ListedInput:
    """What an input holds.

    rows: what is in it but no entry, and why. others: files that are by their names no
    images, by kind. by_folder: whether folders tell the classes.
    """

    entries: list[Entry]
    reader: Reader
    rows: list[Row]
    others: Counter[str]
    by_folder: bool


def list_input(
    path: Path, spool: epath.Path, class_depth: int | None, columns: tuple[str, str]
) -> ListedInput:
    """Lists the input at `path`, sorted by name. Raises DataError.

    spool: a file that may be written, in a folder that is there. class_depth: see
    `classify`. columns: of the images and the labels in Parquet.
    """
    _check_kind(path)
    if path.suffix.lower() == ".parquet" and path.is_file():
        return _tables(path.parent, [path.name], [], columns, spool)
    if path.is_dir():
        files, rows = folders.list_folder(path)
        reader: Reader = folders.FolderReader(str(path))
        if tables := _parquet_names(path, files, columns[0]):
            others = [file for file in files if file.path not in tables]
            return _tables(path, tables, others, columns, spool, rows)
    elif zipfile.is_zipfile(path):
        (files, rows), reader = archives.list_zip(path), archives.ZipReader(str(path))
    elif archives.is_tar(path):
        files, rows, reader = archives.list_tar(path, spool)
    else:
        raise DataError(f"--input={path}: not a folder, zip, tar or Parquet file")
    images, others = images_of(files)
    return ListedInput(classify(images, class_depth), reader, rows, others, by_folder=True)


def _check_kind(path: Path) -> None:
    """Reading from a FIFO or a device may never end."""
    try:
        if not path.exists():
            raise DataError(f"--input={path}: no such file or folder")
        if not path.is_dir():
            if not path.is_file():
                raise DataError(f"--input={path}: neither a folder nor a regular file")
            with path.open("rb"):
                pass
    except OSError as error:
        raise DataError(f"--input={path}: cannot be read: {system_text(error)}") from None


def _parquet_names(root: Path, files: Sequence[File], image: str) -> list[str]:
    """The Parquet files that make the input, in order; none where they only describe images."""
    names = sorted(
        file.path
        for file in files
        if file.path.lower().endswith(".parquet") and not any(map(is_hidden, file.path.split("/")))
    )
    if names and images_of(files)[0]:
        from data_prep.conversion.inputs import parquet

        return names if parquet.any_has_images(root, names, image) else []
    return names


def _tables(
    root: Path,
    names: Sequence[str],
    others: Sequence[File],
    columns: tuple[str, str],
    spool: epath.Path,
    rows: Sequence[Row] = (),
) -> ListedInput:
    from data_prep.conversion.inputs import parquet

    with spool.open("wb") as out:
        entries, unlabelled = parquet.copy_tables(root, names, columns, Spool(spool, out))
    images, passed = images_of(others)
    beside = [skipped(file.path, "beside Parquet files that hold images") for file in images]
    left_out = [*rows, *beside, *unlabelled]
    return ListedInput(entries, RangeReader(str(spool)), left_out, passed, by_folder=False)
