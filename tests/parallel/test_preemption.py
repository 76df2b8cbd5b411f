import signal
import subprocess
import sys
import time

import pytest

from tests.programs import ROOT, environment

TERM, INT, HUP, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL

# (behaviour of the program, signals sent, exit status); SIGKILL ends a program that stays.
ENDS = {
    "SIGTERM while it asks": ("asking", [TERM], 3),
    "Ctrl-C while it asks": ("asking", [INT], 3),
    "a hangup while it asks": ("asking", [HUP], 3),
    "SIGTERM, with nothing to save": ("at_once", [TERM], 75),
    "Ctrl-C, with nothing to save": ("at_once", [INT], 75),
    "a hangup, with nothing to save": ("at_once", [HUP], 75),
    "SIGTERM before nothing to save is known": ("early", [TERM], 75),
    "Ctrl-C twice": ("busy", [INT, INT], 75),
    "Ctrl-C after SIGTERM": ("busy", [TERM, INT], 75),
    "Ctrl-C once": ("busy", [INT, KILL], -KILL),
    "SIGTERM twice, as of a scheduler": ("busy", [TERM, TERM, KILL], -KILL),
    "a hangup twice, as of a shell": ("busy", [HUP, HUP, KILL], -KILL),
}


def send(process: subprocess.Popen, numbers) -> None:
    """Send the signals one by one, because equal signals that wait together count as one."""
    for number in numbers:
        process.send_signal(number)
        if number != KILL:
            time.sleep(0.3)


@pytest.mark.medium
@pytest.mark.parametrize(("doing", "sent", "status"), ENDS.values(), ids=ENDS.keys())
def test_signals_are_heard_whatever_the_main_thread_does(doing, sent, status):
    with subprocess.Popen(
        [sys.executable, "-m", "tests.parallel.listening", doing],
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: [signal.signal(n, signal.SIG_DFL) for n in (INT, HUP)],
    ) as process:
        assert process.stdout.readline() == "ready\n"
        send(process, sent)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert "Traceback" not in errors
    assert errors.startswith(signal.Signals(sent[0]).name)


@pytest.mark.medium
def test_under_nohup_a_hangup_is_no_notice_of_preemption():
    with subprocess.Popen(
        ["nohup", sys.executable, "-m", "tests.parallel.listening", "asking"],
        env=environment(),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        send(process, [HUP, TERM])
        assert process.wait(60) == 3
