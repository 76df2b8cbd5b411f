"""Shards: the ArrayRecord files that hold the records of a dataset.

A shard is written under a temporary name and renamed, so a file under its own name is complete.
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

# One record a group makes random access cheap; images are compressed already; threads of
# the writer cost a small record three times what it takes to write.
_WRITER_OPTIONS = "group_size:1,uncompressed,max_parallelism:1"
_SHARD_NAME = re.compile(r"(.+)-\d{5}-of-\d{5}\.array_record")


def shard_name(kind: str, index: int, count: int) -> str:
    return f"{kind}-{index:05d}-of-{count:05d}.array_record"


def shard_kind(name: str) -> str | None:
    """Inverse of `shard_name`: "features-a" and "features-a-b" are different kinds."""
    match = _SHARD_NAME.fullmatch(name)
    return match[1] if match else None


def attempt_name() -> str:
    """A name of its own for each attempt: a cluster may run one task twice at once."""
    return uuid.uuid4().hex


def write_shard(path: epath.PathLike, payloads: Iterable[bytes]) -> dict[str, Any]:
    """Writes one file under a temporary name, renames it, returns its manifest entry.

    Raises OutputError, such as for a full disk.
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
        except (RuntimeError, ValueError) as error:  # the library has no other kinds
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
    """Opens a file of `count` records, or of any number. Raises DataError.

    The library opens whatever it is given: a file whose index is damaged has no records.
    """
    try:
        reader = array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0")
        if not reader.ok():
            reader.read([0])  # raises what ails it
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
    """One record of an open file. Raises DataError naming file and record."""
    try:
        return reader.read([index])[0]
    except Exception as error:
        raise DataError(f"{path}, record {index}: damaged: {first_line(error)}") from None


def read_shard(path: epath.PathLike) -> Iterator[bytes]:
    """The records of one file in order. Raises DataError."""
    reader = open_shard(path)
    for i in range(reader.num_records()):
        yield read_record(reader, path, i)
