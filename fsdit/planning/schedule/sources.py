"""Where in the model's code an instruction of a printed program comes from.

The printed program begins with tables of file names, function names, places in files and frames
of call stacks; an instruction refers to a frame by `stack_frame_id`. JAX writes them.
"""

import linecache
import re
from typing import NamedTuple

_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_FIELD = re.compile(r"(\w+)=(\d+)")
_OPERATION = re.compile(r'op_name="([^"]*)"')


class Call(NamedTuple):
    """One frame of a call stack. line: text of the line of source, "" where it is not there."""

    function: str
    line: str


class Sources:
    """The call stacks of a printed program."""

    def __init__(self, text: str):
        tables = {name: _table(text, name) for name in _TABLES}
        self._files, self._functions, self._places, self._frames = tables.values()

    def calls(self, attributes: str) -> list[Call]:
        """The call stack of an instruction with these attributes, innermost first."""
        found, calls, seen = _FRAME.search(attributes), [], set()
        frame = int(found[1]) if found else 0
        while frame in self._frames and frame not in seen:
            seen.add(frame)
            fields = _fields(self._frames[frame])
            calls.append(self._call(fields.get("file_location_id", 0)))
            # A parent is counted from one where zero is absent: 1 is the frame that has none.
            frame = fields.get("parent_frame_id", 1) - 1
        return calls

    def _call(self, place: int) -> Call:
        fields = _fields(self._places.get(place, ""))
        file = self._files.get(fields.get("file_name_id", 0), "").strip('"')
        function = self._functions.get(fields.get("function_name_id", 0), "").strip('"')
        return Call(function, linecache.getline(file, fields.get("line", 0)).strip())


def operation(attributes: str) -> str:
    """JAX's name of what an instruction computes, such as "jit(f)/transpose(jvp())/add"."""
    found = _OPERATION.search(attributes)
    return found[1] if found else ""


def _fields(entry: str) -> dict[str, int]:
    return {name: int(value) for name, value in _FIELD.findall(entry)}


def _table(text: str, name: str) -> dict[int, str]:
    """The rows of a table: number -> the rest of its line."""
    start = text.find(f"\n{name}\n")
    if start < 0:
        return {}
    rows = {}
    for line in text[start + len(name) + 2 : text.find("\n\n", start)].splitlines():
        number, _, rest = line.partition(" ")
        if number.isdigit():
            rows[int(number)] = rest
    return rows
