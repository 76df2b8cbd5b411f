"""What to do when processes of a pod have ended: wait, start again or stop."""

import dataclasses
import enum
import signal
from collections.abc import Sequence

from fsdit.errors import EXIT_PREEMPTED


class Verdict(enum.Enum):
    WAIT = "wait for the others"
    DONE = "all have finished"
    RESTART = "start the pod again"
    LEAVE = "leave: this launcher was told to"
    STOP = "stop: a user's error"


@dataclasses.dataclass(frozen=True)
class Exit:
    """The end of one process.

    status: of 128 + N and -N, N is the signal that killed it, as a shell and as
    subprocess say it. error: its line "error: ...", where it printed one.
    """

    status: int
    error: str = ""

    @property
    def signal(self) -> int:
        """The signal that killed the process, or 0."""
        if self.status < 0:
            return -self.status
        return self.status - 128 if self.status > 128 else 0

    @property
    def well(self) -> bool:
        return self.status in (0, EXIT_PREEMPTED)

    @property
    def lost(self) -> bool:
        """Killed from outside. An abort is not: JAX aborts those whose peer has died."""
        return self.signal not in (0, signal.SIGABRT)

    def __str__(self) -> str:
        if self.signal:
            return f"killed by {_signal_name(self.signal)}"
        return f"exit status {self.status}"


def judge(ended: Sequence[Exit], running: int, told_to_leave: bool) -> Verdict:
    """What a pod's ended processes, and how many still run, call for.

    Any failure ends the wait: the others cannot go on without that process. A process
    that was killed explains an error of its peers, and an error explains their aborts.
    """
    failed = [e for e in ended if not e.well]
    if not failed and running:
        return Verdict.WAIT
    if not any(e.lost for e in failed) and any(e.error for e in failed):
        return Verdict.STOP
    if all(e.status == 0 for e in ended) and not running:
        return Verdict.DONE
    return Verdict.LEAVE if told_to_leave else Verdict.RESTART


@dataclasses.dataclass(frozen=True)
class Patience:
    """restarts: how many in a row may bring no newer checkpoint. Pauses are in seconds."""

    restarts: int = 5
    first_pause: float = 1.0
    longest_pause: float = 300.0

    def exhausted(self, fruitless: int) -> bool:
        """Whether to give up after this many starts in a row without a newer checkpoint."""
        return fruitless > self.restarts

    def pause(self, fruitless: int) -> float:
        """Seconds before the next start: none after progress, then doubling."""
        if fruitless == 0:
            return 0.0
        return min(self.longest_pause, self.first_pause * 2.0 ** min(fruitless - 1, 60))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
