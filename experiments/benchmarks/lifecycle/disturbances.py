"""What is done to a pod of the endurance run, and what is noted of each."""

import contextlib
import dataclasses
import errno
import json
import random
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from fsdit.launch.pod import Pod
from fsdit.training.checkpoints import listing

KINDS = {
    "kill": "SIGKILL to one process",
    "preempt": "SIGTERM to one process",
    "interrupt": "SIGINT to one process, as of Ctrl-C",
    "hangup": "SIGHUP to one process, as of a closed terminal",
    "pause": "SIGSTOP to one process, SIGCONT after a moment",
    "stop": "SIGSTOP to one process for good",
    "flipped bytes": "SIGKILL to one process; bytes of the newest checkpoint flipped",
    "lost file": "SIGKILL to one process; a file of the newest checkpoint deleted",
    "empty folder": "SIGKILL to one process; the newest checkpoint emptied",
    "full disk": "the file system filled until a write fails, then freed",
}
NOTICES = ("preempt", "interrupt", "hangup")  # a process hears them, and all save
# Of a pod's life: until it has restored, until its first step, later; and the moments of a
# step that is saved, and of one that is evaluated.
PHASES = ("start", "compile", "step", "save", "evaluation")
_IN_EACH_PHASE = ("preempt", "kill", "interrupt", "hangup", "stop")
_SIGNALS = {
    "preempt": signal.SIGTERM,
    "interrupt": signal.SIGINT,
    "hangup": signal.SIGHUP,
    "pause": signal.SIGSTOP,
    "stop": signal.SIGSTOP,
}
_DAMAGES = ("flipped bytes", "lost file", "empty folder")


@dataclasses.dataclass(frozen=True)
class Disturbance:
    """When: in a phase, one of PHASES. In "step", `steps` after the first one of a pod.

    victim: in [0, 1), which process. seconds: after the start of the pod, in that phase;
    also how long a pause lasts.
    """

    kind: str
    victim: float
    seconds: float
    phase: str
    steps: int


@dataclasses.dataclass
class Record:
    """What came of a disturbance.

    early: before the pod's first step. step: the newest logged one when the pod was down
    (0: it had made none), and resumed the one that the next went on from; sound: the newest
    checkpoint that nothing was done to. seconds: from the disturbance to the next step.
    """

    kind: str
    processes: int
    early: bool
    began: float
    step: int = 0
    sound: int = 0
    resumed: int = 0
    seconds: float = 0.0
    restarted: bool = False

    @property
    def lost(self) -> int:
        """Steps that were trained again."""
        return max(self.step - self.resumed, 0) if self.restarted else 0


