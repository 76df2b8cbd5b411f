"""Watchdog: reports a step that takes far longer than its neighbours, and where it hangs.

    slow      time of the step > max(min_seconds, factor x median of its neighbours)   (1)
    stalled   time outside of steps > factor x min_seconds                             (2)
    stop      time since the step began > stop_seconds: the process leaves with
              EXIT_PREEMPTED, to be started again                                      (3)

The neighbours are the last 64 steps. Compiling, saving and evaluating are no part of a step;
they have no neighbours to compare with, which is why (2) has a limit of its own.

A thread of its own watches. It runs while the main thread waits in C code for devices, files
or other processes. It cannot run while C code holds Python's lock, or while the process is
stopped (SIGSTOP, a suspended machine). When the thread runs again it reports such a gap, and
does not count it as time of the step. The other processes of the pod wait in a collective
meanwhile, and report that.
"""

import faulthandler
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from fsdit.config import WatchdogConfig
from fsdit.errors import EXIT_PREEMPTED
from fsdit.training.telemetry.clock import Clock

_NEIGHBOURS = 64  # steps
_WRITE_SECONDS = 10.0  # the disk may be what hangs: a report must not wait for it for longer


class Watchdog:
    """Watches the steps of this process from a thread, from `start` to `close`."""

    def __init__(self, config: WatchdogConfig, path: Path, clock: Clock, leave: Callable[[], None]):
        """path: file that gets the stacks of all threads with each report. leave: called before
        a stop ends the process; it may hang."""
        self._config, self._path, self._clock, self._leave = config, path, clock, leave
        self._poll = min(1.0, config.min_seconds / 4)
        self._neighbours: deque[float] = deque(maxlen=_NEIGHBOURS)
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self, step: int) -> None:
        """Starts watching. step: the step that begins now."""
        self._begin(step)
        if self._config.factor or self._config.stop_seconds:
            self._thread.start()

    def beat(self, step: int) -> None:
        """To be called when `step` begins and the one before it is done."""
        with self._lock:
            self._neighbours.append(self._active() - self._since)
            reported, lasted = self._reported, self._clock.elapsed() - self._began
            self._begin(step)
        if reported:
            _say(f"watchdog: step {step - 1} is over, after {lasted:.1f} s")

    def close(self) -> None:
        """Stops watching."""
        self._closed.set()

    def _begin(self, step: int) -> None:
        self._step, self._reported, self._gaps = step, False, 0.0
        self._since, self._began = self._active(), self._clock.elapsed()

    def _active(self) -> float:
        """Seconds that this process has spent in steps and on waiting for their input."""
        seconds = self._clock.seconds()
        return seconds.get("step", 0.0) + seconds.get("data_wait", 0.0)

    def _watch(self) -> None:
        """Looks at the current step every `_poll` seconds, until `close`."""
        seen = time.monotonic()
        while not self._closed.wait(self._poll):
            gap, seen = time.monotonic() - seen - self._poll, time.monotonic()
            with self._lock:
                # Only the part of the gap that lies in this step is subtracted from its time.
                held = min(max(gap, 0.0), self._clock.elapsed() - self._began)
                self._gaps += held
                step = self._step
                waited = self._clock.elapsed() - self._began - self._gaps
                elsewhere = waited - (self._active() - self._since)
                took = self._active() - self._since - self._gaps
                usual = statistics.median(self._neighbours) if self._neighbours else None
                slow = took > self._limit(usual)
                stalled = (slow or elsewhere > self._limit(None)) and not self._reported
                self._reported |= stalled
            if gap > self._config.min_seconds / 2:
                _say(f"watchdog: this process was stopped for {gap:.1f} s, in step {step}")
            if stalled and slow:
                self._report(f"step {step} has taken {took:.1f} s, {_like(usual)}")
            elif stalled:
                self._report(self._waiting(step, waited))
            if 0 < self._config.stop_seconds < waited:
                self._stop(self._waiting(step, waited))

    def _limit(self, usual: float | None) -> float:
        """Seconds after which a wait is reported: equation 1, or 2 where `usual` is None."""
        factor, least = self._config.factor, self._config.min_seconds
        return max(least, factor * (usual or least)) if factor else float("inf")

    def _waiting(self, step: int, waited: float) -> str:
        part = self._clock.current().replace("_", " ")
        return f"step {step} is not over after {waited:.1f} s, the last of them in: {part}"

    def _report(self, what: str, ending: str = "") -> None:
        line = f"watchdog: {what}; stacks in {self._path}"

        def write() -> None:
            _say(line + ending)
            with self._path.open("a") as file:
                file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {line}{ending}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
                file.write("\n")

        _within(_WRITE_SECONDS, write)

    def _stop(self, what: str) -> None:
        """Ends the process with os._exit, since the main thread may never return."""
        self._report(what, f"; leaving with status {EXIT_PREEMPTED}")
        _within(_WRITE_SECONDS, self._leave)
        os._exit(EXIT_PREEMPTED)


def _like(usual: float | None) -> str:
    return f"its neighbours take {usual:.3g} s" if usual is not None else "it is the first"


def _within(seconds: float, call: Callable[[], object]) -> None:
    """Runs `call` in a thread of its own, and waits for it for at most `seconds`."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)


def _say(line: str) -> None:
    # In one piece: the main thread may write a status line between two pieces.
    print(f"{line}\n", end="", file=sys.stderr, flush=True)
