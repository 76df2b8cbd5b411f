"""A small file system to fill up, which vanishes with the process that mounted it."""

import ctypes
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS = 0x20000


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[bool]:
    """Mounts a tmpfs of `size` ("200k") at `folder`, which is made; whether that was possible.

    Only this process and those that it starts see it, in a mount namespace of their own: a
    kill leaves nothing mounted. Where it takes rights that are not there, it is a plain folder.
    """
    folder.mkdir()
    mounted = (
        _LIBC.unshare(_CLONE_NEWNS) == 0
        and _runs("mount", "--make-rprivate", "/")
        and _runs("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def _runs(*command: str | Path) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
