"""Keeps a pod running: starts it, and starts it again after preemptions and losses."""

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fsdit.errors import EXIT_ERROR, EXIT_PREEMPTED
from fsdit.launch.decision import Exit, Patience, Verdict, judge
from fsdit.launch.pod import Pod
from fsdit.training.checkpoints import listing


class Notice:
    """Signals that this launcher has received, in `received`; `file` is readable after one."""

    def __init__(self):
        self.received: list[int] = []
        self.file, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    @property
    def insists(self) -> bool:
        """Whether a Ctrl-C came after another signal: there is no time to save."""
        return signal.SIGINT in self.received[1:]

    def take(self, number: int, *_: object) -> None:
        self.received.append(number)
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, b"!")

    def wait(self, seconds: float) -> bool:
        """Whether a signal has come, or comes within `seconds`."""
        if not self.received:
            select.select([self.file], [], [], seconds)
        return bool(self.received)

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self.file, 64):
                pass


@contextlib.contextmanager
def listening() -> Iterator[Notice]:
    """SIGTERM, Ctrl-C and a closed terminal are noted, and no longer end this process.

    Under nohup a closed terminal stays without effect.
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
    """The newest step of the workdir that is whole by what it says of itself, or 0."""
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
    """Runs pods until one has finished. Returns an exit status of this launcher.

    0: finished. EXIT_ERROR: an error that is the user's to mend. EXIT_PREEMPTED: told to
    leave by a signal, or out of patience; started again, it goes on.

    start: makes the next pod, of as many processes as it likes. progress: the newest
    checkpoint. grace: seconds that a pod has to end in, once it was told to or one of its
    processes has ended well. tick: called every tick_seconds while a pod runs.
    """
    fruitless = 0
    while True:
        before = progress()
        with start() as pod:
            verdict, ended = _attend(pod, notice, grace, tick, tick_seconds)
            story = _story(ended, len(pod.processes))
        if verdict is Verdict.DONE:
            return 0
        if verdict is Verdict.STOP:
            error = next(e.error for e in ended.values() if e.error)
            print(f"{error} [no restart: {story}]", file=sys.stderr, flush=True)
            return EXIT_ERROR
        if verdict is Verdict.LEAVE:
            _say(f"leaving as told: {story}")
            return EXIT_PREEMPTED
        # Another one, not a later one: a damaged step that was set aside is made again.
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
) -> tuple[Verdict, dict[int, Exit]]:
    """Waits for the pod's end, or for what makes waiting useless; passes signals on."""
    deadline, passed = None, 0
    while True:
        notice.drain()
        for number in notice.received[passed:]:
            _say(f"passing {signal.Signals(number).name} on, as SIGTERM")
            pod.send(signal.SIGTERM)  # srun keeps other signals to itself
            passed += 1
        ended = pod.ended()
        running = len(pod.processes) - len(ended)
        verdict = judge(list(ended.values()), running, told_to_leave=passed > 0)
        if verdict is not Verdict.WAIT:
            return verdict, ended
        now = time.monotonic()
        if deadline is None and (ended or passed):
            deadline = now + grace
        if notice.insists or (deadline is not None and now >= deadline):
            return (Verdict.LEAVE if passed else Verdict.RESTART), ended
        if tick:
            tick(pod)
        left = tick_seconds if deadline is None else min(tick_seconds, deadline - now)
        pod.listen(left, notice.file)


def _story(ended: dict[int, Exit], count: int) -> str:
    """How the processes ended, alike ones together."""
    alike: dict[str, list[str]] = {}
    for number, end in ended.items():
        alike.setdefault(str(end), []).append(str(number))
    parts = [f"process {', '.join(numbers)}: {end}" for end, numbers in alike.items()]
    if len(ended) < count:
        parts.append(f"{count - len(ended)} still running were ended")
    return "; ".join(parts)


def _say(text: str) -> None:
    print(f"launcher: {text}", flush=True)
