"""Errors that are the user's to mend, and the exit statuses of the programs.

A program prints such an error as one line and exits with `EXIT_ERROR`; anything
else that escapes is a defect and shows its traceback.
"""

from collections.abc import Iterable

EXIT_ERROR = 1
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: start the same command again.


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


class NonFiniteError(FsditError):
    """Too many updates in a row had a non-finite loss or gradient."""


def first_line(error: BaseException) -> str:
    """What an error of a library says, for a message of one line."""
    return (str(error).strip() or repr(error)).splitlines()[0].strip()


def would(value: int, allowed: Iterable[int]) -> str:
    """Which of the allowed numbers are nearest to a wrong one: "24 or 32 would"."""
    allowed = set(allowed)
    below = max((n for n in allowed if n < value), default=None)
    above = min((n for n in allowed if n > value), default=None)
    near = [str(n) for n in (below, above) if n is not None]
    return f"{' or '.join(near) or 'nothing'} would"


def multiples_near(value: int, divisor: int) -> str:
    """`would` for a size that `divisor` has to divide."""
    below = value // divisor * divisor
    return would(value, (n for n in (below, below + divisor) if n > 0))


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
