"""An event file of TensorBoard, written at once and without TensorFlow.

clu's writers, which training uses, import TensorFlow. That takes longer than all else that is
written of an evaluation.
"""

import io
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import (
    DATA_CLASS_BLOB_SEQUENCE,
    DATA_CLASS_SCALAR,
    Summary,
    SummaryMetadata,
)
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto


def write_events(
    path: Path,
    step: int,
    scalars: Mapping[str, float],
    images: Mapping[str, UInt8[np.ndarray, "1 Y X C"]],
) -> None:
    """Writes scalars and images by tag, all of one step, as a new file."""
    now = time.time()
    summary = Summary(value=[*_scalar_values(scalars), *_image_values(images)])
    with path.open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        writer.write(Event(wall_time=now, step=step, summary=summary).SerializeToString())


def _scalar_values(scalars: Mapping[str, float]) -> Iterator[Summary.Value]:
    for tag, value in scalars.items():
        yield Summary.Value(
            tag=tag,
            metadata=_of_plugin("scalars", DATA_CLASS_SCALAR),
            tensor=make_tensor_proto(np.float32(value)),
        )


def _image_values(images: Mapping[str, UInt8[np.ndarray, "1 Y X C"]]) -> Iterator[Summary.Value]:
    for tag, (pixels,) in images.items():
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        png = io.BytesIO()
        image.save(png, "PNG")
        size = [str(side).encode() for side in image.size]
        yield Summary.Value(
            tag=tag,
            metadata=_of_plugin("images", DATA_CLASS_BLOB_SEQUENCE),
            tensor=make_tensor_proto([*size, png.getvalue()]),
        )


def _of_plugin(name: str, kind: int) -> SummaryMetadata:
    plugin = SummaryMetadata.PluginData(plugin_name=name)
    return SummaryMetadata(plugin_data=plugin, data_class=kind)
