"""TensorBoard's event files, and errors of writers of logs as one line."""

import contextlib
import io
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging as absl_logging
from jaxtyping import UInt8
from PIL import Image

from fsdit.errors import OutputError, causes, first_line, remedy


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns any exception of a writer in the block, such as that of a full disk, into an
    OutputError that names `path`."""
    try:
        yield
    except Exception as error:
        *_, cause = causes(error)  # clu's own error says only that its thread failed
        raise OutputError(
            f"cannot write {path}: {first_line(cause)[:300]}; {remedy(error)}"
        ) from error


class _WithoutTracebacks(logging.Filter):
    """Drops log records with a traceback, unless --verbosity=0 shows everything.

    Threads of Orbax and clu log an error and raise it again, and the program then prints it
    as one line.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.exc_info or absl_logging.get_verbosity() >= absl_logging.INFO


_FILTER = _WithoutTracebacks()


def hush_tracebacks() -> None:
    """Hides the tracebacks of background threads, whose errors end the program with one line."""
    absl_logging.get_absl_handler().addFilter(_FILTER)
    # Clients of Google's stores add a handler of their own to the root logger.
    absl_logging.get_absl_logger().addFilter(_FILTER)
    # A failed thread can leave objects whose destructors raise, which Python would print.
    sys.unraisablehook = lambda found: absl_logging.info("%s: %r", found.object, found.exc_value)


def open_writer(directory: Path, start: int | None = None):
    """Opens clu's writer, which writes TensorBoard's events in a thread of its own.

    start: completed steps of a run that resumes. Events of later steps are removed from the
    files of earlier starts: they will be written again.
    """
    from clu import metric_writers  # imports TensorFlow, which is slow

    if start is not None:
        for path in directory.glob("events.out.tfevents.[0-9]*"):
            _cut_off(path, start)
    return metric_writers.AsyncMultiWriter([metric_writers.SummaryWriter(str(directory))])


def write_layout(writer, step: int, charts: Mapping[str, Sequence[str]]) -> None:
    """Writes what the tab "Custom scalars" shows: charts by title, of several lines each.

    charts: title -> regular expressions of names of scalars, which match in full.
    """
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    shown = [
        layout_pb2.Chart(
            title=title,
            multiline=layout_pb2.MultilineChartContent(tag=[f"^{name}$" for name in names]),
        )
        for title, names in charts.items()
    ]
    layout = layout_pb2.Layout(category=[layout_pb2.Category(title="together", chart=shown)])
    tag = metadata.CONFIG_SUMMARY_TAG
    writer.write_summaries(
        step, {tag: layout.SerializeToString()}, {tag: metadata.create_summary_metadata()}
    )


def write_events(
    path: Path,
    step: int,
    scalars: Mapping[str, float],
    images: Mapping[str, UInt8[np.ndarray, "1 Y X C"]],
) -> None:
    """Writes scalars and images by tag, all of one step, as a new file of events.

    It needs no clu, which imports TensorFlow: that takes longer than all else that is written of
    an evaluation.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    now = time.time()
    values = [_summary(tag, "scalars", np.float32(value)) for tag, value in scalars.items()]
    values += [_summary(tag, "images", _as_png(pixels[0])) for tag, pixels in images.items()]
    with path.open("wb") as file:
        writer = RecordWriter(file)
        for fields in ({"file_version": "brain.Event:2"}, {"summary": Summary(value=values)}):
            writer.write(Event(wall_time=now, step=step, **fields).SerializeToString())


def _as_png(pixels: UInt8[np.ndarray, "Y X C"]) -> list[bytes]:
    """Width, height and PNG, as TensorBoard's images have them."""
    image, png = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), io.BytesIO()
    image.save(png, "PNG")
    return [*(str(side).encode() for side in image.size), png.getvalue()]


def _summary(tag: str, plugin: str, value: Any) -> Any:
    from tensorboard.compat.proto import summary_pb2
    from tensorboard.util.tensor_util import make_tensor_proto

    kind = "SCALAR" if plugin == "scalars" else "BLOB_SEQUENCE"
    metadata = summary_pb2.SummaryMetadata(
        plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name=plugin),
        data_class=getattr(summary_pb2, f"DATA_CLASS_{kind}"),
    )
    return summary_pb2.Summary.Value(tag=tag, metadata=metadata, tensor=make_tensor_proto(value))


def _cut_off(path: Path, step: int) -> None:
    """Removes the events after `step` from a file; a kill leaves the old file or the new one."""
    records = list(_records(path.read_bytes()))
    kept = [record for record in records if _step_of(record) <= step]
    if len(kept) < len(records):
        partial = path.with_name("events.partial")  # TensorBoard ignores files of this name
        partial.write_bytes(b"".join(kept))
        partial.replace(path)


def _records(content: bytes) -> Iterator[bytes]:
    """The complete records of a TFRecord file, each with its frame: length, crc, event, crc."""
    start = 0
    while start + 16 <= len(content):
        end = start + 16 + int.from_bytes(content[start : start + 8], "little")
        if end > len(content):  # a kill cut it off
            return
        yield content[start:end]
        start = end


def _step_of(record: bytes) -> int:
    """The step of a record with its frame."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    try:
        return Event.FromString(record[12:-4]).step
    except DecodeError:
        return 0  # keep the damaged event: TensorBoard reports it
