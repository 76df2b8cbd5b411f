"""Disturbances of the pod in the endurance run, and a record of each."""

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
NOTICES = ("preempt", "interrupt", "hangup")  # all processes save after one of these
# Phases of a pod: until it has restored, until its first step, and later: at any step, at one
# that is saved, at one that is evaluated.
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
    """What is done to a pod, and when.

    kind: one of KINDS. victim: number in [0, 1) that chooses the process. phase: one of PHASES.
    seconds: in the phase "start", time after the start of the pod; also the length of a pause.
    steps: in the phase "step", number of steps after the first one of the pod.
    """

    kind: str
    victim: float
    seconds: float
    phase: str
    steps: int


@dataclasses.dataclass
class Record:
    """The consequences of a disturbance.

    processes: number in the pod. early: whether it came before the pod's first step. began: time
    of the disturbance. step: newest logged step when the pod was down, or 0. undamaged: newest
    checkpoint that was not damaged on purpose. resumed: step that the next pod resumed from.
    seconds: time from the disturbance to the next step. restarted: whether the pod ended.
    """

    kind: str
    processes: int
    early: bool
    began: float
    step: int = 0
    undamaged: int = 0
    resumed: int = 0
    seconds: float = 0.0
    restarted: bool = False

    @property
    def lost(self) -> int:
        """Number of steps that were trained again."""
        return max(self.step - self.resumed, 0) if self.restarted else 0


def schedule(
    kinds: Sequence[str], count: int, interval: int, rng: random.Random
) -> list[Disturbance]:
    """`count` disturbances in random order, with all kinds and phases equally often.

    Preemptions during "start" and "compile" come first: there is no checkpoint then, so the
    next start is a first one too. interval: steps between checkpoints.
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
    """Carries disturbances out one after another, in the launcher's thread.

    records: one for each disturbance that has begun. processes: number in the running pod.
    """

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
        self._open: list[Record] = []  # records whose pod has not made a step since
        self._current: Disturbance | None = None  # the disturbance of the running pod
        self._victim, self._paused = 0, False
        # Inodes of damaged checkpoints. A pod that dies early does not set them aside.
        self._damaged: set[int] = set()
        # The running pod: time of its start, first and newest step, the step that it resumed
        # from, and whether it has restored.
        self._started, self._first, self._newest, self._resumed = 0.0, 0, 0, 0
        self._restored = False

    def before_start(self, processes: int) -> None:
        """To be called while the pod is down: notes its newest step, and damages a checkpoint if
        that is due. processes: number in the next pod."""
        step = max((row["step"] for row in rows(self._workdir)), default=0)
        undamaged = self._undamaged()
        if self._current and self._current.kind in _DAMAGES and len(undamaged) > 1:
            victim, *undamaged = undamaged
            damage(self._workdir, victim, self._current.kind, self._rng)
            self._damaged.add(self._inode(victim))
        for record in self._open:
            if not record.restarted:
                record.step = 0 if record.early else step
                record.undamaged = undamaged[0] if undamaged else 0
                record.restarted = True
        self._current, self._paused, self.processes = None, False, processes
        self._started = time.monotonic()
        self._first, self._newest, self._resumed, self._restored = 0, 0, 0, False

    def _undamaged(self) -> list[int]:
        """Checkpoints that were not damaged on purpose, newest first."""
        steps = listing.readable_metas(self._workdir, listing.steps(self._workdir))
        return [step for step, _ in steps if self._inode(step) not in self._damaged]

    def _inode(self, step: int) -> int:
        """A number that differs between a checkpoint and a later one of the same step."""
        return (listing.directory(self._workdir) / str(step)).stat().st_ino

    def hear(self, number: int, line: str) -> None:
        """Takes a line of the output of process `number`, which shows how far the pod is."""
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
        """Completes a record: the pod trains again."""
        record.resumed = self._resumed
        record.seconds = time.monotonic() - record.began
        self._open.remove(record)
        if not record.restarted:  # a pause leaves the pod as it was
            self._current = None

    def tick(self, pod: Pod) -> None:
        """To be called often while a pod runs: begins or continues a disturbance."""
        if self._current:
            self._go_on(self._current, pod)
        elif self._planned and self._due(self._planned[0]):
            self._begin(self._planned.pop(0), pod)

    def _due(self, disturbance: Disturbance) -> bool:
        phase, first, newest = disturbance.phase, self._first, self._newest
        if not first:
            late = time.monotonic() > self._started + disturbance.seconds
            return (phase == "start" and late) or (phase == "compile" and self._restored)
        if disturbance.kind in _DAMAGES and len(self._undamaged()) < 2:
            return False  # a run does not begin again unasked where no checkpoint is valid
        if phase == "save":  # the log line of a step comes just before its save
            return newest > first and newest % self._saved_every == 0
        if phase == "evaluation":  # ... and just after its evaluation
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
        elif current.kind == "full disk":  # a deleted old checkpoint has made room
            fill(self._filler)

    def make_room(self) -> bool:
        """Frees a disk that was filled; returns whether one was."""
        if not self._filler.exists():
            return False
        self._filler.unlink()
        return True


def damage(workdir: Path, step: int, kind: str, rng: random.Random) -> None:
    """Damages a checkpoint by flipping bytes, deleting a file or emptying its folder."""
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
    """Lets a file grow until its file system is full."""
    with path.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def rows(workdir: Path) -> list[dict]:
    """The complete lines of metrics.jsonl; the last line may be cut off."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for line in (workdir / "metrics.jsonl").read_text().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found
