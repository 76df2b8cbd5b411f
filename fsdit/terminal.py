"""Printing that does no harm: escape codes made visible, a reader that left or was never there.

Names of classes, files and records come from others. What a terminal would obey in them
(colours, titles, the cursor) is shown instead. Whether somebody reads a program's output
changes neither its work nor its exit status.
"""

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterable
from typing import Any

# Control characters but tab, line feed and carriage return; line and paragraph separators;
# marks that turn the direction of writing.
_UNSAFE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    """The text with what a terminal would obey written as escapes, \\x1b and the like."""
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)


class SafeStream:
    """A text stream that writes `harmless` text, and nowhere once its reader has left."""

    def __init__(self, stream: io.TextIOBase):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(harmless(text))
        except BrokenPipeError:
            self._leave()
            return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._leave()

    def _leave(self) -> None:
        """What is written from now on, by libraries and children too, goes nowhere."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def guard_output() -> None:
    """Makes sys.stdout and sys.stderr safe to print to, whatever they are."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:  # closed by who started the program
            stream = _nowhere(number)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of files need be no text
        if not isinstance(stream, SafeStream):
            setattr(sys, name, SafeStream(stream))


def _nowhere(number: int) -> io.TextIOBase:
    """A stream to nowhere. It takes the number of a closed descriptor, so that no data file
    gets it and with it what libraries print."""
    opened = os.open(os.devnull, os.O_WRONLY)
    try:
        os.fstat(number)
    except OSError:
        os.dup2(opened, number)
    if opened != number:
        os.close(opened)
    return open(os.devnull, "w")  # noqa: PTH123  # for as long as the program lives
