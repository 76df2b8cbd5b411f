"""Runs a program of the project as its users do, in a process of its own."""

import subprocess
import sys
from collections.abc import Mapping

from fsdit.errors import FsditError


def run_program(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
    """Runs `python -m module` without its normal output; what it says of errors stays.

    environment: all variables of the process; None: those of this one. Raises FsditError where
    the program fails.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env=environment, check=False, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise FsditError(
            f"python -m {module} ended with status {done.returncode}; what it says of that stands "
            "above: mend it, then start the same command again"
        )
