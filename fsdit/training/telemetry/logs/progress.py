"""How far a run is, on standard output: a bar on a terminal, otherwise lines.

    step 500/1000  loss 0.1574  val 0.1556 (step 400)  110.2 images/s  2:25 left

A file or a pipe gets such a line whenever one is written to metrics.jsonl. A terminal gets it
after each evaluation and at the last step, and between them a bar that is rewritten in place.
"""

import os
import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

from fsdit.program.terminal import SafeStream
from fsdit.training.telemetry.logs.names import VALIDATION_LOSS

_PAUSE = 0.1  # seconds between two states of the bar, at least
_BAR = "{percentage:3.0f}%|{bar:12}| "


class Progress:
    """Shows the progress of one start. For the main process."""

    def __init__(self, start: int, last: int, validation: tuple[int, float] | None):
        """start: completed steps. last: the last step of the run. validation: step and loss of the
        newest evaluation on unseen classes, by an earlier start."""
        self._last, self._validation = last, validation
        self._terminal = _terminal()
        self._speed = self._notes = ""
        self._first: tuple[int, float] | None = None
        self._shown = 0.0

    def step(self, step: int, loss: float) -> None:
        """Takes a completed step and the average loss; rewrites the bar, if there is one."""
        if self._terminal is None:
            return
        now = time.monotonic()
        self._first = self._first or (step, now)
        first, began = self._first
        if step == first or now - self._shown < _PAUSE:
            return
        self._shown = now
        left = (now - began) / (step - first) * (self._last - step)
        # A terminal that does not know its width says 0.
        columns = os.get_terminal_size(self._terminal.fileno()).columns or 80
        text = self._text(step, loss, left)
        self._terminal.rewrite(
            tqdm.format_meter(
                step,
                self._last,
                elapsed=0,
                ncols=max(columns - 1, 1),  # a full line would wrap
                ascii="utf" not in (self._terminal.encoding or "").lower(),
                bar_format=_BAR + text,
            )
        )

    def line(
        self,
        step: int,
        loss: float,
        images_per_second: float,
        left: float,
        found: Mapping[str, float],
        notes: str,
    ) -> None:
        """Takes a step whose values were logged; prints its line where it is due.

        loss: the average. left: seconds to the end of the run. found: values of an evaluation
        after this step, if there was one. notes: end of the line, such as skipped steps.
        """
        self._speed, self._notes = f"  {images_per_second:.1f} images/s", notes
        if VALIDATION_LOSS in found:
            self._validation = (step, found[VALIDATION_LOSS])
        if self._terminal is None or found or step == self._last:
            print(self._text(step, loss, left), flush=True)

    def close(self) -> None:
        """Removes the bar."""
        if self._terminal is not None:
            self._terminal.erase()

    def _text(self, step: int, loss: float, left: float) -> str:
        return (
            f"step {step}/{self._last}  loss {loss:.4f}{self._validated(step)}{self._speed}  "
            f"{_duration(left)} left{self._notes}"
        )

    def _validated(self, step: int) -> str:
        if self._validation is None:
            return ""
        at, loss = self._validation
        return f"  val {loss:.4f}" + (f" (step {at})" if at != step else "")


def _terminal() -> SafeStream | None:
    """Standard output where it is a terminal on which a line can be rewritten."""
    stream = sys.stdout
    able = os.environ.get("TERM", "dumb") != "dumb"
    return stream if isinstance(stream, SafeStream) and stream.isatty() and able else None


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
