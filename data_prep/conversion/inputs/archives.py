"""Zip and tar archives as inputs. They are read in place; no file gets a name that they hold.

Every member of an archive is listed as a file, or as a row of what is left out: links that lead
nowhere, devices, sparse files, members that a later one of the same name replaces.
"""

import dataclasses
import posixpath
import re
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from etils import epath

from data_prep.conversion.inputs.entries import File, Row, plain, shown_name, skipped
from data_prep.conversion.inputs.spool import RangeReader, Spool
from fsdit.data.images.filenames import is_image_name
from fsdit.data.images.image_files import MAX_FILE_BYTES
from fsdit.errors import DataError, FsditError

_MAX_LINK_BYTES = 4096
_MAX_HEADER_BYTES = 2**20
_MAX_FILL = 2**26  # bytes of zeros behind the end of a tar that are read
_HEADERS = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)  # fmt: skip
_DRIVE = re.compile(r"[A-Za-z]:")


class ZipReader:
    """Reads members of a zip, whose directory is read once in each process."""

    def __init__(self, path: str):
        self.path = path
        self._archive: zipfile.ZipFile | None = None

    def read(self, place: str) -> bytes:
        if self._archive is None:
            self._archive = zipfile.ZipFile(self.path)
        return self._archive.read(place)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_archive": None}


@dataclasses.dataclass(frozen=True)
class _Members:
    """Members found so far. files: path -> file. links: path -> path of the target."""

    files: dict[str, File] = dataclasses.field(default_factory=dict)
    links: dict[str, str] = dataclasses.field(default_factory=dict)
    rows: list[Row] = dataclasses.field(default_factory=list)

    def add(self, file: File) -> None:
        self._replace(file.path)
        self.files[file.path] = file

    def add_link(self, path: str, target: str) -> None:
        self._replace(path)
        self.links[path] = posixpath.normpath(target)

    def _replace(self, path: str) -> None:
        """Drops an older member of the same name: unpacking keeps the last one too."""
        if self.files.pop(path, None) or self.links.pop(path, None):
            self.leave_out(path, "an older member of this name")

    def leave_out(self, path: str, reason: str) -> None:
        self.rows.append(skipped(path, reason))

    def resolved(self) -> tuple[list[File], list[Row]]:
        """Returns all files, with those that links lead to, and rows of what is left out."""
        files = list(self.files.values())
        rows = list(self.rows)
        for path in self.links:
            target = self._end(path)
            if file := self.files.get(target):
                files.append(File(path, file.size, file.place))
            else:
                reason = f"a link to {shown_name(target)}, which is no file of the archive"
                rows.append(skipped(path, reason))
        return files, rows

    def _end(self, path: str) -> str:
        """Returns the end of a chain of links; a chain that is a circle ends somewhere in it."""
        passed = set()
        while path in self.links and path not in passed:
            passed.add(path)
            path = self.links[path]
        return path


def list_zip(path: Path) -> tuple[list[File], list[Row]]:
    """Lists a zip: (files, rows of what is left out). Raises DataError."""
    found = _Members()
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                _add_zip_member(path, archive, member, found)
    except DataError:
        raise
    except Exception as error:  # for a damaged directory, errors of nearly any type
        raise DataError(f"--input={path}: damaged zip: {shown_name(str(error))}") from None
    return found.resolved()


def _add_zip_member(
    path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, found: _Members
) -> None:
    _check_name(path, member.orig_filename)
    name = member.filename.replace("\\", "/")  # Windows programs write backslashes
    if name.endswith("/"):
        return
    if member.flag_bits & 1:
        raise DataError(f"--input={path}: member {member.filename!r} is encrypted")
    if stat.S_ISLNK(member.external_attr >> 16) and member.file_size <= _MAX_LINK_BYTES:
        target = archive.read(member).decode("utf-8", "surrogateescape")
        found.add_link(plain(name), posixpath.join(posixpath.dirname(plain(name)), target))
    else:
        found.add(File(plain(name), member.file_size, member.filename))


