"""Events for TensorBoard, and one line for whatever a writer of logs raises."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

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


def open_writer(directory: Path):
    """clu's writer in a thread of its own. It imports TensorFlow, so only here and now."""
    from clu import metric_writers

    return metric_writers.AsyncMultiWriter([metric_writers.SummaryWriter(str(directory))])
