"""One file that holds the images of an input that cannot be read at random."""

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
    """Parts of one file: members of an uncompressed tar, or of a spool."""

    path: str

    def read(self, place: Sequence[int]) -> bytes:
        """Bytes at (offset, size). Raises OSError."""
        offset, size = place
        with epath.Path(self.path).open("rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) != size:
            raise OSError(f"ends after {len(data)} of {size} bytes")
        return data


class Spool:
    """Appends images to a file. Raises OutputError before the disk is full.

    Of what does not begin as an image its beginning is enough to say so later: a small
    archive can hold gigabytes of zeros.
    """

    def __init__(self, path: epath.Path, file: BinaryIO):
        self.path = path
        self._file = file

    def write(self, data: bytes) -> tuple[int, int]:
        """The place of an image, (offset, size)."""
        if not begins_as_image(data[:_HEAD_BYTES]):
            data = data[:_HEAD_BYTES]
        return self._append(len(data), lambda: self._file.write(data))

    def copy(self, source: BinaryIO, size: int) -> tuple[int, int]:
        """The place of an image of `size` bytes that is read from `source`."""
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
        """A small archive can hold very much; a full disk would stop what else runs there."""
        folder = Path(self.path.parent)
        if not folder.is_dir():
            return  # of another file system, which tells itself
        usage = shutil.disk_usage(folder)
        if size > usage.free - min(_MAX_RESERVE, usage.total // 20):
            raise OutputError(
                f"{folder}: no space left for a copy of --input's images: {usage.free} bytes are "
                "free; unpack it where there is room, and name that folder"
            )
