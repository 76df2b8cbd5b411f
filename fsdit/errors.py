"""Errors that a user can fix, their texts, and the exit statuses of the programs.

A program prints such an error as one line and exits with `EXIT_ERROR`. Any other exception
that escapes is a defect, and shows its traceback.
"""

import errno
import os
import re
from collections.abc import Iterable, Iterator

EXIT_ERROR = 1
EXIT_HELD = 69  # EX_UNAVAILABLE of sysexits.h: another process owns the folder; try again later
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: start the same command again


class FsditError(Exception):
    """One line that names the flag, field, file or record, and says what to do."""


class ConfigError(FsditError):
    """A flag or a configuration field is wrong."""


class DataError(FsditError):
    """A dataset file is missing, damaged or of the wrong kind."""


class CheckpointError(FsditError):
    """A checkpoint could not be written, or cannot be continued."""


class OutputError(FsditError):
    """A log or a picture could not be written."""


class HeldError(OutputError):
    """Another process owns the folder that this one would write to; it may give it back."""


class UnavailableError(FsditError):
    """A store in the network does not answer; the same command may succeed later."""


class NonFiniteError(FsditError):
    """Too many updates in a row were not finite."""


def first_line(error: BaseException) -> str:
    """Returns the first line of a library's error, for a message of one line."""
    return (str(error).strip() or repr(error)).splitlines()[0].strip()


def with_type(error: BaseException) -> str:
    """The type of an error and its first line, cut to fit into the brackets of a message."""
    return f"{type(error).__name__}: {first_line(error)[:200]}"


def system_text(error: BaseException) -> str:
    """The system's words for an OSError, such as "Permission denied"; else the error's text."""
    return getattr(error, "strerror", None) or str(error)


def would(value: int, allowed: Iterable[int]) -> str:
    """Returns the allowed values nearest to a wrong one, for messages: "24 or 32 would"."""
    allowed = set(allowed)
    below = max((n for n in allowed if n < value), default=None)
    above = min((n for n in allowed if n > value), default=None)
    near = [str(n) for n in (below, above) if n is not None]
    return f"{' or '.join(near) or 'nothing'} would"


def multiples_near(value: int, divisor: int) -> str:
    """Returns `would` for a size that `divisor` has to divide."""
    below = value // divisor * divisor
    return would(value, (n for n in (below, below + divisor) if n > 0))


def divisors(number: int) -> list[int]:
    """Returns all divisors of a positive integer, in order."""
    return [n for n in range(1, number + 1) if number % n == 0]


# Errors of the system when there is no room for a file.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
# Errors when a file is absent, or something else has its name. Only these say something about the
# content of a folder; all others are about the machine, the network or permissions.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
# Messages of TensorStore hold the errno, those of TensorFlow only its text.
_NUMBER = re.compile(r"os_error_code='(\d+)'|OS error (\d+)|\[Errno (\d+)\]")


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yields the error and then, one after another, the errors that it was raised from."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__


def system_error(error: BaseException) -> int | None:
    """Returns the errno behind an error, also where a library gives it in its message only."""
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.errno:
            return cause.errno
        if isinstance(cause, MemoryError):
            return errno.ENOMEM
        if found := _NUMBER.search(str(cause)):
            return int(next(filter(None, found.groups())))
        for number in (*_NO_ROOM, *_FORBIDDEN, errno.EIO, errno.ESTALE, errno.EMFILE):
            if os.strerror(number) in str(cause):
                return number
    return None


def cannot_be_read(error: BaseException) -> bool:
    """Whether an error of reading, like EACCES or EIO, says nothing about the file's content."""
    number = system_error(error)
    return number is not None and number not in _ABSENT


def remedy(error: BaseException) -> str:
    """Returns what a user can do after an error of writing, for the end of a message."""
    number = system_error(error)
    if number in _NO_ROOM:
        return "make room and start the same command again"
    if number in _FORBIDDEN:
        return "allow this user to write there, or name another folder"
    return "look at what the system says, then start the same command again"
