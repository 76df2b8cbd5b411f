"""A small file system that can be filled up, and vanishes with the process that mounted it."""

import ctypes
import functools
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS = 0x20000


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[bool]:
    """Makes `folder` and mounts a tmpfs of `size` ("200k") there; yields whether that succeeded.

    It lies in a mount namespace of this process and its children, so a kill leaves nothing
    mounted. Without the rights to mount, `folder` is an ordinary folder.
    """
    folder.mkdir()
    mounted = enter_own_namespace() and _runs(
        "mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@functools.cache
def enter_own_namespace() -> bool:
    """Moves this process to a mount namespace of its own, once; returns whether it is in one.

    What it mounts from then on is seen by processes that it starts from then on, and by no other.
    """
    return _LIBC.unshare(_CLONE_NEWNS) == 0 and _runs("mount", "--make-rprivate", "/")


def _runs(*command: str | Path) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
