"""Parquet files as model hubs and pandas write them: an image column and a label column."""

import contextlib
import re
import urllib.parse
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow import parquet

from data_prep.conversion.inputs.columns import (
    Columns,
    find_columns,
    has_images,
    image_bytes,
    label_text,
)
from data_prep.conversion.inputs.entries import SPLIT_NAMES, Entry, Row, shown_name, skipped
from data_prep.conversion.inputs.spool import Spool
from fsdit.data.images.image_files import MAX_FILE_BYTES
from fsdit.errors import DataError, first_line

_ROWS = 64  # held in memory at a time


def any_has_images(root: Path, names: Sequence[str], image: str) -> bool:
    """Whether one of the files has the image column, and not just notes about images."""
    for name in names:
        with contextlib.suppress(DataError):
            if has_images(_opened(root / name).schema_arrow, image):
                return True
    return False


def copy_tables(
    root: Path, names: Sequence[str], columns: tuple[str, str], spool: Spool
) -> tuple[list[Entry], list[Row]]:
    """Copies the images to `spool`, row by row. Returns entries, and rows of skipped.csv.

    Parquet compresses blocks of rows, and images of one class may lie in every block; reading
    all blocks again for every class would take far too long. names: of the files below `root`,
    in whose order the entries are. Raises DataError.
    """
    entries: list[Entry] = []
    rows: list[Row] = []
    for name in names:
        path = root / name
        table = _opened(path)
        found = find_columns(path, table.schema_arrow, *columns, _partition(name))
        try:
            _copy(path, name, table, found, spool, entries, rows)
        except (pa.ArrowException, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # an error of the disk that holds the spool
            raise _damaged(path, error) from None
    return entries, rows


def _opened(path: Path) -> parquet.ParquetFile:
    try:
        return parquet.ParquetFile(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: not a Parquet file, or damaged: {shown_name(first_line(error))}")


def _copy(
    path: Path,
    name: str,
    table: parquet.ParquetFile,
    columns: Columns,
    spool: Spool,
    entries: list[Entry],
    rows: list[Row],
) -> None:
    split, row = split_of(name), 0
    for batch in table.iter_batches(_ROWS, columns=columns.tops):
        values = zip(columns.image.values(batch), columns.labels(batch), strict=True)
        for value, number in values:
            label, problem = label_text(path, columns, number)
            images = image_bytes(value)
            for i, data in enumerate(images):
                key = f"{name}/{row:08d}" + (f".{i}" if len(images) > 1 else "")
                if problem or len(data) > MAX_FILE_BYTES:
                    rows.append(skipped(key, problem or f"a file of {len(data)} bytes"))
                    continue
                place = spool.write(data)
                entries.append(Entry(shown_name(key), label, split, len(data), place))
            row += 1


def split_of(name: str) -> str | None:
    """Returns the split that the name of a file or of its folders says, if any.

    train-00000-of-00004.parquet, default/train/0000.parquet, default/partial-train/0000.parquet,
    split=train/part-0.parquet.
    """
    path = PurePosixPath(name)
    words = re.split(r"[-_.\s]+", path.name.lower())
    if words[0] in SPLIT_NAMES:
        return SPLIT_NAMES[words[0]]
    for folder in reversed(path.parts[:-1]):
        word = folder.lower().rpartition("=")[2].removeprefix("partial-")
        if word in SPLIT_NAMES:
            return SPLIT_NAMES[word]
    found = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    return found.pop() if len(found) == 1 else None


def _partition(name: str) -> dict[str, str]:
    """Returns the values in names of folders like `label=cat`, which pandas and Spark write."""
    pairs = (part.split("=", 1) for part in PurePosixPath(name).parts[:-1] if "=" in part)
    found = {key: urllib.parse.unquote(value) for key, value in pairs}
    return {k: "" if v == "__HIVE_DEFAULT_PARTITION__" else v for k, v in found.items()}
