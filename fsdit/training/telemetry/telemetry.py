"""What a run reports: metrics.jsonl, goodput.jsonl, TensorBoard and the terminal.

Metrics of a step are read one step late, when the next is already dispatched, so
reading never makes the devices wait. Process 0 writes; all processes keep the same
running means, which go into checkpoints so that a resumed log continues exactly.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fsdit.config import Config, flatten, to_dict
from fsdit.events import open_writer, writing
from fsdit.parallel import processes
from fsdit.training.step import TIME_BINS, Batch
from fsdit.training.telemetry import lines
from fsdit.training.telemetry.clock import Clock
from fsdit.training.telemetry.goodput import Goodput, summary
from fsdit.training.telemetry.profile import ProfileWindow
from fsdit.training.telemetry.running import Running
from fsdit.training.telemetry.skipped import SkippedSteps
from fsdit.training.telemetry.speed import Speed
from fsdit.training.telemetry.watchdog import Watchdog


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
        clock: Clock,
        flops: Callable[[Batch], int],
        counters: Callable[[], Mapping[str, int | float]] = dict,
    ):
        """start: completed steps; running: `self.running` when they were saved, or {}.

        flops: of a step on a batch. counters: asked for more values at each line that is
        written.
        """
        self._config, self._counters, self._clock = config, counters, clock
        self._speed, self._flops = Speed(clock, config.data.batch_size), flops
        self._done = start
        self._last = config.train.num_steps
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._running = Running.from_json(running)
        self._events, self._lines = workdir / "tensorboard", workdir / "metrics.jsonl"
        self._writer, self._log, self._profile, self._goodput = None, None, None, None
        stacks = workdir / f"watchdog-{jax.process_index()}.txt"
        self._skipped = SkippedSteps(config.train.max_nonfinite)
        self._watchdog = Watchdog(config.watchdog, stacks, clock, self._mark)
        if processes.is_main_process():
            with writing(self._lines):
                self._log = _continue_log(self._lines, start)
            with writing(self._events):
                self._writer = _tensorboard_writer(self._events, config, start)
            self._profile = ProfileWindow(config.profile, self._events, self._last)
            self._goodput = Goodput(workdir / "goodput.jsonl", clock, start)
        self._watchdog.start(start + 1)

    @property
    def running(self) -> dict[str, Any]:
        """The running means, as a checkpoint keeps them."""
        return dataclasses.asdict(self._running)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """The time of its block is spent on `name`: a part of the clock, and of profiles."""
        with self._clock.part(name), jax.profiler.TraceAnnotation(name):
            yield

    @contextlib.contextmanager
    def dispatching(self, step: int) -> Iterator[None]:
        """Around what gets a step under way."""
        if self._profile is not None:
            if self._profile.ends(step):
                self._end_profile()
            if self._profile.begins(step):
                self._profile.start()
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Around a save: a checkpoint never holds a step that the logs lack."""
        self.read()
        self._mark()
        with self.timed("checkpoint_stall"):
            yield

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Around an evaluation. The step before it ends first: its time is no part of this."""
        jax.block_until_ready(self._pending)
        with self.timed("evaluation"):
            yield

    def step(self, step: int, batch: Batch, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of a dispatched step, and reports those of the one before."""
        if self._speed.flops is None:
            with self.timed("compile"):  # the devices compute the first step meanwhile
                self._speed.flops = self._count_flops(batch)
        self.read()
        self._watchdog.beat(step + 1)
        self._pending = (step, metrics)
        self._speed.steps += 1
        if self._goodput is not None:
            self._goodput.mark_if_due(self._done)

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
        self._done = step
        if line := self._speed.first_step():
            _say(line)
        self._running = self._running.with_step(
            float(metrics["loss"]), metrics["bin_losses"], metrics["bin_counts"]
        )
        if extra or step % self._config.train.log_interval == 0 or step == self._last:
            self._write(step, metrics, extra or {})
        self._skipped.see(step, metrics)

    def _write(self, step: int, metrics: dict[str, np.ndarray], extra: Mapping[str, float]) -> None:
        running, average = self._running, self._running.average
        speed = self._speed.row()
        row = {
            "train/loss": float(metrics["loss"]),
            "train/loss_average": average,
            "train/grad_norm": float(metrics["grad_norm"]),
            "train/param_norm": float(metrics["param_norm"]),
            "train/learning_rate": float(metrics["learning_rate"]),
            "train/nonfinite_steps": int(metrics["nonfinite"]),
            **bin_means("train", np.array(running.bin_losses), np.array(running.bin_counts)),
            **speed,
            **(self._goodput.row(step) if self._goodput else {}),
            **self._counters(),
            **extra,
        }
        self._running = running.with_empty_bins()
        if self._writer is None:
            return
        # JSON has no NaN: a line with one would be unreadable elsewhere.
        values = {k: v if math.isfinite(v) else None for k, v in row.items()}
        with writing(self._lines):
            self._log.write(json.dumps({"step": step, **values}) + "\n")
            self._log.flush()
        self._mark()
        with writing(self._events):
            self._writer.write_scalars(step, {k: v for k, v in row.items() if math.isfinite(v)})
        left = (self._last - step) * speed["timing/step_seconds"]
        print(
            f"step {step}/{self._last}  loss {average:.4f}  "
            f"{speed['timing/images_per_second']:.1f} images/s  {_duration(left)} left"
            f"{self._skipped.note}",
            flush=True,
        )

    def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        if self._writer is not None:
            with writing(self._events):
                self._writer.write_histograms(step, _copied(values))

    def images(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Pictures (1, H, W, C) in [0, 255]."""
        if self._writer is not None:
            with writing(self._events):
                self._writer.write_images(step, _copied(values))

    def close(self) -> None:
        self.read()
        self._clock.rest("other")
        if self._profile is not None and self._profile.open:
            self._end_profile()
        if self._writer is not None:
            with writing(self._events):
                self._writer.close()
            with writing(self._lines):
                self._log.close()

    def conclude(self) -> None:
        """When all is written: says what was skipped, and where the time of the run went."""
        self._watchdog.close()
        if line := self._skipped.summary(self._done):
            _say(line)
        if self._goodput is not None:
            print(summary(self._goodput.close(self._done)), flush=True)
        self._clock.close()

    def _mark(self) -> None:
        if self._goodput is not None:
            self._goodput.mark(self._done)

    def _end_profile(self) -> None:
        self.read()  # so that the devices are done with the window's last step
        with self.timed("other"), writing(self._events):
            self._profile.stop()

    def _count_flops(self, batch: Batch) -> int:
        try:
            with jax.transfer_guard("allow"):  # of constants
                return self._flops(batch)
        except ValueError as error:
            _say(f"no model FLOPs and no timing/mfu: {error}")
            return 0


def _continue_log(path: Path, step: int):
    """Opens the log for appending after `step`: later lines will be written again."""
    rows = lines.read_lines(path, _step_of)
    lines.keep(path, (line for line, logged in rows if logged <= step))
    return path.open("a", encoding="utf-8")


def _step_of(row: object) -> int:
    if not isinstance(row, dict) or type(row["step"]) is not int or row["step"] < 0:
        raise ValueError
    return row["step"]


def _tensorboard_writer(directory: Path, config: Config, start: int):
    writer = open_writer(directory, start)
    writer.write_hparams(
        {
            k: v if isinstance(v, int | float | str) else str(v)
            for k, v in flatten(to_dict(config)).items()
        }
    )
    return writer


def _copied(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """For a writer in the background: the caller's arrays may change, or be the devices'."""
    return {name: np.array(value) for name, value in values.items()}


def _say(line: str) -> None:
    if processes.is_main_process():
        print(line, flush=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
