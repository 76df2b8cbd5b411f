"""Runs data_prep.episodes on copies of a dataset, each killed at a later change of a file.

    python -m tests.data_prep.conversion.kill_at_each_write DATASET FOLDER FLAG...

The copies are FOLDER/0, FOLDER/1 and so on; the last one was not killed.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

from data_prep import episodes
from fsdit import program


def killed(directory: Path, flags: list[str], at: int) -> bool:
    """Rebuilds the episodes of `directory`, killed at change number `at`; False if it ended."""
    pid = os.fork()
    if pid:
        return os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    left = at

    def count(event: str, arguments: tuple) -> None:
        nonlocal left
        written = event == "open" and isinstance(arguments[1], str) and "w" in arguments[1]
        if written or event in ("os.rename", "os.remove"):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    sys.argv = ["episodes", f"--dataset_dir={directory}", *flags]
    program.run(episodes.main)
    raise AssertionError("program.run returned, and did not exit")


def main(source: str, folder: str, *flags: str) -> None:
    at = 0
    while killed(shutil.copytree(source, Path(folder, str(at))), list(flags), at):
        at += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
