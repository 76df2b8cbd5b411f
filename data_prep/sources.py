"""Inputs: what images there are, of which class, and their bytes at random.

Folders, zip and tar archives and Parquet files are listed as sorted entries. Archives
are read in place: nothing is ever written to a name that an archive holds. What cannot
be read at random (a compressed tar, Parquet) is copied once into a spool file.
"""

import csv
import dataclasses
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from etils import epath

from data_prep.entries import SPLIT_NAMES, Entry, printable
from fsdit.errors import DataError

_COPY_BYTES = 2**20


class Reader(Protocol):
    """Bytes of entries at random. Picklable: files are opened where they are read."""

    def read(self, place: Any) -> bytes: ...


@dataclasses.dataclass(frozen=True)
class Source:
    entries: list[Entry]
    reader: Reader


@dataclasses.dataclass(frozen=True)
class FolderReader:
    root: str

    def read(self, place: str) -> bytes:
        return Path(self.root, place).read_bytes()


@dataclasses.dataclass(frozen=True)
class RangeReader:
    """Parts of one file: members of an uncompressed tar, or of a spool."""

    path: str

    def read(self, place: Sequence[int]) -> bytes:
        offset, size = place
        with epath.Path(self.path).open("rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) != size:
            raise OSError(f"ends after {len(data)} of {size} bytes")
        return data


class ZipReader:
    """Members of a zip; its directory is read once in each process."""

    def __init__(self, path: str):
        self.path = path
        self._archive: zipfile.ZipFile | None = None

    def read(self, place: str) -> bytes:
        if self._archive is None:
            self._archive = zipfile.ZipFile(self.path)
        return self._archive.read(place)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_archive": None}


def open_source(
    path: Path, spool: epath.Path, class_depth: int | None, columns: tuple[str, str]
) -> Source:
    """Lists the input at `path`, sorted by name. Raises DataError.

    spool: a file that may be written, in a folder that is there. class_depth: see
    `classify`. columns: of the images and the labels in Parquet.
    """
    if not path.exists():
        raise DataError(f"--input={path}: no such file or folder")
    if parquet := _parquet_files(path):
        from data_prep import parquet as tables  # pyarrow is large

        with spool.open("wb") as out:
            entries = tables.copy_tables(path, parquet, columns, out)
        return Source(entries, RangeReader(str(spool)))
    if path.is_dir():
        files, reader = list(_folder_files(path)), FolderReader(str(path))
    elif zipfile.is_zipfile(path):
        files, reader = _zip_files(path), ZipReader(str(path))
    elif tarfile.is_tarfile(path):
        files, reader = _tar_files(path, spool)
    else:
        raise DataError(f"--input={path}: not a folder, zip, tar or Parquet file")
    return Source(classify(files, class_depth), reader)


def _parquet_files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.rglob("*.parquet"))
    return [path] if path.suffix == ".parquet" else []


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    path: str
    size: int
    place: Any


def classify(files: Iterable[File], class_depth: int | None = None) -> list[Entry]:
    """Class and split of each file from its path, sorted by name.

    Folders that all files share say nothing. Where the next ones are all called train, val
    or test, they are splits. The class is the folder that holds the file, or the path of
    the first `class_depth` folders.
    """
    files = sorted((f for f in files if not _hidden(f.path)), key=lambda f: f.path)
    folders = [f.path.split("/")[:-1] for f in files]
    shared = len(os.path.commonprefix(folders))  # noqa: RUF071 (of lists, not of strings)
    tops = {parts[shared].lower() for parts in folders if len(parts) > shared}
    presplit = tops <= SPLIT_NAMES.keys()  # one class may be called "train", not all of them
    entries = []
    for file, parts in zip(files, folders, strict=True):
        split = SPLIT_NAMES[parts[shared].lower()] if presplit and len(parts) > shared else None
        inner = parts[shared + bool(split) :]
        if class_depth is None:
            alone = parts[-1] if parts and not tops else ""  # all files are in one folder
            label = inner[-1] if inner else alone
        else:
            label = "/".join(inner[:class_depth]) if len(inner) >= class_depth else ""
        name = printable(file.path)
        entries.append(Entry(name, printable(label), split, file.size, file.place))
    return entries


def _hidden(path: str) -> bool:
    parts = path.split("/")
    return "__MACOSX" in parts or parts[-1] == "Thumbs.db" or any(p[:1] == "." for p in parts)


