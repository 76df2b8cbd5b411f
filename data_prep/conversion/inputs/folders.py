"""A folder as an input: every file below it, and reading one of them."""

import dataclasses
import os
import stat
from pathlib import Path
from typing import NoReturn

from data_prep.conversion.inputs.entries import File, Row, is_hidden, plain, shown_name, skipped
from fsdit.data.images.image_files import read_file
from fsdit.errors import DataError, system_text

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclasses.dataclass(frozen=True)
class FolderReader:
    """Reads files of a folder by their path below it."""

    root: str

    def read(self, place: str) -> bytes:
        """Raises OSError, and UnusableImageError for what is no regular file."""
        return read_file(Path(self.root, place))


def list_folder(root: Path) -> tuple[list[File], list[Row]]:
    """Lists a folder: (regular files below it, rows of what is no regular file).

    Links to folders are followed, but each folder is read once. Hidden folders are not entered
    and are listed as if they were files. Raises DataError for a folder that cannot be read.
    """
    files: list[File] = []
    rows: list[Row] = []
    seen: dict[str, str] = {}
    for folder, folders, names in os.walk(root, onerror=_refuse, followlinks=True):
        base = Path(folder).relative_to(root).as_posix()
        if first := seen.get(real := os.path.realpath(folder)):
            rows.append(skipped(base, f"the same folder as {shown_name(first)}"))
            folders.clear()
            continue
        seen[real] = base
        hidden = [name for name in folders if is_hidden(name)]
        folders[:] = sorted(set(folders).difference(hidden))  # decides which of two links counts
        for name in [*hidden, *names]:
            place = name if base == "." else f"{base}/{name}"
            size, problem = (0, None) if name in hidden else _size(Path(folder, name))
            if problem:
                rows.append(skipped(place, problem))
            else:
                files.append(File(plain(place), size, place))
    return files, rows


def _refuse(error: OSError) -> NoReturn:
    folder = shown_name(str(error.filename))
    raise DataError(
        f"--input: the folder {folder} cannot be read: {system_text(error)}: make it readable, or "
        "take it out of --input"
    )


def _size(path: Path) -> tuple[int, str | None]:
    """Returns (bytes, None), or what the file is if it is no regular one."""
    try:
        status = path.stat()
    except OSError:
        return 0, None  # for example a link to nowhere, which reading will report as unusable
    kind = _KINDS.get(stat.S_IFMT(status.st_mode))
    return status.st_size, f"{kind}, not a regular file" if kind else None
