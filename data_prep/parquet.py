"""Parquet files as model hubs export them: an image column and a label column."""

import json
import re
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import parquet

from data_prep.entries import SPLIT_NAMES, Entry, printable
from fsdit.errors import DataError

_ROWS = 64  # held in memory at a time


def copy_tables(
    root: Path, files: list[Path], columns: tuple[str, str], spool: BinaryIO
) -> list[Entry]:
    """Copies the images to `spool`, row by row; their entries in order of file and row.

    A row is the unit of compression's block, not of access: images of one class may lie
    in every block, and reading each again for every class would never end. The split is
    what the file is called after: train-00000-of-00004.parquet. Raises DataError.
    """
    entries = []
    for path in files:
        name = path.relative_to(root).as_posix() if root.is_dir() else path.name
        split = SPLIT_NAMES.get(re.split(r"[-_.]", path.name)[0].lower())
        try:
            table = parquet.ParquetFile(path)
            names = _check_columns(path, table.schema_arrow, *columns)
            row = 0
            for batch in table.iter_batches(_ROWS, columns=list(columns)):
                for image, label in zip(*(batch[c].to_pylist() for c in columns), strict=True):
                    data = _image_bytes(image)
                    place = (spool.tell(), len(data))
                    spool.write(data)
                    key = f"{name}/{row:08d}"
                    label = _label(label, names)
                    entries.append(Entry(printable(key), label, split, len(data), place))
                    row += 1
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: not a Parquet file, or damaged: {error}") from None
    return entries


def _image_bytes(value: Any) -> bytes:
    """A null, or a mere path, is an empty image, which is listed as one that cannot be used."""
    return (value.get("bytes") if isinstance(value, dict) else value) or b""


def _label(value: Any, names: list[str] | None) -> str:
    if value is None:
        return ""
    if names is not None and isinstance(value, int) and 0 <= value < len(names):
        return printable(names[value])
    return printable(str(value))


def _check_columns(path: Path, schema: pa.Schema, image: str, label: str) -> list[str] | None:
    """Class names from the hub's description of the features, where there is one."""
    for flag, column in (("image_column", image), ("label_column", label)):
        if column not in schema.names:
            raise DataError(f"{path}: no column --{flag}={column}; has {', '.join(schema.names)}")
    kind = schema.field(image).type
    holds = kind.field("bytes").type if pa.types.is_struct(kind) and _has_bytes(kind) else kind
    if not (pa.types.is_binary(holds) or pa.types.is_large_binary(holds)):
        raise DataError(f"{path}: --image_column={image} holds {kind}, not encoded images")
    kind = schema.field(label).type
    if not (
        pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    ):
        raise DataError(f"{path}: --label_column={label} holds {kind}, not class names or numbers")
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[label]["names"]]
    except (KeyError, TypeError, ValueError):
        return None


def _has_bytes(kind: pa.StructType) -> bool:
    return kind.get_field_index("bytes") >= 0
