"""Standard output and error whose reader may leave: a closed terminal, `| head`, a closed file."""

import contextlib
import os
import sys
from typing import Any


class _Patient:
    """A text stream. Once nobody reads it, what is written goes nowhere."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._silence()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._silence()

    def _silence(self) -> None:
        """Its file becomes /dev/null, for libraries too that write to it directly."""
        _open_nothing(self._stream.fileno())
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def outlive_readers() -> None:
    """From now on no write to standard output or error fails. For a program's start.

    Files 0 to 2 that are closed are opened on /dev/null: the next file that is opened would
    take their number, and get what libraries print.
    """
    for file in (0, 1, 2):
        try:
            os.fstat(file)
        except OSError:
            _open_nothing(file)
    for name, file in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name) or os.fdopen(file, "w", closefd=False)
        if not isinstance(stream, _Patient):
            setattr(sys, name, _Patient(stream))


def _open_nothing(file: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    if nothing != file:
        os.dup2(nothing, file)
        os.close(nothing)
