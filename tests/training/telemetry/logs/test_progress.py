"""Progress as a file has it and as a terminal shows it, with what others print between."""

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios

import pytest

from fsdit.program.terminal import SafeStream
from fsdit.training.telemetry.logs import progress
from fsdit.training.telemetry.logs.progress import Progress

COLUMNS = 100


class Terminal:
    """A terminal of one page: knows line feed, carriage return, and "erase to the end of line"."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr(progress, "_PAUSE", 0.0)
        self._read, write = pty.openpty()
        fcntl.ioctl(write, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        self.file = os.fdopen(write, "w", encoding="utf-8")
        monkeypatch.setenv("TERM", "xterm")
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, SafeStream(self.file))
        self._lines, self._column = [""], 0

    def lines(self) -> list[str]:
        """What a person sees, the line of the cursor last."""
        self.file.flush()
        text = b""
        while select.select([self._read], [], [], 0)[0]:
            text += os.read(self._read, 4096)
        for part in re.findall(r"\r|\n|\x1b\[K|[^\r\n\x1b]+", text.decode()):
            self._take(part)
        return self._lines

    def _take(self, part: str) -> None:
        if part == "\n":
            self._lines.append("")
        elif part == "\r":
            self._column = 0
        elif part == "\x1b[K":
            self._lines[-1] = self._lines[-1][: self._column]
        else:
            line = self._lines[-1]
            self._lines[-1] = line[: self._column] + part + line[self._column + len(part) :]
            self._column += len(part)


def test_a_file_gets_a_line_for_each_row_of_the_log(capsys):
    shown = Progress(0, 30, None)
    for step, found in ((10, {}), (20, {"val/loss": 0.5}), (30, {})):
        shown.step(step, 0.25)
        shown.line(step, 0.25, 80.0, 3725.0, found, "  1 skipped" if step == 30 else "")
    shown.close()
    assert capsys.readouterr().out.splitlines() == [
        "step 10/30  loss 0.2500  80.0 images/s  1:02:05 left",
        "step 20/30  loss 0.2500  val 0.5000  80.0 images/s  1:02:05 left",
        "step 30/30  loss 0.2500  val 0.5000 (step 20)  80.0 images/s  1:02:05 left  1 skipped",
    ]


def test_a_resumed_run_knows_the_validation_of_the_one_before(capsys):
    Progress(20, 30, (20, 0.5)).line(25, 0.25, 80.0, 9.0, {}, "")
    assert "  val 0.5000 (step 20)  " in capsys.readouterr().out


def test_a_terminal_has_one_bar_below_everything_that_is_printed(monkeypatch):
    terminal = Terminal(monkeypatch)
    shown = Progress(0, 40, None)
    for step in range(1, 11):
        shown.step(step, 0.25)
    bar = r" 25%\|███ +\| step 10/40  loss 0.2500  \d+:\d\d left"
    (line,) = terminal.lines()
    assert re.fullmatch(bar, line), line

    print("warning: step 10 was skipped", flush=True)
    print("watchdog: slow", file=sys.stderr, flush=True)
    shown.line(10, 0.25, 80.0, 9.0, {}, "")  # a line of the log alone is no line here
    assert terminal.lines() == ["warning: step 10 was skipped", "watchdog: slow", ""]

    shown.step(20, 0.5)
    shown.line(20, 0.5, 80.0, 9.0, {"val/loss": 0.75}, "")
    shown.step(30, 0.5)
    *above, evaluated, last = terminal.lines()
    assert above == ["warning: step 10 was skipped", "watchdog: slow"]
    assert evaluated == "step 20/40  loss 0.5000  val 0.7500  80.0 images/s  0:09 left"
    assert "75%" in last and "val 0.7500 (step 20)  80.0 images/s" in last
    assert len(last) < COLUMNS

    shown.close()
    assert terminal.lines()[-1] == ""


def test_a_notice_that_goes_past_the_streams_takes_the_place_of_the_bar(monkeypatch):
    terminal = Terminal(monkeypatch)
    from fsdit.parallel import preemption

    shown = Progress(0, 40, None)
    shown.step(1, 0.25)
    shown.step(2, 0.25)
    monkeypatch.setattr(sys, "__stderr__", terminal.file)
    preemption._say("SIGTERM: saving")
    shown.step(3, 0.25)
    print("preempted at step 3", flush=True)
    assert terminal.lines() == ["SIGTERM: saving", "preempted at step 3", ""]


@pytest.mark.parametrize("columns", [0, 1, 30, 400])
def test_a_bar_fits_any_width(monkeypatch, columns):
    terminal = Terminal(monkeypatch)
    size = struct.pack("HHHH", 24, columns, 0, 0)
    fcntl.ioctl(terminal.file.fileno(), termios.TIOCSWINSZ, size)
    shown = Progress(0, 40, (7, 0.123))
    shown.step(8, 0.25)
    shown.step(9, 0.25)
    (line,) = terminal.lines()
    assert len(line) < max(columns or 80, 2)


def test_a_terminal_that_cannot_rewrite_a_line_gets_lines(monkeypatch):
    terminal = Terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    shown = Progress(0, 40, None)
    shown.step(1, 0.25)
    shown.step(2, 0.25)
    shown.line(2, 0.25, 80.0, 9.0, {}, "")
    assert terminal.lines() == ["step 2/40  loss 0.2500  80.0 images/s  0:09 left", ""]
