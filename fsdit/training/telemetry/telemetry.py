"""Telemetry of a run: takes what the loop reports, and hands it to the parts of this package.

The metrics of a step are read one step late, when the next step is already dispatched, so
that reading them never makes the devices wait. Process 0 writes. All processes keep the same
running means, because checkpoints hold them and a resumed log continues exactly.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fsdit.config import Config
from fsdit.events import writing
from fsdit.parallel import processes
from fsdit.training.objective import TERMS, StepBatch
from fsdit.training.telemetry.clock import Clock
from fsdit.training.telemetry.goodput import Goodput, summary
from fsdit.training.telemetry.logs.progress import Progress
from fsdit.training.telemetry.logs.writer import MetricsWriter
from fsdit.training.telemetry.profile import ProfileWindow
from fsdit.training.telemetry.running import Running, bin_means
from fsdit.training.telemetry.skipped import SkippedSteps
from fsdit.training.telemetry.speed import Speed
from fsdit.training.telemetry.watchdog import Watchdog


class Telemetry:
    """Takes the reports of the training loop.

    Methods raise OutputError where a file cannot be written.
    """

    def __init__(
        self,
        workdir: Path,
        config: Config,
        start: int,
        running: dict[str, Any],
        clock: Clock,
        flops: Callable[[StepBatch], int],
        counters: Callable[[], Mapping[str, int | float]] = dict,
        publish: Callable[[], None] | None = None,
    ):
        """start: completed steps. running: `self.running` as they were saved with it, or {}.

        flops: counts the model FLOPs of a step on a batch. counters: returns further values
        for each line that is written. publish: copies the files of the workdir to where they are
        kept, if that is elsewhere.
        """
        self._publish = publish
        self._clock, self._flops, self._counters = clock, flops, counters
        self._log_interval, self._last = config.train.log_interval, config.train.num_steps
        self._done = start
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._running = Running.from_json(running)
        self._speed = Speed(clock, config.data.batch_size)
        self._skipped = SkippedSteps(config.train.max_nonfinite)
        stacks = workdir / f"watchdog-{jax.process_index()}.txt"
        self._watchdog = Watchdog(config.watchdog, stacks, clock, self._mark)
        self._writer, self._profile, self._goodput, self._progress = None, None, None, None
        if processes.is_main_process():
            self._writer = MetricsWriter(workdir, config, start)
            self._progress = Progress(start, self._last, self._writer.validation)
            self._profile = ProfileWindow(config.profile, workdir / "tensorboard", self._last)
            self._goodput = Goodput(workdir / "goodput.jsonl", clock, start)
        self._watchdog.start(start + 1)

    @property
    def running(self) -> dict[str, Any]:
        """The running means, as a checkpoint keeps them."""
        return dataclasses.asdict(self._running)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Assigns the time of the block to the part `name` of the clock, also in profiles."""
        with self._clock.part(name), jax.profiler.TraceAnnotation(name):
            yield

    @contextlib.contextmanager
    def dispatching(self, step: int) -> Iterator[None]:
        """Surrounds the reading of a batch and the dispatch of a step."""
        if self._profile is not None:
            if self._profile.ends(step):
                self._end_profile()
            if self._profile.begins(step):
                self._profile.start()
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Surrounds a save. The logs come first: a checkpoint never holds a step they lack."""
        self.read()
        self._mark()
        with self.timed("checkpoint_stall"):
            if self._publish is not None:
                if self._writer is not None:
                    self._writer.flush()
                self._publish()
            yield

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Surrounds an evaluation. Waits for the step before it, whose time is not its own."""
        jax.block_until_ready(self._pending)
        with self.timed("evaluation"):
            yield

    def step(self, step: int, batch: StepBatch, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of a dispatched step, and reads those of the step before."""
        if self._speed.flops is None:
            with self.timed("compile"):  # the devices compute the first step meanwhile
                self._speed.count_flops(lambda: self._flops(batch))
        self.read()
        self._watchdog.beat(step + 1)
        self._pending = (step, metrics)
        self._speed.steps += 1
        if self._goodput is not None:
            self._goodput.mark_if_due(self._done)

    def read(self, extra: Mapping[str, float] | None = None) -> None:
        """Waits for the newest step, and writes its line if one is due.

        extra: scalars of an evaluation after that step, written in the same line.
        Raises NonFiniteError after too many skipped updates in a row.
        """
        if self._pending is None:
            return
        step, pending = self._pending
        self._pending = None
        metrics = jax.device_get(pending)
        self._done = step
        self._speed.announce_first_step()
        self._running = self._running.with_step(
            float(metrics["loss"]), metrics["bin_losses"], metrics["bin_counts"]
        )
        if self._progress is not None:
            self._progress.step(step, self._running.average)
        if extra or step % self._log_interval == 0 or step == self._last:
            self._write(step, metrics, extra or {})
        self._skipped.see(step, metrics)

    def _write(self, step: int, metrics: dict[str, np.ndarray], extra: Mapping[str, float]) -> None:
        running, speed = self._running, self._speed.row()
        row = {
            "train/loss": float(metrics["loss"]),
            "train/loss_average": running.average,
            "train/grad_norm": float(metrics["grad_norm"]),
            "train/param_norm": float(metrics["param_norm"]),
            "train/learning_rate": float(metrics["learning_rate"]),
            "train/nonfinite_steps": int(metrics["nonfinite"]),
            **{f"train/{name}": float(metrics[name]) for name in TERMS if name in metrics},
            **bin_means("train", np.array(running.bin_losses), np.array(running.bin_counts)),
            **speed,
            **(self._goodput.row(step) if self._goodput else {}),
            **self._counters(),
            **extra,
        }
        self._running = running.with_empty_bins()
        if self._writer is None:
            return
        self._writer.line(step, row)
        self._mark()
        self._writer.scalars(step, row)
        left = (self._last - step) * speed["timing/step_seconds"]
        images = speed["timing/images_per_second"]
        self._progress.line(step, running.average, images, left, extra, self._skipped.note)

    def texts(self, step: int, pages: Mapping[str, str]) -> None:
        """Takes pages of Markdown by name."""
        if self._writer is not None:
            self._writer.texts(step, pages)

    def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Takes arrays of any shape, of which TensorBoard shows histograms."""
        if self._writer is not None:
            self._writer.histograms(step, values)

    def images(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Takes pictures (1, H, W, C) with values from 0 to 255."""
        if self._writer is not None:
            self._writer.images(step, values)

    def close(self) -> None:
        """Reads the last step, and closes profile and logs. Checkpoints may still be written."""
        self.read()
        self._clock.rest("other")
        if self._profile is not None and self._profile.open:
            self._end_profile()
        if self._writer is not None:
            self._progress.close()
            self._writer.close()

    def conclude(self) -> None:
        """Ends the watchdog and goodput's file, and prints what they and the skipped steps say.

        To be called after `close`, when the last checkpoint is written.
        """
        self._watchdog.close()
        if processes.is_main_process():
            if line := self._skipped.summary(self._done):
                print(line, flush=True)
            print(summary(self._goodput.close(self._done)), flush=True)
        self._clock.close()

    def _mark(self) -> None:
        if self._goodput is not None:
            self._goodput.mark(self._done)

    def _end_profile(self) -> None:
        self.read()  # waits until the devices are done with the window's last step
        with self.timed("other"), writing(self._profile.directory):
            self._profile.stop()
