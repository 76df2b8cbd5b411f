"""One process at a time writes into a folder: it holds a lease with a heartbeat.

On a disk the lease is a lock file, by filelock; in a bucket it is an object, by
`fsdit.storage.lease`. The lease names host and process, and is given back when the block ends. A
killed process leaves it, and the next start takes it over: at once if the process ran on this
machine and is gone (a start time distinguishes it from another process with the same number),
and after EXPIRY seconds without a heartbeat if it ran elsewhere. Clocks of machines are not
compared.
"""

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import LeaseSettingsMismatch, SoftFileLease, Timeout

from fsdit import storage
from fsdit.errors import EXIT_HELD, HeldError, OutputError, remedy, system_text
from fsdit.storage.lease import EXPIRY, Held, Lease, now

_POLL = 1.0  # seconds between two attempts


@contextlib.contextmanager
def owned(folder: storage.PathLike, lock: storage.PathLike | None = None) -> Iterator[None]:
    """Owns `folder` within the block, so that no other process does.

    lock: the lock file of a local folder; None: `folder`/lock. Its folder is made if it is
    missing. Raises HeldError that names the owner.
    """
    if storage.is_remote(folder):
        with _leased(str(folder).rstrip("/")):
            yield
        return
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
        _since(path).write_text(now())
    except OSError as error:
        raise OutputError(f"cannot write {path}: {system_text(error)}; {remedy(error)}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            _since(path).unlink()
        lease.release()
        if made:
            with contextlib.suppress(OSError):
                path.parent.rmdir()  # nothing was written


@contextlib.contextmanager
def _leased(folder: str) -> Iterator[None]:
    """Holds the lease on a folder of a bucket within the block."""

    def lost(reason: str) -> None:
        if reason == "taken":
            _leave(folder)
        print(f"warning: {folder}: {reason}; do not start a second process", flush=True)

    lease = Lease(f"{folder}/lock", lost)
    try:
        lease.acquire(lambda owner: _say_waiting(folder, owner))
    except Held as held:
        raise _held(folder, held.owner) from None
    try:
        yield
    finally:
        lease.release()


def _since(lock: Path) -> Path:
    """The file that says since when a lock is held."""
    return lock.with_name(f"{lock.name}.since")


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
            raise _held(folder, _name(owner, Path(lease.lock_file)))
        if seen is None:
            _say_waiting(folder, _name(owner, Path(lease.lock_file)))
        seen = beat or seen
        time.sleep(_POLL)


def _held(folder: storage.PathLike, owner: object) -> HeldError:
    return HeldError(
        f"{folder} is in use by {owner}: wait until it has ended, end it, or name another folder"
    )


def _say_waiting(folder: storage.PathLike, owner: object) -> None:
    print(
        f"{folder} was in use by {owner}: waiting for up to {EXPIRY:.0f} s whether that one is "
        "still there",
        flush=True,
    )


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


def _name(owner, lock: Path) -> str:
    if owner is None:
        return "another process"
    name = f"process {owner.pid} on {owner.hostname.partition('?')[0]}"
    try:
        return f"{name} since {_since(lock).read_text()[:40]}"
    except OSError:  # taken this moment, or by an older version
        return name


def _lost(folder: Path, reason: str) -> None:
    """Ends the process, or warns, when its lock is lost; the heartbeat's thread calls this."""
    if reason != "owner-changed":
        print(f"warning: {folder}: its lock is lost ({reason}); do not start a second process")
        return
    _leave(folder)


def _leave(folder: storage.PathLike) -> None:
    """Ends this process at once: it was suspended so long that another took over its work."""
    print(f"error: {folder} was taken over by another process", file=sys.stderr, flush=True)
    os._exit(EXIT_HELD)
