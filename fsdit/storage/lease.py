"""A lease on a folder of a bucket: one process at a time writes there.

The lease is an object of the folder. It names its owner, and the owner rewrites it every few
seconds. Each write states the generation of the object that it replaces, so that of two
processes only one can take a lease. Clocks of machines are not compared: a lease has expired
when its object stays the same for EXPIRY seconds.
"""

import contextlib
import dataclasses
import datetime
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from fsdit.errors import FsditError
from fsdit.storage import bucket

EXPIRY = 90.0  # seconds; NFS may show another machine's heartbeat 60 seconds late
_POLL = 1.0  # seconds between two looks at a lease that another process holds


@dataclasses.dataclass(frozen=True)
class Owner:
    """The process that holds a lease. process: tells processes of one number apart.

    since: when it took the lease, as text in UTC. beat: changes with each heartbeat.
    """

    host: str
    pid: int
    process: str
    since: str
    token: str
    beat: int = 0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"

    def has_ended(self) -> bool:
        """Whether the owner ran on this machine and is gone; False where that is not known."""
        return self._is_here() and _process(self.pid) != self.process

    def runs_here(self) -> bool:
        """Whether the owner runs on this machine; False where that is not known."""
        return self._is_here() and _process(self.pid) == self.process

    def _is_here(self) -> bool:
        machine = self.process.rpartition(" ")[0]
        return self.host == socket.gethostname() and bool(machine) and machine == _machine()


class Held(Exception):  # noqa: N818
    """Another process holds the lease, and is alive."""

    def __init__(self, owner: Owner):
        super().__init__(str(owner))
        self.owner = owner


class Lease:
    """The lease on `path`, an object of a bucket. Methods raise OutputError or DataError."""

    def __init__(self, path: str, lost: Callable[[str], None]):
        """lost: called from a thread of its own with "taken" when another process has taken the
        lease, and with "unreachable" when the store has not answered for EXPIRY seconds."""
        self._path, self._lost = path, lost
        self._owner = Owner(
            socket.gethostname(), os.getpid(), _process(os.getpid()), now(), uuid.uuid4().hex
        )
        self._generation = 0
        self._end = threading.Event()
        self._heart = threading.Thread(target=self._keep, name="lease", daemon=True)

    def acquire(self, waiting: Callable[[Owner], None]) -> None:
        """Takes the lease where it is free, released or expired. Raises Held otherwise.

        waiting: called once before this waits to see whether an owner is still alive.
        """
        first = None
        deadline = time.monotonic() + EXPIRY
        while True:
            content, generation = bucket.read(self._path) or (b"", 0)
            owner = _parse(content)
            expired = owner is None or owner.has_ended() or time.monotonic() > deadline
            if owner is not None and (first not in (None, generation) or owner.runs_here()):
                raise Held(owner)
            if expired and self._write(generation):
                self._heart.start()
                return
            if first is None and owner is not None:
                first = generation
                waiting(owner)
            time.sleep(_POLL)

    def release(self) -> None:
        """Gives the lease back; another process can take it at once."""
        self._end.set()
        self._heart.join()
        with contextlib.suppress(FsditError):
            bucket.write(self._path, b"", self._generation)

    def _write(self, generation: int) -> bool:
        self._owner = dataclasses.replace(self._owner, beat=self._owner.beat + 1)
        content = json.dumps(dataclasses.asdict(self._owner)).encode()
        found = bucket.write(self._path, content, generation)
        self._generation = found or self._generation
        return found is not None

    def _keep(self) -> None:
        """Renews the lease until it is released or taken."""
        beaten = time.monotonic()
        while not self._end.wait(EXPIRY / 4):
            try:
                if not self._write(self._generation):
                    self._lost("taken")
                    return
                beaten = time.monotonic()
            except FsditError:
                if time.monotonic() - beaten > EXPIRY:
                    self._lost("unreachable")
                    beaten = time.monotonic()


def _parse(content: bytes) -> Owner | None:
    """The owner in a lease; None where it is released or was never written whole."""
    try:
        return Owner(**json.loads(content))
    except (ValueError, TypeError):
        return None


def now() -> str:
    """The time in UTC, to the second, for people to read."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _machine() -> str:
    """Names this boot of this machine and this container's processes; "" where it is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').stat().st_ino:x}"
    except OSError:
        return ""


def _process(pid: int) -> str:
    """Names a running process of this machine by its start; "" where there is none."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    # Field 22 of proc(5) is the time of the start. A zombie has ended.
    return "" if state in "ZX" else f"{_machine()} {fields[18]}"
