"""Event files of a restarted run as TensorBoard reads them, and errors of failed writes."""

import errno
import os

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

from fsdit.errors import OutputError
from fsdit.events import open_writer, writing


def write(folder, start, steps):
    writer = open_writer(folder, start)
    for step in steps:
        writer.write_scalars(step, {"train/loss": float(step + 1000 * start)})
        writer.write_images(step, {"samples": np.full((1, 2, 2, 1), step, np.uint8)})
    writer.close()


def steps_shown(events, tag):
    """Steps, each as often as it is shown, in order.

    TensorBoard reads files by name, where the tenth writer of a process comes before the ninth.
    """
    return sorted(event.step for event in events.Tensors(tag))


@pytest.mark.medium
def test_steps_that_are_done_again_are_shown_once(tmp_path):
    starts = [(0, (5, 10, 15, 20)), (15, (20, 25)), (10, (15, 20, 25, 30)), (30, (35,))]
    for start, steps in starts:
        write(tmp_path / "run", start, steps)
    events = EventAccumulator(str(tmp_path / "run"), {"tensors": 0}).Reload()
    several = EventMultiplexer({"run": str(tmp_path / "run")}).Reload()
    for tag in ("train/loss", "samples"):
        assert steps_shown(events, tag) == [5, 10, 15, 20, 25, 30, 35]
        shown = sorted(event.step for event in several.Tensors("run", tag))
        assert shown == [5, 10, 15, 20, 25, 30, 35]


@pytest.mark.medium
def test_a_truncated_event_file_keeps_its_complete_events(tmp_path):
    write(tmp_path, 0, (5, 10, 15, 20))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    write(tmp_path, 10, (15,))
    events = EventAccumulator(str(tmp_path), {"tensors": 0}).Reload()
    assert steps_shown(events, "train/loss") == [5, 10, 15]
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    write(tmp_path, 15, (20,))
    assert all(path.read_bytes() == content for path, content in before.items())


ROOM = "make room and start the same command again"
REMEDIES = [
    (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), ROOM),
    (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), ROOM),
    (OSError(errno.EFBIG, os.strerror(errno.EFBIG)), ROOM),
    (RuntimeError("x.tfevents; No space left on device"), ROOM),
    (ValueError("RESOURCE_EXHAUSTED: [OS error 28: ENOSPC ...]"), ROOM),
    (ValueError("Failed to write: [os_error_code='122']"), ROOM),
    (PermissionError(errno.EACCES, "Permission denied"), "allow this user to write there"),
    (OSError(errno.EROFS, "Read-only file system"), "allow this user to write there"),
    (OSError(errno.EIO, "Input/output error"), "look at what the system says"),
    (FileNotFoundError(errno.ENOENT, "No such file or directory"), "look at what the system"),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), "look at what the system says"),
    (KeyError("step"), "look at what the system says"),
]


@pytest.mark.parametrize("behind", [False, True], ids=["itself", "behind another"])
@pytest.mark.parametrize(("raised", "remedy"), REMEDIES, ids=repr)
def test_the_error_gives_the_remedy_for_its_cause(tmp_path, raised, remedy, behind):
    def fail():
        try:
            raise raised
        except Exception as error:
            if behind:
                raise RuntimeError("a thread failed") from error
            raise

    with (
        pytest.raises(OutputError, match=f"cannot write .*/log: .*{remedy}"),
        writing(tmp_path / "log"),
    ):
        fail()
