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
        except OSError:  # such as EPIPE of a pipe, EIO of a closed terminal
            self._leave()
            return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:  # such as EPIPE of a pipe, EIO of a closed terminal
            self._leave()

    def _leave(self) -> None:
        """What is written from now on, by libraries and children too, goes nowhere."""
        with contextlib.suppress(OSError, ValueError):
            _open_nowhere(self._stream.fileno())
            self._stream.flush()


def guard_output() -> None:
    """Makes sys.stdout and sys.stderr safe to print to, whatever they are.

    Descriptors 0 to 2 that are closed are opened on /dev/null: the next file that is opened
    would take their number, and get what libraries print.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            _open_nowhere(number)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name) or os.fdopen(number, "w", closefd=False)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of files need be no text
        if not isinstance(stream, SafeStream):
            setattr(sys, name, SafeStream(stream))


def _open_nowhere(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)
