"""One process at a time writes into a folder: a lock file with a heartbeat, by filelock.

The file names host and process. It goes when the block ends; a kill leaves it, and then
the next start takes it over: at once where the process is gone from this very machine
(its start time tells it from another process under the same number), and after EXPIRY
seconds without a heartbeat where it ran elsewhere. Clocks of machines are not compared.
"""

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import LeaseSettingsMismatch, SoftFileLease, Timeout

from fsdit.errors import EXIT_ERROR, OutputError, remedy, system_text

EXPIRY = 90.0  # seconds; NFS shows another machine's heartbeat up to 60 late
_POLL = 1.0


@contextlib.contextmanager
def owned(folder: str | Path, lock: str | Path | None = None) -> Iterator[None]:
    """Within the block no other process owns `folder`.

    lock: the lock file; by default `folder`/lock, whose folder is made where it is not there.
    Raises OutputError that names the owner.
    """
    folder = Path(folder).absolute()
    path = Path(lock) if lock else folder / "lock"
    try:
        made = not path.parent.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        lease = SoftFileLease(
            path,
            lease_duration=EXPIRY,
            thread_local=False,
            on_compromise=lambda found: _lost(folder, found.reason),
        )
        _take(lease, folder)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {system_text(error)}; {remedy(error)}") from error
    try:
        yield
    finally:
        lease.release()
        if made:
            with contextlib.suppress(OSError):
                path.parent.rmdir()  # nothing was written


def _take(lease: SoftFileLease, folder: Path) -> None:
    deadline, seen = time.monotonic() + EXPIRY + 10 * _POLL, None
    while True:
        try:
            lease.acquire(timeout=0)
            return
        except Timeout:
            owner, beat = lease.owner, _beat(lease)
        except LeaseSettingsMismatch as error:
            raise OutputError(f"{folder} is in use by another version of fsdit: {error}") from error
        alive = owner is not None and (_runs_here(owner) or (seen and beat and seen != beat))
        late = time.monotonic() > deadline
        if late and owner is None:  # an empty file, by a kill or a full disk
            lease.force_break()
        elif alive or late:
            raise OutputError(
                f"{folder} is in use by {_name(owner)}: wait until it has ended, end it, or name "
                "another folder"
            )
        if seen is None:
            print(
                f"{folder} was in use by {_name(owner)}: waiting for up to {EXPIRY:.0f} s whether "
                "that one is still there",
                flush=True,
            )
        seen = beat or seen
        time.sleep(_POLL)


def _beat(lease: SoftFileLease) -> tuple[int, int] | None:
    """Changes with each heartbeat, and from owner to owner."""
    try:
        found = Path(lease.lock_file).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def _runs_here(owner) -> bool:
    """Whether the process is one of this machine and has not ended.

    filelock has taken over from those that are gone; one that has ended and was not waited
    for still has its number.
    """
    if owner.hostname not in _names_of_this_host():
        return False
    try:
        state = Path(f"/proc/{owner.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return not Path("/proc/self/stat").exists()  # no Linux: filelock has asked
    except OSError:
        return True
    return state not in "ZX"


def _names_of_this_host() -> set[str]:
    """As filelock writes them: containers of one host name differ in their process numbers."""
    host = socket.gethostname()
    try:
        return {host, f"{host}?pidns-{Path('/proc/self/ns/pid').stat().st_ino:x}"}
    except OSError:
        return {host}


def _name(owner) -> str:
    if owner is None:
        return "another process"
    return f"process {owner.pid} on {owner.hostname.partition('?')[0]}"


def _lost(folder: Path, reason: str) -> None:
    """Called by the thread of the heartbeat."""
    if reason != "owner-changed":
        print(f"warning: {folder}: its lock is lost ({reason}); do not start a second process")
        return
    # This process was suspended for so long that another one has gone on from its work.
    print(f"error: {folder} was taken over by another process", file=sys.stderr, flush=True)
    os._exit(EXIT_ERROR)
