"""Supervises a pod: starts it, and starts it again after preemptions and losses."""

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fsdit.errors import EXIT_ERROR, EXIT_PREEMPTED
from fsdit.launch.decision import Decision, Exit, Patience, decide
from fsdit.launch.pod import Pod
from fsdit.training.checkpoints import listing

# Pause before a pod is started again whose workdir another job owned.
_QUEUE_SECONDS = 30.0


class Notice:
    """The signals that this launcher has received.

    file: file descriptor that becomes readable when one comes.
    """

    def __init__(self):
        self.received: list[int] = []
        self.file, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    @property
    def insists(self) -> bool:
        """Whether a Ctrl-C followed another signal: then the processes get no time to save."""
        return signal.SIGINT in self.received[1:]

    def take(self, number: int, *_: object) -> None:
        """Notes a signal, as its handler."""
        self.received.append(number)
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, b"!")

    def wait(self, seconds: float) -> bool:
        """Whether a signal has come already or comes within `seconds`."""
        if not self.received:
            select.select([self.file], [], [], seconds)
        return bool(self.received)

    def drain(self) -> None:
        """Empties `file`, so that it becomes readable with the next signal."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self.file, 64):
                pass


@contextlib.contextmanager
def listening() -> Iterator[Notice]:
    """Notes SIGTERM, Ctrl-C and a closed terminal in the block, instead of ending this process.

    Under nohup a closed terminal is still ignored.
    """
    notice = Notice()
    heard = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        heard.append(signal.SIGHUP)
    before = {number: signal.signal(number, notice.take) for number in heard}
    try:
        yield notice
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def newest_checkpoint(workdir: str | Path) -> int:
    """The newest step of the workdir whose small files are valid, or 0. Loads no arrays."""
    found = listing.saved_meta(workdir)
    return found[0] if found else 0


def supervise(
    start: Callable[[], Pod],
    progress: Callable[[], int],
    notice: Notice,
    patience: Patience,
    grace: float = 300.0,
    tick: Callable[[Pod], None] | None = None,
    tick_seconds: float = 600.0,
) -> int:
    """Runs pods until one has finished; returns the exit status of this launcher.

    0: finished. EXIT_ERROR: an error that the user can fix. EXIT_PREEMPTED: a signal asked to
    leave, or restarts brought no progress; training resumes when it is started again.

    start: makes the next pod, of any number of processes. progress: returns the newest
    checkpoint. grace: seconds in which a pod must end after a signal, or after one of its
    processes has ended without an error. tick: called every tick_seconds while a pod runs.
    """
    fruitless = 0
    while True:
        before = progress()
        with start() as pod:
            decision, ended = _attend(pod, notice, grace, tick, tick_seconds)
            story = _story(ended, len(pod.processes))
        if decision is Decision.DONE:
            return 0
        if decision is Decision.STOP:
            print(f"{_errors(ended)} [no restart: {story}]", file=sys.stderr, flush=True)
            return EXIT_ERROR
        if decision is Decision.LEAVE:
            _say(f"leaving as asked: {story}")
            return EXIT_PREEMPTED
        if decision is Decision.QUEUE:
            _say(f"the workdir is in use, trying again in {_QUEUE_SECONDS:.0f} s: {_errors(ended)}")
            if notice.wait(_QUEUE_SECONDS):
                return EXIT_PREEMPTED
            continue
        # A different newest checkpoint is progress even if it is not later: a step that was
        # damaged and set aside has been made again.
        fruitless = 0 if progress() != before else fruitless + 1
        if patience.exhausted(fruitless):
            _say(f"giving up, {fruitless} starts without a newer checkpoint: {story}")
            return EXIT_PREEMPTED
        pause = patience.pause(fruitless)
        _say(f"starting again in {pause:.0f} s, from step {progress()}: {story}")
        if notice.wait(pause):
            return EXIT_PREEMPTED


def _attend(
    pod: Pod,
    notice: Notice,
    grace: float,
    tick: Callable[[Pod], None] | None,
    tick_seconds: float,
) -> tuple[Decision, dict[int, Exit]]:
    """Waits until there is a decision about the pod; passes signals on meanwhile.

    Returns the decision, and the exits of the processes that have ended.
    """
    deadline, passed = None, 0
    while True:
        notice.drain()
        for number in notice.received[passed:]:
            _say(f"passing {signal.Signals(number).name} on, as SIGTERM")
            pod.send(signal.SIGTERM)  # srun does not forward other signals
            passed += 1
        ended = pod.ended()
        running = len(pod.processes) - len(ended)
        decision = decide(list(ended.values()), running, asked_to_leave=passed > 0)
        if decision is not Decision.WAIT:
            return decision, ended
        now = time.monotonic()
        if deadline is None and (ended or passed):
            deadline = now + grace
        if notice.insists or (deadline is not None and now >= deadline):
            return (Decision.LEAVE if passed else Decision.RESTART), ended
        if tick:
            tick(pod)
        left = tick_seconds if deadline is None else min(tick_seconds, deadline - now)
        pod.listen(left, notice.file)


def _errors(ended: dict[int, Exit]) -> str:
    """The first line with an error that one of the processes printed."""
    return next((end.error for end in ended.values() if end.error), "")


def _story(ended: dict[int, Exit], count: int) -> str:
    """How the processes ended, for a message; equal ends are listed together."""
    alike: dict[str, list[str]] = {}
    for number, end in ended.items():
        alike.setdefault(str(end), []).append(str(number))
    parts = [f"process {', '.join(numbers)}: {end}" for end, numbers in alike.items()]
    if len(ended) < count:
        parts.append(f"{count - len(ended)} still running were ended")
    return "; ".join(parts)


def _say(text: str) -> None:
    print(f"launcher: {text}", flush=True)
