"""Listing an input of any kind: its images, their classes, and a reader of their bytes.

Folders, zip and tar archives and Parquet files are listed as sorted entries. Archives are read
in place; no file gets a name that an archive holds. The images of a compressed tar or of Parquet
files, which cannot be read in any order, are copied once into a spool file.
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
    """Reads the bytes of entries in any order. It can be pickled: each process opens files."""

    def read(self, place: Any) -> bytes: ...


@dataclasses.dataclass(frozen=True)
class ListedInput:
    """An input as its files and folders show it.

    rows: what is in it but is no entry, and why. others: number of files that are by their
    names no images, by kind. by_folder: whether folders name the classes.
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

    spool: the file to copy images to, in a folder that exists. class_depth: see `classify`.
    columns: names of the image column and the label column of Parquet files.
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
    """Raises DataError for an input that cannot be read, or whose reading may never end."""
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
    """Returns the Parquet files that are the input, in order; none if they hold notes only."""
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
