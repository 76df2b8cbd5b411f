"""Logs of one JSON object a line, which a resumed run continues.

A kill may cut a line off, and a disk may change its bytes. Such a line is left out with a
warning, and all others are kept.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from fsdit.config.objects import parse_object
from fsdit.events import writing

_Row = TypeVar("_Row")


class LineLog(Generic[_Row]):
    """A log that is continued where an earlier start left it.

    rows: what the file held before, as `parse` returned it. Its methods raise OutputError.
    """

    def __init__(
        self,
        path: Path,
        parse: Callable[[dict[str, Any]], _Row],
        wanted: Callable[[_Row], bool] = lambda row: True,
    ):
        """parse: as for `read_lines`. wanted: whether a row stays in the file."""
        self._path = path
        with writing(path):
            kept = [(line, row) for line, row in read_lines(path, parse) if wanted(row)]
            self.rows = [row for _, row in kept]
            _replace(path, (line for line, _ in kept))
            self._file = path.open("a", encoding="utf-8")

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes a line, and hands it to the system: a kill of this process does not lose it."""
        with writing(self._path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def close(self) -> None:
        with writing(self._path):
            self._file.close()


def read_lines(path: Path, parse: Callable[[dict[str, Any]], _Row]) -> list[tuple[bytes, _Row]]:
    """(the line without its line break, what `parse` makes of its JSON) of each valid line.

    parse: raises ValueError, KeyError or TypeError for a line that does not belong in this log.
    Returns [] where there is no file. Prints one warning for all invalid lines; a last line
    that was cut off does not count as one.
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


def _replace(path: Path, lines: Iterable[bytes]) -> None:
    """Makes these lines the content of the file; a kill leaves the old content or the new."""
    content = b"".join(line + b"\n" for line in lines)
    if not path.exists() or path.read_bytes() != content:
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(content)
        partial.replace(path)


def _parsed(line: bytes, parse: Callable[[dict[str, Any]], _Row]) -> _Row | None:
    try:
        return parse(parse_object(line.decode()))
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
