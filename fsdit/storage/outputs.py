"""Output that goes into a bucket: written on a local disk first, and published when complete.

An object of a bucket cannot be appended to or renamed; it is replaced as a whole. So a program
writes into a local folder, and the files are uploaded from there. For an output on a disk the
functions of this module yield the output itself, and publish nothing.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fsdit.errors import ConfigError, DataError, OutputError, remedy, system_text
from fsdit.storage import bucket
from fsdit.storage.copies import copied, copy, folder_of, note_copied
from fsdit.storage.places import PathLike, is_remote, split

# Names of the files that say that a dataset is complete. They are uploaded last.
_SEALS = ("manifest.json", "dataset.json")
# Endings of files that are only of use where they were written.
_LOCAL = (".partial", ".lock", "/lock", "lock.since")

Wanted = Callable[[str], bool]


class Mirror:
    """A local folder whose files are published to a folder of a bucket.

    folder: where to write. remote: whether that is not the output itself.
    """

    def __init__(self, output: PathLike, local: Path | None = None):
        """local: the local folder for a remote output; None: one by the output's path."""
        self._output = str(output).rstrip("/")
        self.remote = is_remote(self._output)
        self._published: dict[str, tuple[int, int]] = {}
        if self.remote:
            name = Path(split(self._output)[1]).name
            self.folder = local or folder_of(self._output, "outputs") / name
        else:
            self.folder = Path(self._output)

    def fetch(self, wanted: Wanted = lambda name: True) -> None:
        """Copies the wanted files of the bucket's folder into the local one. Raises DataError."""
        if self.remote:
            found = {n: o for n, o in bucket.objects(self._output).items() if wanted(n)}
            copy(found, self._output, self.folder)
            self._published |= {name: _state(self.folder / name) for name in found}

    def resume(self) -> None:
        """Goes on with the local folder that an earlier start has fetched and changed.

        Raises DataError where the bucket's folder has changed since.
        """
        found, held = bucket.objects(self._output), copied(self.folder)
        for name, each in held.items():
            if name not in found or [found[name].size, found[name].generation] != each:
                raise DataError(
                    f"{self._output}/{name} has changed since an earlier start began to work on "
                    f"a copy: delete {self.folder.parent} to begin again"
                )
        # Which of the local files have changed is not known, so all are uploaded again.
        self._published = dict.fromkeys(held, (-1, -1))

    def publish(self) -> None:
        """Uploads what is new or changed, and deletes what was fetched and is gone.

        Raises OutputError. A kill leaves whole files only, and a dataset without its last file.
        """
        if not self.remote:
            return
        files = {name: _state(self.folder / name) for name in _files(self.folder)}
        for name in sorted(files, key=_place_in_order):
            if self._published.get(name) != files[name]:
                note_copied(
                    self.folder, name, bucket.upload(self.folder / name, f"{self._output}/{name}")
                )
                self._published[name] = files[name]
        for name in [name for name in self._published if name not in files]:
            bucket.delete(f"{self._output}/{name}")
            note_copied(self.folder, name, None)
            del self._published[name]

    def discard(self) -> None:
        """Deletes the local folder of a remote output, and what lies beside it."""
        if self.remote:
            shutil.rmtree(self.folder.parent, ignore_errors=True)


@contextlib.contextmanager
def mirrored(output: PathLike, process: int, fetched: Wanted) -> Iterator[Mirror]:
    """A mirror of a folder that a run goes on with, published at the end of the block.

    fetched: the files that the run continues. process: index of this process; each has a local
    folder of its own. What an earlier start has left there is deleted: the bucket counts.
    """
    local = folder_of(str(output), "runs") / str(process)
    mirror = Mirror(output, local / Path(split(output)[1]).name)
    if mirror.remote:
        shutil.rmtree(local, ignore_errors=True)
    mirror.fetch(fetched)
    try:
        yield mirror
    except BaseException:
        with contextlib.suppress(OutputError):  # the error that ends the run is the one to show
            mirror.publish()
        raise
    mirror.publish()


@contextlib.contextmanager
def new_folder(output: PathLike, seal: str) -> Iterator[Path]:
    """Yields a local path for a new folder, and publishes the folder.

    seal: name of a file that a complete folder has. The program makes the folder as
    NAME.partial and renames it. After a kill the next start finds it under that name again.
    Raises ConfigError where the bucket has the file already.
    """
    mirror = Mirror(output)
    if mirror.remote:
        if bucket.find(f"{str(output).rstrip('/')}/{seal}"):
            raise ConfigError(f"{output} exists and is not empty: name a new folder")
        partial = mirror.folder.with_name(f"{mirror.folder.name}.partial")
        with _writable(mirror.folder.parent):
            mirror.folder.parent.mkdir(parents=True, exist_ok=True)
            if mirror.folder.exists():  # an earlier start was killed while it published
                shutil.rmtree(partial, ignore_errors=True)
                mirror.folder.rename(partial)
    yield mirror.folder
    mirror.publish()
    mirror.discard()


@contextlib.contextmanager
def changed_folder(output: PathLike) -> Iterator[Path]:
    """Yields a local copy of a folder to change, and publishes the changes.

    After an error or a kill the copy stays, and the next start goes on with it.
    """
    mirror = Mirror(output)
    if mirror.remote:
        if copied(mirror.folder):
            mirror.resume()
        else:
            mirror.fetch()
    yield mirror.folder
    mirror.publish()
    mirror.discard()


@contextlib.contextmanager
def output_file(output: PathLike) -> Iterator[Path]:
    """Yields a local path for a file, and publishes it with all that is written beside it."""
    if not is_remote(output):
        yield Path(output)
        return
    parent, _, name = str(output).rpartition("/")
    mirror = Mirror(parent, folder_of(str(output), "outputs") / "files")
    mirror.discard()
    with _writable(mirror.folder):
        mirror.folder.mkdir(parents=True, exist_ok=True)
    yield mirror.folder / name
    mirror.publish()
    mirror.discard()


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{folder}: {system_text(error)}; {remedy(error)}") from error


def _files(folder: Path) -> Sequence[str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in found)
    return [name for name in names if not f"/{name}".endswith(_LOCAL)]


def _state(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def _place_in_order(name: str) -> tuple[int, str]:
    last = name.rpartition("/")[2]
    return (_SEALS.index(last) + 1 if last in _SEALS else 0), name
