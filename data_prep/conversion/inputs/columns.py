"""The columns of a Parquet file that hold images and labels, and what their values are."""

import dataclasses
import decimal
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_prep.conversion.inputs.entries import class_name, shown_name
from fsdit.errors import DataError

_UNLABELLED = "no label"


@dataclasses.dataclass(frozen=True)
class Column:
    """A column, or a field inside one.

    flag: the flag that names it, for messages. top: the column. fields: names that lead into
    it. kind: type of its values.
    """

    flag: str
    top: str
    fields: tuple[str, ...]
    kind: pa.DataType

    def values(self, batch: pa.RecordBatch) -> list[Any]:
        values = batch[self.top].to_pylist()
        for field in self.fields:
            values = [None if value is None else value[field] for value in values]
        return values


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of a file that are read. label: a column, or the label of all rows.

    names: names of the classes by index, where the file describes them as hubs do.
    """

    image: Column
    label: Column | str
    names: Sequence[str] | None

    @property
    def tops(self) -> list[str]:
        """Names of the columns to read."""
        used = [c.top for c in (self.image, self.label) if isinstance(c, Column)]
        return list(dict.fromkeys(used))

    def labels(self, batch: pa.RecordBatch) -> list[Any]:
        if isinstance(self.label, Column):
            return self.label.values(batch)
        return [self.label] * len(batch)


def has_images(schema: pa.Schema, image: str) -> bool:
    """Whether a file has the image column at all."""
    return _found(schema, image) is not None


def find_columns(
    path: Path, schema: pa.Schema, image: str, label: str, partition: Mapping[str, str]
) -> Columns:
    """Finds the columns of a file. Raises DataError.

    partition: values in the names of the file's folders, such as `label=cat`.
    """
    images = _column(path, schema, "image_column", image)
    if not _is_image(images.kind):
        kind = shown_name(str(images.kind))
        raise DataError(f"{path}: {images.flag} holds {kind}, not encoded images")
    if label in partition and _found(schema, label) is None:
        return Columns(images, partition[label], None)
    labels = _column(path, schema, "label_column", label)
    if not _is_label(labels.kind):
        raise _no_labels(path, labels)
    return Columns(images, labels, _class_names(schema, label))


def _column(path: Path, schema: pa.Schema, flag: str, name: str) -> Column:
    if found := _found(schema, name):
        if schema.names.count(found[0]) > 1:
            raise DataError(f"{path}: two columns --{flag}={name}")
        kind = schema.field(found[0]).type
        for field in found[1]:
            kind = kind.field(field).type
        return Column(f"--{flag}={name}", *found, kind)
    has = shown_name(", ".join(schema.names))
    raise DataError(f"{path}: no column --{flag}={name}; has {has}")


def _found(schema: pa.Schema, name: str) -> tuple[str, tuple[str, ...]] | None:
    """Returns (column, fields in it) of a name; pandas writes `image.bytes` for the struct."""
    for top in (name, f"{name}.bytes"):
        if top in schema.names:
            return top, ()
    top, *fields = name.split(".")
    if not fields or schema.names.count(top) != 1:
        return None
    kind = schema.field(top).type
    for field in fields:
        if not pa.types.is_struct(kind) or kind.get_field_index(field) < 0:
            return None
        kind = kind.field(field).type
    return top, tuple(fields)


def _stored(kind: pa.DataType) -> pa.DataType:
    """Returns a type without extensions and dictionaries, which do not change the values."""
    if isinstance(kind, pa.BaseExtensionType):
        return _stored(kind.storage_type)
    return _stored(kind.value_type) if pa.types.is_dictionary(kind) else kind


def _is_binary(kind: pa.DataType) -> bool:
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _is_text(kind: pa.DataType) -> bool:
    return (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _is_image(kind: pa.DataType) -> bool:
    kind = _stored(kind)
    if hasattr(kind, "value_type"):  # a list of images
        kind = _stored(kind.value_type)
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = _stored(kind.field("bytes").type)
    return _is_binary(kind)


def _is_label(kind: pa.DataType) -> bool:
    kind = _stored(kind)
    number = (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_boolean(kind)
    )
    return number or _is_text(kind) or _is_binary(kind) or pa.types.is_null(kind)


def _class_names(schema: pa.Schema, label: str) -> list[str] | None:
    """Returns class names by the hub's description; equal ones get their index added."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    if not isinstance(names, list):
        return None
    names = [class_name(str(name)) for name in names]
    count = Counter(names)
    return [f"{name} ({i})" if count[name] > 1 else name for i, name in enumerate(names)]


def image_bytes(value: Any) -> list[bytes]:
    """Returns the encoded images of a row; b"" for a null or a path without content."""
    if isinstance(value, list) and value:
        return [data for one in value for data in image_bytes(one)]
    data = value.get("bytes") if isinstance(value, dict) else value
    return [data if isinstance(data, bytes) else b""]


def label_text(path: Path, columns: Columns, value: Any) -> tuple[str, str]:
    """Returns (class, "") or ("", why there is none).

    Raises DataError for a number that cannot be a class.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if isinstance(value, float | decimal.Decimal):  # pandas: integers of which some are missing
        if math.isnan(value):
            return "", _UNLABELLED
        if not math.isfinite(value) or value != int(value):
            raise _no_labels(path, columns.label, f", and {value} is no number of a class")
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return _numbered(value, columns.names)
    label = class_name(str(value)) if value is not None else ""
    return label, "" if label else _UNLABELLED


def _numbered(value: int, names: Sequence[str] | None) -> tuple[str, str]:
    if value == -1:  # hubs write it for images without a label
        return "", _UNLABELLED
    if names is None:
        return str(value), ""
    if not 0 <= value < len(names):
        return "", f"label {value}, of {len(names)} that have names"
    return names[value], ""


def _no_labels(path: Path, column: Column, what: str = "") -> DataError:
    kind = shown_name(str(column.kind))
    return DataError(f"{path}: {column.flag} holds {kind}{what}, not class names or numbers")
