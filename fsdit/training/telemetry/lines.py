"""Logs of one JSON object a line, read back by the run that goes on with them.

A line may be cut off by a kill, and a disk may change its bytes: what is not whole is
left out with a warning, and costs no other line.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

_Row = TypeVar("_Row")


def read_lines(path: Path, parse: Callable[[object], _Row]) -> list[tuple[bytes, _Row]]:
    """(the line without its end, what `parse` makes of its JSON) of each line that is whole.

    parse: raises ValueError, KeyError or TypeError where the line is none of the log's. []
    where there is no file. Warns once of damaged lines, the last one if it was cut off
    excepted.
    """
    if not path.exists():
        return []
    *lines, cut_off = path.read_bytes().split(b"\n")
    parsed = [(line, _parsed(line, parse)) for line in lines]
    if damaged := sum(row is None for _, row in parsed):
        print(f"warning: {path}: {damaged} damaged lines are left out", flush=True)
    if (row := _parsed(cut_off, parse)) is not None:
        parsed.append((cut_off, row))
    return [(line, row) for line, row in parsed if row is not None]


def keep(path: Path, lines: Iterable[bytes]) -> None:
    """Leaves these lines in the file, and nothing else; whole or as it was."""
    content = b"".join(line + b"\n" for line in lines)
    if not path.exists() or path.read_bytes() != content:
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(content)
        partial.replace(path)


def _parsed(line: bytes, parse: Callable[[object], _Row]) -> _Row | None:
    try:
        return parse(json.loads(line.decode()))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
