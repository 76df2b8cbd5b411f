"""Reading the small files of a checkpoint that anybody may have made: JSON, typed fields."""

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from fsdit.config.objects import parse_object
from fsdit.config.problems import shown
from fsdit.errors import DataError, first_line, system_text

T = TypeVar("T")

_LARGEST_JSON = 2**26  # bytes


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object of a checkpoint.

    Errors:
        DataError: no such file, or no JSON object in it.
    """
    if not path.exists():
        raise DataError(f"{path} is missing; fetch {path.name} of the checkpoint too")
    check_plain(path, _LARGEST_JSON)
    try:
        return parse_object(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {system_text(error)}") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {first_line(error)}; fetch it again") from None
    except TypeError:
        raise DataError(f"{path} holds no JSON object; fetch it again") from None


def check_plain(path: Path, largest: int | None = None) -> None:
    """Raises DataError for pipes and devices, which never end or wait for a writer.

    largest: the most bytes that a file may have; None: any number.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}") from None
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{path} is no plain file; put the checkpoint's own there")
    if largest is not None and found.st_size > largest:
        raise DataError(f"{path} has {found.st_size / 1e6:.0f} MB, too much for what it should be")


def parse_fields(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Makes the dataclass `cls` from the entries of `values` that it names, and checks types.

    Errors:
        DataError: a field is missing or of another type; `where` names the file.
    """
    try:
        return pydantic.TypeAdapter(cls).validate_python(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        given = "" if first["type"] == "missing" else f", given {shown(first['input'])}"
        raise DataError(f"{where}: {field}: {first['msg']}{given}") from None
