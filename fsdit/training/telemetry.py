"""What a run reports: metrics.jsonl, TensorBoard and the terminal.

Metrics of a step are read one step late, when the next is already dispatched, so
reading never makes the devices wait. Process 0 writes; all processes keep the same
running means, which go into checkpoints so that a resumed log continues exactly.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fsdit.config import Config, flatten, to_dict
from fsdit.errors import NonFiniteError
from fsdit.events import open_writer, writing
from fsdit.parallel import runtime
from fsdit.training.step import TIME_BINS

_AVERAGE_DECAY = 0.98


def bin_means(prefix: str, losses: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """Mean loss in each time bin that any example fell into."""
    return {
        f"{prefix}/loss_t{i}": float(losses[i] / counts[i]) for i in range(TIME_BINS) if counts[i]
    }


class Telemetry:
    def __init__(
        self,
        workdir: Path,
        config: Config,
        start: int,
        running: dict[str, Any],
        counters: Callable[[], Mapping[str, int | float]] = dict,
    ):
        """start: completed steps; running: `self.running` when they were saved, or {}.

        counters: asked for more values at each line that is written.
        """
        self._config, self._counters = config, counters
        self._last = config.train.num_steps
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self.running = running or {
            "loss_average": 0.0,
            "average_weight": 0.0,
            "bin_losses": [0.0] * TIME_BINS,
            "bin_counts": [0.0] * TIME_BINS,
        }
        self._timings: dict[str, float] = {}
        self._interval_start, self._interval_steps = time.perf_counter(), 0
        self._events, self._lines = workdir / "tensorboard", workdir / "metrics.jsonl"
        self._writer, self._log = None, None
        if runtime.is_main_process():
            with writing(self._lines):
                self._log = _continue_log(self._lines, start)
            with writing(self._events):
                self._writer = _tensorboard_writer(self._events, config)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the time of its block to what the current interval spent on `name`."""
        start = time.perf_counter()
        yield
        self._timings[name] = self._timings.get(name, 0.0) + time.perf_counter() - start

    def step(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of a dispatched step, and reports those of the one before."""
        self.read()
        self._pending = (step, metrics)
        self._interval_steps += 1

    def read(self, extra: Mapping[str, float] | None = None) -> None:
        """Waits for the newest step, and writes its line if one is due.

        extra: scalars of an evaluation of that step, written in the same line.
        Raises NonFiniteError after too many skipped updates in a row.
        """
        if self._pending is None:
            return
        step, pending = self._pending
        self._pending = None
        metrics = jax.device_get(pending)
        self._accumulate(metrics)
        if extra or step % self._config.train.log_interval == 0 or step == self._last:
            self._write(step, metrics, extra or {})
        if metrics["nonfinite_in_row"] >= self._config.train.max_nonfinite:
            raise NonFiniteError(
                f"step {step}: loss or gradient was not finite "
                f"{int(metrics['nonfinite_in_row'])} steps in a row; parameters are those before; "
                "lower config.optimizer.peak_learning_rate, or look at the data of these steps"
            )

    def _accumulate(self, metrics: dict[str, np.ndarray]) -> None:
        loss = float(metrics["loss"])
        if not math.isfinite(loss):
            return
        running, keep = self.running, _AVERAGE_DECAY
        running["loss_average"] = keep * running["loss_average"] + (1 - keep) * loss
        running["average_weight"] = keep * running["average_weight"] + (1 - keep)
        for name in ("bin_losses", "bin_counts"):
            running[name] = [
                a + float(b) for a, b in zip(running[name], metrics[name], strict=True)
            ]

    def _write(self, step: int, metrics: dict[str, np.ndarray], extra: Mapping[str, float]) -> None:
        running = self.running
        weight = running["average_weight"]
        average = running["loss_average"] / weight if weight else math.nan
        speed = self._speed()
        row = {
            "train/loss": float(metrics["loss"]),
            "train/loss_average": average,
            "train/grad_norm": float(metrics["grad_norm"]),
            "train/param_norm": float(metrics["param_norm"]),
            "train/learning_rate": float(metrics["learning_rate"]),
            "train/nonfinite_steps": int(metrics["nonfinite"]),
            **bin_means("train", np.array(running["bin_losses"]), np.array(running["bin_counts"])),
            **speed,
            **self._counters(),
            **extra,
        }
        running["bin_losses"] = [0.0] * TIME_BINS
        running["bin_counts"] = [0.0] * TIME_BINS
        if self._writer is None:
            return
        # JSON has no NaN: a line with one would be unreadable elsewhere.
        values = {k: v if math.isfinite(v) else None for k, v in row.items()}
        with writing(self._lines):
            self._log.write(json.dumps({"step": step, **values}) + "\n")
            self._log.flush()
        with writing(self._events):
            self._writer.write_scalars(step, {k: v for k, v in row.items() if math.isfinite(v)})
        left = (self._last - step) * speed["timing/step_seconds"]
        print(
            f"step {step}/{self._last}  loss {average:.4f}  "
            f"{speed['timing/images_per_second']:.1f} images/s  {_clock(left)} left",
            flush=True,
        )

    def _speed(self) -> dict[str, float]:
        """Timings of the interval since the last line; evaluation does not count as training."""
        now = time.perf_counter()
        apart = self._timings.get("evaluation", 0.0)
        steps = max(self._interval_steps, 1)
        seconds = max(now - self._interval_start - apart, 1e-9) / steps
        row = {
            "timing/step_seconds": seconds,
            "timing/images_per_second": self._config.data.batch_size / seconds,
            "timing/data_wait_seconds": self._timings.get("data_wait", 0.0) / steps,
            "timing/checkpoint_stall_seconds": self._timings.get("checkpoint_stall", 0.0),
            "timing/evaluation_seconds": apart,
        }
        self._timings, self._interval_start, self._interval_steps = {}, now, 0
        return row

    def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        if self._writer is not None:
            with writing(self._events):
                self._writer.write_histograms(step, values)

    def images(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Pictures (1, H, W, C) in [0, 255]."""
        if self._writer is not None:
            with writing(self._events):
                self._writer.write_images(step, values)

    def close(self) -> None:
        self.read()
        if self._writer is not None:
            with writing(self._events):
                self._writer.close()
            with writing(self._lines):
                self._log.close()


def _continue_log(path: Path, step: int):
    """Opens the log for appending after `step`: later lines will be written again."""
    kept = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue  # cut off by a kill while it was written
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(kept))
    partial.replace(path)
    return path.open("a")


def _tensorboard_writer(directory: Path, config: Config):
    writer = open_writer(directory)
    writer.write_hparams(
        {
            k: v if isinstance(v, int | float | str) else str(v)
            for k, v in flatten(to_dict(config)).items()
        }
    )
    return writer


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