class _TarInfo(tarfile.TarInfo):
    """A tar header whose damage is an error; tarfile would take it for the archive's end."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        info = super().frombuf(buf, encoding, errors)
        if info.type in _HEADERS and info.size > _MAX_HEADER_BYTES:  # it is read into memory
            raise tarfile.InvalidHeaderError(f"a header of {info.size} bytes")
        return info

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            info = super().fromtarfile(archive)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:
            raise tarfile.ReadError(f"{error} at byte {archive.offset}") from None
        if info.size < 0:
            raise tarfile.ReadError(f"a member of {info.size} bytes at byte {archive.offset}")
        return info


def is_tar(path: Path) -> bool:
    """Whether a file begins like a tar, compressed or not."""
    try:
        with tarfile.open(path, tarinfo=_TarInfo):
            return True
    except Exception:  # tarfile.is_tarfile believes the sizes that are written there
        return False


def list_tar(path: Path, spool: epath.Path) -> tuple[list[File], list[Row], RangeReader]:
    """Lists a tar: (files, rows of what is left out, reader). Raises DataError, OutputError.

    Places of files are in the tar itself, or in `spool`, a copy of the images of a compressed
    one.
    """
    try:
        archive = tarfile.open(path, "r:", tarinfo=_TarInfo)  # noqa: SIM115 (closed below)
    except tarfile.ReadError:
        return (*_list_compressed(path, spool), RangeReader(str(spool)))
    with archive:
        found = _list_members(path, archive, lambda member: (member.offset_data, member.size))
    return (*found, RangeReader(str(path)))


def _list_compressed(path: Path, spool: epath.Path) -> tuple[list[File], list[Row]]:
    with spool.open("wb") as out:
        copies = Spool(spool, out)
        try:
            archive = tarfile.open(path, "r|*", tarinfo=_TarInfo)  # noqa: SIM115 (closed below)
        except Exception as error:  # for a damaged stream, errors of nearly any type
            raise DataError(f"--input={path}: damaged tar: {shown_name(str(error))}") from None

        def copy(member: tarfile.TarInfo) -> tuple[int, int] | None:
            archive.members = []  # tarfile would keep every member in memory
            if member.size > MAX_FILE_BYTES or not is_image_name(member.name):
                return None
            return copies.copy(archive.extractfile(member), member.size)

        with archive:
            return _list_members(path, archive, copy)


def _list_members(
    path: Path,
    archive: tarfile.TarFile,
    place_of: Callable[[tarfile.TarInfo], tuple[int, int] | None],
) -> tuple[list[File], list[Row]]:
    """Lists all members. place_of: returns where a member's bytes can be read; None: nowhere."""
    found = _Members()
    try:
        for member in archive:
            _check_name(path, member.name)
            if not member.isdir():
                _add_tar_member(member, found, place_of)
        if _goes_on(archive):
            found.leave_out(path.name, "what is behind the end of the tar: a second one?")
    except (FsditError, OSError):  # errors of the disk that holds the spool
        raise
    except Exception as error:
        raise DataError(f"--input={path}: damaged tar: {shown_name(str(error))}") from None
    return found.resolved()


def _add_tar_member(
    member: tarfile.TarInfo,
    found: _Members,
    place_of: Callable[[tarfile.TarInfo], tuple[int, int] | None],
) -> None:
    name = plain(member.name)
    if member.islnk():
        target = plain(member.linkname)
        if first := found.files.get(target):  # the file so far: a later member may replace it
            found.add(File(name, first.size, first.place))
        else:
            found.add_link(name, target)
    elif member.issym():
        found.add_link(name, posixpath.join(posixpath.dirname(name), member.linkname))
    elif member.issparse():
        found.leave_out(name, "a sparse file: pack it without --sparse")
    elif not member.isfile():
        found.leave_out(name, "no regular file")
    elif place := place_of(member):
        found.add(File(name, place[1], place))
    elif is_image_name(name):
        found.leave_out(name, f"a file of {member.size} bytes")
    else:
        found.add(File(name, member.size, (0, 0)))  # counted among other files, by its name


def _goes_on(archive: tarfile.TarFile) -> bool:
    """Whether more than zeros follows the end of a tar."""
    for _ in range(_MAX_FILL // tarfile.RECORDSIZE):
        block = archive.fileobj.read(tarfile.RECORDSIZE)
        if not block or block.strip(b"\0"):
            return bool(block)
    return True


def _check_name(path: Path, name: str) -> None:
    """Raises DataError for a name that could lead out of the folder it is unpacked in."""
    if "\0" in name:
        raise DataError(f"--input={path}: member {name!r} has a zero byte in its name")
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or _DRIVE.fullmatch(parts[0]):
        raise DataError(
            f"--input={path}: member {name!r} points outside the archive; refused as a whole"
        )