def _folder_files(root: Path) -> Iterator[File]:
    """All regular files below; links to folders are followed, but never in circles."""
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(real)
        base = Path(folder).relative_to(root).as_posix()
        for name in names:
            place = name if base == "." else f"{base}/{name}"
            yield File(place, _size(Path(folder, name)), place)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # such as a link to nowhere: a bad file, which reading it will tell


def _zip_files(path: Path) -> list[File]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {m.filename: m for m in archive.infolist() if not m.is_dir()}
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"--input={path}: damaged zip: {error}") from None
    for member in members.values():
        _check_member(path, member.orig_filename)
        if member.flag_bits & 1:
            raise DataError(f"--input={path}: member {member.filename!r} is encrypted")
    return [File(_plain(name), m.file_size, name) for name, m in members.items()]


def _tar_files(path: Path, spool: epath.Path) -> tuple[list[File], RangeReader]:
    """Places in the tar itself, or in a copy of its members if it is compressed."""
    try:
        with tarfile.open(path, "r:") as archive:
            files = [
                File(_plain(m.name), m.size, (m.offset_data, m.size))
                for m in _members(path, archive)
            ]
        return _last_of_each(files), RangeReader(str(path))
    except tarfile.ReadError:
        pass  # compressed, or damaged: opening it the other way tells which
    files = []
    with spool.open("wb") as out:
        try:
            with tarfile.open(path, "r|*") as archive:
                for member in _members(path, archive):
                    files.append(File(_plain(member.name), member.size, (out.tell(), member.size)))
                    shutil.copyfileobj(archive.extractfile(member), out, _COPY_BYTES)
                    archive.members = []  # it keeps every member that it met
        except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise DataError(f"--input={path}: damaged tar: {error}") from None
    return _last_of_each(files), RangeReader(str(spool))


def _members(path: Path, archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in archive:
        _check_member(path, member.name)
        if member.isfile() and not member.issparse():
            yield member


def _last_of_each(files: list[File]) -> list[File]:
    """An archive may hold several members of one name: the last is the file."""
    return list({file.path: file for file in files}.values())


def _plain(name: str) -> str:
    """Without `./`, with which many tars begin their names."""
    return PurePosixPath(name).as_posix()


def _check_member(path: Path, name: str) -> None:
    odd = "\\" in name or "\0" in name or name[1:2] == ":"
    if odd or name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise DataError(
            f"--input={path}: member {name!r} points outside the archive; refused as a whole"
        )


def relabel(entries: Sequence[Entry], lists: Sequence[Path]) -> list[Entry]:
    """The entries that CSV files of `filename,label` name, with their labels from there.

    A file called train.csv, val.csv or test.csv also gives the split. A filename is the
    end of a path: `a.jpg` finds `images/a.jpg`. Raises DataError for a filename that is
    absent or could be several files.
    """
    by_name: dict[str, list[Entry]] = {}
    for entry in entries:
        by_name.setdefault(entry.name.rsplit("/", 1)[-1], []).append(entry)
    found: dict[str, Entry] = {}
    for path in lists:
        split = SPLIT_NAMES.get(path.stem.lower())
        absent = []
        for filename, label in _rows(path):
            matches = [
                e for e in by_name.get(filename.rsplit("/", 1)[-1], ())
                if f"/{e.name}".endswith(f"/{filename}")
            ]  # fmt: skip
            if not matches:
                absent.append(filename)
                continue
            if len(matches) > 1 or matches[0].name in found:
                raise DataError(f"{path}: {filename!r} names several files, or is listed twice")
            entry = dataclasses.replace(matches[0], label=label, split=split)
            found[entry.name] = entry
        if absent:
            raise DataError(
                f"{path}: {len(absent)} of its files are not in --input, the first is {absent[0]!r}"
            )
    return sorted(found.values(), key=lambda entry: entry.name)


def _rows(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = {"filename", "label"} - set(reader.fieldnames or ())
            if missing:
                raise DataError(f"{path}: no column {sorted(missing)[0]!r} in its first line")
            for row in reader:
                if not row["filename"] or not row["label"]:
                    raise DataError(f"{path}, line {reader.line_num}: no filename or no label")
                yield row["filename"].strip(), row["label"].strip()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"--csv={path}: cannot be read: {error}") from None
