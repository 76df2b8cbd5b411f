"""The schedules that libtpu's compiler writes beside a program, asked for by its own flags.

libtpu reads its flags once, from an environment variable, when it is loaded, and ends the
process at a flag that it does not know. So the flags' names are looked up in the library first.
It then writes one file for each operation that it compiles,

    TIME-NAME-NN-final_bundles.txt

where NAME is the operation's name in the printed program. Operations that are equal are compiled
and written once.
"""

import contextlib
import importlib.util
import mmap
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from fsdit.planning.schedule import bundles
from fsdit.planning.schedule.bundles import Schedule, ScheduleError
from fsdit.planning.schedule.core import Core

_VARIABLE = "LIBTPU_INIT_ARGS"
_FLAGS = {
    "xla_jf_dump_to": "{folder}",
    "xla_jf_dump_llo_text": "true",
    "xla_jf_dump_llo_pass_label_regex": "final_bundles",
}
_NAME = re.compile(r"\d+-(.+)-\d+-final_bundles\.txt$")
# Written beside the operations: the program that starts them, and what precedes and follows it.
_NO_OPERATION = re.compile(r"TLP$|<")


class NoPredictionError(Exception):
    """Why a program has no prediction, for one line of the report."""


class Dump:
    """The folder that libtpu writes schedules to. trouble: why it will write none, or None."""

    def __init__(self, folder: Path, trouble: str | None = None):
        self._folder = folder
        self.trouble = trouble

    def clear(self) -> None:
        """Removes what was written for earlier programs."""
        for path in self._folder.iterdir():
            path.unlink()

    def schedules(self, core: Core) -> Mapping[str, Schedule]:
        """Operation -> schedule, of everything since `clear`. Raises NoPredictionError."""
        if self.trouble:
            raise NoPredictionError(self.trouble)
        found = {}
        for path in sorted(self._folder.glob("*final_bundles.txt")):
            name = _NAME.match(path.name)
            if name is None or _NO_OPERATION.match(name[1]) or "schedule-analysis" in name[1]:
                continue
            try:
                with path.open(errors="replace") as lines:
                    found[name[1]] = bundles.read(lines, core.rows_per_cycle)
            except ScheduleError as error:
                raise NoPredictionError(
                    f"libtpu's schedule of {name[1]} is unreadable: {error}"
                ) from None
        if not found:
            raise NoPredictionError("the installed libtpu wrote no schedules")
        return found


@contextlib.contextmanager
def requested() -> Iterator[Dump]:
    """Makes libtpu write schedules to a temporary folder; to be entered before it is loaded."""
    with tempfile.TemporaryDirectory(prefix="fsdit-plan-") as folder:
        missing = _missing_flags()
        if missing:
            yield Dump(Path(folder), f"the installed libtpu has no flag {missing[0]}")
            return
        own = [f"--{name}={value.format(folder=folder)}" for name, value in _FLAGS.items()]
        before = os.environ.get(_VARIABLE)
        os.environ[_VARIABLE] = " ".join([*([before] if before else []), *own])
        try:
            yield Dump(Path(folder))
        finally:
            os.environ.pop(_VARIABLE)
            if before is not None:
                os.environ[_VARIABLE] = before


def _missing_flags() -> list[str]:
    """Those of our flags whose names do not occur in the installed libtpu.

    Nothing is missing where there is no libtpu: opening the topology reports that better.
    """
    path = library()
    if path is None:
        return []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return [name for name in _FLAGS if text.find(name.encode()) < 0]


def library() -> Path | None:
    """The file of libtpu that JAX loads, or None."""
    if named := os.environ.get("TPU_LIBRARY_PATH"):
        return Path(named) if Path(named).is_file() else None
    try:
        found = importlib.util.find_spec("libtpu")
    except (ImportError, ValueError):
        return None
    folders = (found.submodule_search_locations or []) if found else []
    paths = [Path(folder) / "libtpu.so" for folder in folders]
    return next((path for path in paths if path.is_file()), None)
