"""One process at a time writes into a folder: a lock file with a heartbeat, by filelock.

The file names host and process, and is deleted when the block ends. A killed process leaves it,
and the next start takes it over: at once if the process ran on this machine and is gone (a start
time distinguishes it from another process with the same number), and after EXPIRY seconds
without a heartbeat if it ran elsewhere. Clocks of machines are not compared.
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

EXPIRY = 90.0  # seconds; NFS may show another machine's heartbeat 60 seconds late
_POLL = 1.0  # seconds between two attempts


@contextlib.contextmanager
def owned(folder: str | Path, lock: str | Path | None = None) -> Iterator[None]:
    """Owns `folder` within the block, so that no other process does.

    lock: the lock file; None: `folder`/lock. Its folder is made if it is missing. Raises
    OutputError that names the owner.
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
        if late and owner is None:  # an empty lock file, which a kill or a full disk leaves
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
    """Returns a value that changes with each heartbeat and with each owner; None: no lock file."""
    try:
        found = Path(lease.lock_file).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def _runs_here(owner) -> bool:
    """Whether the owner is a process of this machine that has not ended.

    filelock itself takes over from processes that are gone. One that has ended, but whose parent
    has not waited for it, still has its number.
    """
    if owner.hostname not in _names_of_this_host():
        return False
    try:
        state = Path(f"/proc/{owner.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return not Path("/proc/self/stat").exists()  # not Linux: filelock has checked the process
    except OSError:
        return True
    return state not in "ZX"


def _names_of_this_host() -> set[str]:
    """Returns this host's names as filelock writes them.

    Containers may share a host name while the same process number means another process in
    each; the second name tells them apart.
    """
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
    """Ends the process, or warns, when its lock is lost; the heartbeat's thread calls this."""
    if reason != "owner-changed":
        print(f"warning: {folder}: its lock is lost ({reason}); do not start a second process")
        return
    # This process was suspended so long that another one has taken over its work.
    print(f"error: {folder} was taken over by another process", file=sys.stderr, flush=True)
    os._exit(EXIT_ERROR)
