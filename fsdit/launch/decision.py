"""Decides what to do when processes of a pod have ended: wait, start again or stop."""

import dataclasses
import enum
import signal
from collections.abc import Sequence

from fsdit.errors import EXIT_HELD, EXIT_PREEMPTED


class Decision(enum.Enum):
    """What a launcher does next."""

    WAIT = "wait for the other processes"
    DONE = "all processes have finished"
    RESTART = "start the pod again"
    QUEUE = "start the pod again when the workdir may be free"
    LEAVE = "leave, as a signal to this launcher or the run's time limit asks for"
    STOP = "stop, because of a user's error"


@dataclasses.dataclass(frozen=True)
class Exit:
    """The end of one process.

    status: 128 + N (of a shell) and -N (of subprocess) mean that signal N killed it.
    error: the line "error: ..." that it printed, or "". time_is_up: whether it printed that
    its time limit has come.
    """

    status: int
    error: str = ""
    time_is_up: bool = False

    @property
    def signal(self) -> int:
        """The signal that killed the process, or 0."""
        if self.status < 0:
            return -self.status
        return self.status - 128 if self.status > 128 else 0

    @property
    def well(self) -> bool:
        """Whether the process finished, or saved and left after a preemption."""
        return self.status in (0, EXIT_PREEMPTED)

    @property
    def lost(self) -> bool:
        """Whether the process was killed from outside. SIGABRT does not count: JAX aborts
        processes whose peer has died."""
        return self.signal not in (0, signal.SIGABRT)

    def __str__(self) -> str:
        if self.signal:
            return f"killed by {_signal_name(self.signal)}"
        return f"exit status {self.status}"


def decide(ended: Sequence[Exit], running: int, asked_to_leave: bool) -> Decision:
    """Decides about a pod by the exits of its processes and the number that still run.

    A failed process ends the wait, because the others cannot train without it. If one process
    was killed, errors of its peers are consequences of that and no user's errors; if none was,
    an error is the cause of the aborts of its peers. Where another job owns the workdir, this one
    waits for it, however long that takes.
    """
    failed = [e for e in ended if not e.well]
    if not failed and running:
        return Decision.WAIT
    if any(e.status == EXIT_HELD for e in failed):
        return Decision.LEAVE if asked_to_leave else Decision.QUEUE
    if not any(e.lost for e in failed) and any(e.error for e in failed):
        return Decision.STOP
    if all(e.status == 0 for e in ended) and not running:
        return Decision.DONE
    leave = asked_to_leave or any(e.time_is_up for e in ended)
    return Decision.LEAVE if leave else Decision.RESTART


@dataclasses.dataclass(frozen=True)
class Patience:
    """How often and how fast a launcher starts a pod again.

    restarts: number of restarts in a row without a newer checkpoint that are allowed.
    first_pause, longest_pause: seconds.
    """

    restarts: int = 5
    first_pause: float = 1.0
    longest_pause: float = 300.0

    def exhausted(self, fruitless: int) -> bool:
        """Whether to give up after this many starts in a row without a newer checkpoint."""
        return fruitless > self.restarts

    def pause(self, fruitless: int) -> float:
        """Seconds before the next start: 0 after progress, then doubling from `first_pause`."""
        if fruitless == 0:
            return 0.0
        return min(self.longest_pause, self.first_pause * 2.0 ** min(fruitless - 1, 60))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