def plan(kinds: Sequence[str], count: int, interval: int, rng: random.Random) -> list[Disturbance]:
    """`count` disturbances in random order, kinds and their phases as often as each other.

    Preemptions come first that find no step done yet, so that one more start is a first one.
    """
    made = []
    for i in range(count):
        kind, phase = kinds[i % len(kinds)], "step"
        if kind in _IN_EACH_PHASE:
            phase = PHASES[(_IN_EACH_PHASE.index(kind) + i // len(kinds)) % len(PHASES)]
        steps = rng.randrange(1, interval + interval // 2)
        made.append(Disturbance(kind, rng.random(), rng.uniform(0.1, 4.0), phase, steps))
    rng.shuffle(made)
    first = [("preempt", "start"), ("preempt", "compile")]
    return sorted(made, key=lambda d: (d.kind, d.phase) not in first)


class Disturber:
    """Carries a plan out, one disturbance after another, from the launcher's own thread."""

    def __init__(
        self,
        workdir: Path,
        planned: Sequence[Disturbance],
        rng: random.Random,
        filler: Path,
        saved_every: int,
        evaluated_every: int,
    ):
        self._saved_every, self._evaluated_every = saved_every, evaluated_every
        self.records: list[Record] = []
        self.processes = 0
        self._workdir, self._planned, self._rng = workdir, list(planned), rng
        self._filler = filler
        self._open: list[Record] = []  # their pods have not come back yet
        self._current: Disturbance | None = None  # was done to the pod that runs
        self._victim, self._paused = 0, False
        self._damaged: set[int] = set()  # a pod that dies early leaves them in their place
        # Of the pod that runs: when it started, its first and newest step, where it resumed,
        # and whether it has restored.
        self._started, self._first, self._newest, self._resumed = 0.0, 0, 0, 0
        self._restored = False

    def before_start(self, processes: int) -> None:
        """The pod is down: notes what it had reached, and damages what is due."""
        step = max((row["step"] for row in rows(self._workdir)), default=0)
        sound = self._sound()
        if self._current and self._current.kind in _DAMAGES and sound:
            victim, *sound = sound
            damage(self._workdir, victim, self._current.kind, self._rng)
            self._damaged.add(self._inode(victim))
        for record in self._open:
            if not record.restarted:
                record.step = 0 if record.early else step
                record.sound = sound[0] if sound else 0
                record.restarted = True
        self._current, self._paused, self.processes = None, False, processes
        self._started = time.monotonic()
        self._first, self._newest, self._resumed, self._restored = 0, 0, 0, False

    def _sound(self) -> list[int]:
        """Checkpoints that nothing was done to, newest first."""
        steps = listing.readable_metas(self._workdir, listing.steps(self._workdir))
        return [step for step, _ in steps if self._inode(step) not in self._damaged]

    def _inode(self, step: int) -> int:
        """Tells a checkpoint from a later one of the same step."""
        return (listing.directory(self._workdir) / str(step)).stat().st_ino

    def hear(self, number: int, line: str) -> None:
        """A line of the pod's output."""
        if number == 0 and line.startswith("resuming "):
            self._resumed = int(line.rpartition(" ")[2])
        elif number == 0 and line.startswith("TensorBoard: "):
            self._restored = True
        elif number == 0 and line.startswith("step "):
            self._newest = int(line.split()[1].partition("/")[0])
            self._first = self._first or self._newest
            for record in list(self._open):
                if record.restarted or (record.kind == "pause" and not self._paused):
                    self._close(record)

    def _close(self, record: Record) -> None:
        """The pod trains again."""
        record.resumed = self._resumed
        record.seconds = time.monotonic() - record.began
        self._open.remove(record)
        if not record.restarted:  # a pause leaves the pod as it was
            self._current = None

    def tick(self, pod: Pod) -> None:
        """Called often while a pod runs: does the next thing that is due."""
        if self._current:
            self._go_on(self._current, pod)
        elif self._planned and self._due(self._planned[0]):
            self._begin(self._planned.pop(0), pod)

    def _due(self, disturbance: Disturbance) -> bool:
        phase, first, newest = disturbance.phase, self._first, self._newest
        if not first:
            late = time.monotonic() > self._started + disturbance.seconds
            return (phase == "start" and late) or (phase == "compile" and self._restored)
        if disturbance.kind in _DAMAGES and not self._sound():
            return False  # nothing to damage yet
        if phase == "save":  # the line of a step that is saved comes just before
            return newest > first and newest % self._saved_every == 0
        if phase == "evaluation":  # that of an evaluated one comes after it
            return newest > first and (newest + 1) % self._evaluated_every == 0
        return newest >= first + (disturbance.steps if phase == "step" else 1)

    def _begin(self, disturbance: Disturbance, pod: Pod) -> None:
        early = not self._first
        record = Record(disturbance.kind, self.processes, early, began=time.monotonic())
        self.records.append(record)
        self._open.append(record)
        self._current = disturbance
        if disturbance.kind == "full disk":
            fill(self._filler)
            return
        self._paused = disturbance.kind == "pause"
        self._victim = int(disturbance.victim * len(pod.processes))
        number = _SIGNALS.get(disturbance.kind, signal.SIGKILL)
        pod.processes[self._victim].send_signal(number)

    def _go_on(self, current: Disturbance, pod: Pod) -> None:
        over = time.monotonic() > self.records[-1].began + current.seconds
        if self._paused and over:
            pod.processes[self._victim].send_signal(signal.SIGCONT)
            self._paused = False
        elif current.kind == "full disk":  # an old checkpoint that goes makes room
            fill(self._filler)

    def make_room(self) -> bool:
        """Empties a disk that was filled. False where none was."""
        if not self._filler.exists():
            return False
        self._filler.unlink()
        return True


def damage(workdir: Path, step: int, kind: str, rng: random.Random) -> None:
    """Does to a checkpoint what its kind says."""
    folder = listing.directory(workdir) / str(step)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if kind == "flipped bytes":
        largest = max(files, key=lambda path: path.stat().st_size)
        data = bytearray(largest.read_bytes())
        for i in range(rng.randrange(97), len(data), 97):
            data[i] ^= 0xFF
        largest.write_bytes(data)
    elif kind == "lost file":
        rng.choice(files).unlink()
    else:
        shutil.rmtree(folder)
        folder.mkdir()


def fill(path: Path) -> None:
    """Makes a file take all room that is left on its file system."""
    with path.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def rows(workdir: Path) -> list[dict]:
    """Whole lines of the log; the last may be cut off."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for line in (workdir / "metrics.jsonl").read_text().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found
