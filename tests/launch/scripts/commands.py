"""The folder of the launch scripts and stand-ins for commands, which their tests share."""

import stat
import time
from pathlib import Path

from tests.programs import ROOT

LAUNCH = ROOT / "fsdit" / "launch"


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)
