"""Local copies of files in a bucket, kept between starts and downloaded where they are stale."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock

from fsdit.errors import DataError, OutputError, remedy, system_text
from fsdit.storage import bucket
from fsdit.storage.bucket import Object
from fsdit.storage.places import PathLike, is_remote, split

_CONNECTIONS = 8  # downloads at a time
_SPARE = 2**28  # bytes of the disk that stay free

Check = Callable[[str, Path], None]


def cache_folder() -> Path:
    """The folder of local copies: fsdit in XDG_CACHE_HOME, or in ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "fsdit"


def folder_of(path: str, kind: str, cache: str | Path = "") -> Path:
    """The local folder for what belongs to one path in a bucket; equal for equal paths.

    kind: what the folder is for, such as "copies". cache: instead of `cache_folder()`.
    """
    digest = hashlib.sha256(path.rstrip("/").encode()).hexdigest()[:16]
    return Path(cache or cache_folder()) / kind / digest


def local_file(path: PathLike) -> Path:
    """Returns the path of a file on a disk, after copying it there from a bucket.

    A local path is returned as it is. Raises DataError where there is no such object.
    """
    if not is_remote(path):
        return Path(path)
    path = str(path)
    found = bucket.find(path)
    if found is None:
        raise DataError(f"{path}: no such object")
    parent, _, name = path.rpartition("/")
    target = folder_of(parent, "copies") / Path(split(parent)[1]).name
    return copy({name: found}, parent, target) / name


def is_there(path: PathLike) -> bool:
    """Whether there is a file of this name. Raises DataError where a bucket cannot be read."""
    return bucket.find(str(path)) is not None if is_remote(path) else Path(path).is_file()


def local_copy(path: PathLike) -> Path:
    """Returns the path of a file or a folder on a disk, after copying it there from a bucket.

    A local path is returned as it is. What an earlier copy of the folder holds and the bucket no
    longer has is deleted. Raises DataError where there is nothing of this name.
    """
    if not is_remote(path):
        return Path(path)
    path = str(path).rstrip("/")
    inside = bucket.objects(path)
    if not inside:
        return local_file(path)
    target = copy(inside, path, folder_of(path, "copies") / Path(split(path)[1]).name)
    for name in copied(target).keys() - inside.keys():
        (target / name).unlink(missing_ok=True)
    return target


def copy(
    wanted: dict[str, Object],
    folder: str,
    target: Path,
    check: Check = lambda name, file: None,
) -> Path:
    """Copies objects of a folder into the local folder `target`; returns `target`.

    wanted: by name relative to `folder`. A file that an earlier start has copied is kept, unless
    the object has changed since. check: raises DataError where a downloaded file is not what it
    should be; a file gets its name only afterwards. Several processes may copy at once.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f"{target.name}.lock")):
            held = copied(target)
            missing = {
                name: found
                for name, found in wanted.items()
                if held.get(name) != [found.size, found.generation]
                or not _has_size(target / name, found.size)
            }
            _check_room(target, missing, folder)
            _download(missing, folder, target, check)
    except OSError as error:
        raise OutputError(
            f"{target}: {folder} cannot be copied there: {system_text(error)}; {remedy(error)}"
        ) from error
    return target


def _download(
    missing: dict[str, Object],
    folder: str,
    target: Path,
    check: Check,
) -> None:
    """Downloads objects, and notes each so that a start after a kill keeps it."""

    def fetch(item: tuple[str, Object]) -> tuple[str, Object]:
        name, found = item
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.partial")
        bucket.download(f"{folder}/{name}", partial, found)
        check(name, partial)
        partial.replace(file)
        return item

    total, done = sum(found.size for found in missing.values()), 0
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        for number, (name, found) in enumerate(pool.map(fetch, missing.items()), 1):
            note_copied(target, name, found)
            done += found.size
            print(
                f"copied {number} of {len(missing)} files of {folder}, "
                f"{done / 1e6:.1f} of {total / 1e6:.1f} MB",
                flush=True,
            )


def _check_room(target: Path, missing: dict[str, Object], folder: str) -> None:
    needed, free = sum(found.size for found in missing.values()), shutil.disk_usage(target).free
    if needed and needed + _SPARE > free:
        raise OutputError(
            f"{target}: {free / 1e6:.0f} MB are free, the copy of {folder} needs "
            f"{(needed + _SPARE) / 1e6:.0f}: make room, or name another disk with XDG_CACHE_HOME "
            "(for a dataset: config.data.cache_dir)"
        )


def _has_size(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size


def copied(target: Path) -> dict[str, list[int]]:
    """What the local folder `target` holds of a bucket's folder: name -> [size, generation]."""
    try:
        lines = _notes(target).read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    held = {}
    for line in lines:
        try:
            name, *state = json.loads(line)
        except (ValueError, TypeError):  # a kill cut it off: that file is copied again
            continue
        held[name] = state
    return {name: state for name, state in held.items() if state}


def note_copied(target: Path, name: str, found: Object | None) -> None:
    """Notes that a file of `target` has the content of this generation of an object.

    found: None for an object that was deleted. One line is appended, since there may be many files.
    """
    line = [name, found.size, found.generation] if found else [name]
    with _notes(target).open("a", encoding="utf-8") as notes:
        notes.write(json.dumps(line) + "\n")


def _notes(target: Path) -> Path:
    return target.with_name(f"{target.name}.copied.jsonl")
