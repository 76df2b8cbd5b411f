"""The spool: one file with the images of an input that cannot be read in any order."""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from etils import epath

from fsdit.data.images.image_files import begins_as_image
from fsdit.errors import OutputError

_COPY_BYTES = 2**20
_HEAD_BYTES = 256
_MAX_RESERVE = 2**30


@dataclasses.dataclass(frozen=True)
class RangeReader:
    """Reads parts of one file: members of an uncompressed tar, or images of a spool."""

    path: str

    def read(self, place: Sequence[int]) -> bytes:
        """Returns the bytes at (offset, size). Raises OSError."""
        offset, size = place
        with epath.Path(self.path).open("rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) != size:
            raise OSError(f"ends after {len(data)} of {size} bytes")
        return data


class Spool:
    """Appends images to a file. Raises OutputError before the disk is full.

    If something does not begin like an image, only its first bytes are kept, which are enough
    to report it later: a small archive can hold gigabytes of zeros.
    """

    def __init__(self, path: epath.Path, file: BinaryIO):
        self.path = path
        self._file = file

    def write(self, data: bytes) -> tuple[int, int]:
        """Appends an image. Returns its place, (offset, size)."""
        if not begins_as_image(data[:_HEAD_BYTES]):
            data = data[:_HEAD_BYTES]
        return self._append(len(data), lambda: self._file.write(data))

    def copy(self, source: BinaryIO, size: int) -> tuple[int, int]:
        """Appends an image of `size` bytes that is read from `source`. Returns its place."""
        head = source.read(_HEAD_BYTES)
        if not begins_as_image(head):
            return self.write(head)

        def copy() -> None:
            self._file.write(head)
            shutil.copyfileobj(source, self._file, _COPY_BYTES)

        return self._append(size, copy)

    def _append(self, size: int, write: Callable[[], object]) -> tuple[int, int]:
        self._check_room(size)
        place = (self._file.tell(), size)
        write()
        return place

    def _check_room(self, size: int) -> None:
        """Raises OutputError before the disk is full, which would stop other programs too."""
        folder = Path(self.path.parent)
        if not folder.is_dir():
            return  # a remote file system, which reports a lack of room itself
        usage = shutil.disk_usage(folder)
        if size > usage.free - min(_MAX_RESERVE, usage.total // 20):
            raise OutputError(
                f"{folder}: no space left for a copy of --input's images: {usage.free} bytes are "
                "free; unpack it where there is room, and name that folder"
            )
