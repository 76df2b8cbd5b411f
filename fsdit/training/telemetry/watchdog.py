"""Notices a step that takes far longer than its neighbours, and says where it hangs.

A thread looks on. It runs while the main one waits in C code for devices, files or other
processes; where C code keeps Python's lock it cannot, and then this process is as if
stopped. Compiling, saving and evaluating do not count as part of a step: they have no
neighbours to be compared with, and are told of when they last factor * min_seconds.

A process that was stopped itself (SIGSTOP, a suspended machine) hears so when it goes on:
its own gap is not held against its step. The others of its pod wait meanwhile in a
collective, and report that.
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

_NEIGHBOURS = 64
_WRITE_SECONDS = 10.0  # what hangs may be the disk: the last words must not hang on it


class Watchdog:
    def __init__(self, config: WatchdogConfig, path: Path, clock: Clock, leave: Callable[[], None]):
        """path: gets the stacks. leave: called before a stop ends the process; may hang."""
        self._config, self._path, self._clock, self._leave = config, path, clock, leave
        self._poll = min(1.0, config.min_seconds / 4)
        self._neighbours: deque[float] = deque(maxlen=_NEIGHBOURS)
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self, step: int) -> None:
        """step: the one that begins now."""
        self._begin(step)
        if self._config.factor or self._config.stop_seconds:
            self._thread.start()

    def beat(self, step: int) -> None:
        """Call when a step begins: the one before it is done."""
        with self._lock:
            self._neighbours.append(self._active() - self._since)
            reported, lasted = self._reported, self._clock.elapsed() - self._began
            self._begin(step)
        if reported:
            _say(f"watchdog: step {step - 1} is over, after {lasted:.1f} s")

    def close(self) -> None:
        self._closed.set()

    def _begin(self, step: int) -> None:
        self._step, self._reported, self._gaps = step, False, 0.0
        self._since, self._began = self._active(), self._clock.elapsed()

    def _active(self) -> float:
        """Seconds of this process in steps and their input."""
        seconds = self._clock.seconds()
        return seconds.get("step", 0.0) + seconds.get("data_wait", 0.0)

    def _watch(self) -> None:
        seen = time.monotonic()
        while not self._closed.wait(self._poll):
            gap, seen = time.monotonic() - seen - self._poll, time.monotonic()
            with self._lock:
                # A step that has begun since the gap did not suffer from it.
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
        factor, floor = self._config.factor, self._config.min_seconds
        return max(floor, factor * (usual or floor)) if factor else float("inf")

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
        """By os._exit: the main thread may never come back from where it is."""
        self._report(what, f"; leaving with status {EXIT_PREEMPTED}")
        _within(_WRITE_SECONDS, self._leave)
        os._exit(EXIT_PREEMPTED)


def _like(usual: float | None) -> str:
    return f"its neighbours take {usual:.3g} s" if usual is not None else "it is the first"


def _within(seconds: float, call: Callable[[], object]) -> None:
    """Calls in a thread of its own and waits so long at most."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
