"""Shards: the ArrayRecord files that hold the records of a dataset.

A shard is written under a temporary name and then renamed, so a file with the name of a shard is
complete.
"""

import contextlib
import hashlib
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from array_record.python import array_record_module
from etils import epath

from fsdit.errors import DataError, OutputError, first_line

# One record a group makes random access cheap. Images are compressed already. For small records,
# threads of the writer cost three times what writing costs.
_WRITER_OPTIONS = "group_size:1,uncompressed,max_parallelism:1"
_SHARD_NAME = re.compile(r"(.+)-\d{5}-of-\d{5}\.array_record")


def shard_name(kind: str, index: int, count: int) -> str:
    """Returns the name of the shard `index` among `count` shards of a kind, such as "images"."""
    return f"{kind}-{index:05d}-of-{count:05d}.array_record"


def shard_kind(name: str) -> str | None:
    """Returns the kind in the name of a shard; None for another name.

    "features-a" and "features-a-b" are different kinds.
    """
    match = _SHARD_NAME.fullmatch(name)
    return match[1] if match else None


def attempt_name() -> str:
    """Returns a new name for each attempt, because a cluster may run one task twice at once."""
    return uuid.uuid4().hex


def write_shard(path: epath.PathLike, payloads: Iterable[bytes]) -> dict[str, Any]:
    """Writes the records of one shard. Returns its manifest entry: records, bytes, sha256.

    Raises OutputError, for example for a full disk.
    """
    path = epath.Path(path)
    partial = path.with_name(f"{path.name}.{attempt_name()}.partial")
    try:
        records = _write_records(partial, payloads)
        with partial.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        entry = {"records": records, "bytes": partial.stat().length, "sha256": digest}
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return entry


def _write_records(path: epath.Path, payloads: Iterable[bytes]) -> int:
    def written(action: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return action(*arguments)
        except (RuntimeError, ValueError) as error:  # the library raises no other kinds
            raise OutputError(f"{path.parent}: could not be written: {error}") from None

    writer = written(array_record_module.ArrayRecordWriter, str(path), _WRITER_OPTIONS)
    records = 0
    try:
        for payload in payloads:
            written(writer.write, payload)
            records += 1
    except BaseException:
        with contextlib.suppress(RuntimeError, ValueError):
            writer.close()
        raise
    written(writer.close)
    return records


def open_shard(
    path: epath.PathLike, count: int | None = None
) -> array_record_module.ArrayRecordReader:
    """Opens a shard. Raises DataError where it cannot be read, or has not `count` records.

    count: None: any number. The library opens any file; one with a damaged index seems to have
    no records.
    """
    try:
        reader = array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0")
        if not reader.ok():
            reader.read([0])  # raises an error that says what is wrong
        found = reader.num_records()
    except Exception as error:
        raise DataError(
            f"{path}: cannot be opened, no record can be read: {first_line(error)}"
        ) from None
    if count not in (None, found):
        raise DataError(f"{path}: has {found} records, the manifest says {count}")
    return reader


def read_record(
    reader: array_record_module.ArrayRecordReader, path: epath.PathLike, index: int
) -> bytes:
    """Reads one record of an open shard. Raises DataError naming file and record."""
    try:
        return reader.read([index])[0]
    except Exception as error:
        raise DataError(f"{path}, record {index}: damaged: {first_line(error)}") from None


def read_shard(path: epath.PathLike) -> Iterator[bytes]:
    """Yields the records of one shard in order. Raises DataError."""
    reader = open_shard(path)
    for i in range(reader.num_records()):
        yield read_record(reader, path, i)
