"""Writes the values of a run to W/metrics.jsonl and W/tensorboard.

Names are those of metrics.jsonl; TensorBoard gets them as `names` says.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fsdit.config import Config, flatten, to_dict
from fsdit.events import open_writer, write_layout, writing
from fsdit.training.telemetry.logs import names
from fsdit.training.telemetry.logs.lines import LineLog


class _Logged(NamedTuple):
    """A line of metrics.jsonl: its step, and the validation loss, if it has one."""

    step: int
    validation: float | None


class MetricsWriter:
    """For the main process. All methods raise OutputError.

    A resumed run drops the lines and events that come after its checkpoint: it writes them
    again. validation: step and loss of the newest evaluation in the lines that stay, or None.
    """

    def __init__(self, workdir: Path, config: Config, step: int):
        """step: completed steps of the run that starts or resumes here."""
        self._lines = LineLog(workdir / "metrics.jsonl", _logged, lambda row: row.step <= step)
        evaluated = [row for row in self._lines.rows if row.validation is not None]
        self.validation = tuple(evaluated[-1]) if evaluated else None
        self._directory = workdir / "tensorboard"
        with writing(self._directory):
            self._events = open_writer(self._directory, step)
            settings = flatten(to_dict(config))
            self._events.write_hparams(
                {k: v if isinstance(v, int | float | str) else str(v) for k, v in settings.items()}
            )
            write_layout(self._events, step, names.LAYOUT)

    def line(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a line to metrics.jsonl. JSON has no NaN: what is not finite becomes null."""
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._lines.append({"step": step, **finite})

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the finite values for TensorBoard."""
        with writing(self._directory):
            finite = {k: v for k, v in names.charts(values).items() if math.isfinite(v)}
            self._events.write_scalars(step, finite)

    def texts(self, step: int, pages: Mapping[str, str]) -> None:
        """Writes pages of Markdown."""
        with writing(self._directory):
            self._events.write_texts(step, dict(pages))

    def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Writes histograms of arrays of any shape."""
        with writing(self._directory):
            self._events.write_histograms(step, _copied(values))

    def images(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Writes pictures (1, H, W, C) with values from 0 to 255."""
        with writing(self._directory):
            self._events.write_images(step, _copied(values))

    def flush(self) -> None:
        """Waits until everything is in the files."""
        with writing(self._directory):
            self._events.flush()

    def close(self) -> None:
        with writing(self._directory):
            self._events.close()
        self._lines.close()


def _logged(row: Mapping[str, Any]) -> _Logged:
    """What is read of a line. Raises ValueError or KeyError where it is none of metrics.jsonl."""
    if type(row["step"]) is not int or row["step"] < 0:
        raise ValueError
    validation = row.get(names.VALIDATION_LOSS)
    return _Logged(row["step"], validation if isinstance(validation, float) else None)


def _copied(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Copies for the writer's thread: the caller may change its arrays, or donate them."""
    return {names.shown(name): np.array(value) for name, value in values.items()}
