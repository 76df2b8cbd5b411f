"""Standard output and error of a program: safe to print to, whoever reads them.

Names of classes, files and records come from others, so what a terminal would obey in them is
shown as escapes (`fsdit.text`). Whether somebody reads a program's output changes neither its
work nor its exit status.

A terminal may have a status line at its bottom, which is rewritten in place (`SafeStream.rewrite`).
What is printed takes its place, and the next status line comes below.
"""

import contextlib
import io
import os
import sys
import threading
from collections.abc import Iterable
from typing import Any, ClassVar

from fsdit.text import ERASED_LINE, harmless


class SafeStream:
    """A text stream that writes `harmless` text, and discards it once its reader has left.

    Any thread may write.
    """

    # The stream with a status line. Output and errors mostly are one terminal, so what either
    # writes takes the place of the line.
    _with_status: ClassVar["SafeStream | None"] = None
    _lock = threading.RLock()

    def __init__(self, stream: io.TextIOBase):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if text and (shown := SafeStream._with_status) is not None:
            shown.erase()
        return self._put(harmless(text))

    def rewrite(self, text: str) -> None:
        """Shows a status line in place of the one before. To be used on a terminal only."""
        with SafeStream._lock:
            self._put(f"{ERASED_LINE}{harmless(text)}")
            self.flush()
            SafeStream._with_status = self

    def erase(self) -> None:
        """Removes this stream's status line, if it has one."""
        with SafeStream._lock:
            if SafeStream._with_status is self:
                SafeStream._with_status = None
                self._put(ERASED_LINE)
                self.flush()

    def _put(self, text: str) -> int:
        try:
            return self._stream.write(text)
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
        """Discards what is written from now on, by libraries and child processes too."""
        with contextlib.suppress(OSError, ValueError):
            _open_nowhere(self._stream.fileno())
            self._stream.flush()


def guard_output() -> None:
    """Makes sys.stdout and sys.stderr safe to print to, whatever they are.

    Closed descriptors 0 to 2 are opened on /dev/null. Otherwise the next file that is opened
    would take such a number, and receive what libraries print.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            _open_nowhere(number)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name) or os.fdopen(number, "w", closefd=False)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # file names may be no text
        if not isinstance(stream, SafeStream):
            setattr(sys, name, SafeStream(stream))


def _open_nowhere(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)
