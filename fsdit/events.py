"""Events for TensorBoard, and one line for whatever a writer of logs raises."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from absl import logging as absl_logging

from fsdit.errors import OutputError, causes, first_line, remedy


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns whatever a writer raises, on a full disk say, into an OutputError."""
    try:
        yield
    except Exception as error:
        *_, cause = causes(error)  # clu's writer speaks of its thread only
        raise OutputError(
            f"cannot write {path}: {first_line(cause)[:300]}; {remedy(error)}"
        ) from error


class _WithoutTracebacks(logging.Filter):
    """Drops what Orbax's and clu's threads log of an error that they also raise again.

    It is said in one line then; --verbosity=0 shows all.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.exc_info or absl_logging.get_verbosity() >= absl_logging.INFO


_FILTER = _WithoutTracebacks()


def hush_tracebacks() -> None:
    """Leaves one line of an error in the background: the one that it ends the program with."""
    absl_logging.get_absl_handler().addFilter(_FILTER)
    # Of what a thread of theirs leaves behind when it fails.
    sys.unraisablehook = lambda found: absl_logging.info("%s: %r", found.object, found.exc_value)


def open_writer(directory: Path, start: int | None = None):
    """clu's writer in a thread of its own. It imports TensorFlow, so only here and now.

    start: completed steps of a run that goes on; events of later ones, which will be written
    again, are taken out of the files of earlier starts.
    """
    from clu import metric_writers

    if start is not None:
        for path in directory.glob("events.out.tfevents.[0-9]*"):
            _cut_off(path, start)
    return metric_writers.AsyncMultiWriter([metric_writers.SummaryWriter(str(directory))])


def _cut_off(path: Path, step: int) -> None:
    """Rewrites a file of events without those after `step`; whole, or as it was."""
    records = list(_records(path.read_bytes()))
    kept = [record for record in records if _step_of(record) <= step]
    if len(kept) < len(records):
        partial = path.with_name("events.partial")  # a name that TensorBoard does not read
        partial.write_bytes(b"".join(kept))
        partial.replace(path)


def _records(content: bytes) -> Iterator[bytes]:
    """The whole records of a TFRecord file with their frames: length, crc, event, crc."""
    start = 0
    while start + 16 <= len(content):
        end = start + 16 + int.from_bytes(content[start : start + 8], "little")
        if end > len(content):  # a kill cut it off
            return
        yield content[start:end]
        start = end


def _step_of(record: bytes) -> int:
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    try:
        return Event.FromString(record[12:-4]).step
    except DecodeError:
        return 0  # TensorBoard will say so
