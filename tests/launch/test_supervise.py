"""The supervisor of small real processes: restarts, signals, output and exits."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fsdit.launch.decision import Patience
from fsdit.launch.pod import Pod
from fsdit.launch.supervise import listening, supervise
from tests.programs import ROOT, environment

pytestmark = pytest.mark.medium

PATIENCE = Patience(restarts=2, first_pause=0.01, longest_pause=0.02)


def member(folder, behaviour):
    """Command of a process that behaves as tests/launch/member.py says."""
    return [sys.executable, str(Path(__file__).with_name("member.py")), str(folder), behaviour]


@pytest.fixture
def pods(tmp_path):
    """A function that supervises pods of members, and returns the exit status and all starts."""

    def run(behaviour, *counts, progress=lambda: 0, tick=None, patience=PATIENCE, grace=60.0):
        command = member(tmp_path, behaviour)
        order = iter(counts)
        with listening() as notice:
            status = supervise(
                start=lambda: Pod(command, next(order, counts[-1])),
                progress=progress,
                notice=notice,
                patience=patience,
                grace=grace,
                tick=tick and (lambda pod: tick(pod, tmp_path)),
                tick_seconds=0.05,
            )
        return status, sorted((tmp_path / "starts").read_text().splitlines())

    return run


def test_a_pod_that_finishes_is_not_started_again(pods, capfd):
    assert pods("say_hello", 2) == (0, ["0 of 2", "1 of 2"])
    output = capfd.readouterr().out
    assert "[0] hello\n" in output and "[1] hello\n" in output


def test_a_preempted_pod_starts_again_and_may_change_its_size(pods):
    status, starts = pods("be_preempted_once", 2, 3, 1)
    # Process 2 of the second pod is new, so it takes a third pod to finish.
    assert status == 0
    assert starts == ["0 of 1", "0 of 2", "0 of 3", "1 of 2", "1 of 3", "2 of 3"]


def test_a_killed_process_takes_the_pod_with_it_and_all_start_again(pods, capfd):
    killed = []

    def kill(pod, folder):
        if not killed and all((folder / f"started-{i}").exists() for i in range(2)):
            killed.extend(p.pid for p in pod.processes)
            pod.processes[1].kill()

    status, starts = pods("stay_once", 2, tick=kill)
    assert status == 0 and starts == ["0 of 2"] * 2 + ["1 of 2"] * 2
    assert not any(psutil.pid_exists(pid) for pid in killed)
    output = capfd.readouterr().out
    assert "process 1: killed by SIGKILL; 1 still running were ended" in output


def test_an_abort_starts_again(pods):
    assert pods("abort_once", 2)[0] == 0


def test_a_users_error_ends_the_others_and_never_starts_again(pods, capfd):
    status, starts = pods("find_a_users_error", 2)
    assert status == 1 and "1 of 2" in starts and len(starts) <= 2
    output = capfd.readouterr()
    assert "[1] error: config.seed is wrong" in output.out
    assert output.err.startswith("error: config.seed is wrong [no restart: process 1: exit")


def test_restarts_without_progress_are_bounded(pods, capfd):
    status, starts = pods("be_preempted", 1)
    assert status == 75 and len(starts) == 3
    assert "giving up, 3 starts without a newer checkpoint" in capfd.readouterr().out


def test_progress_renews_the_patience(pods, tmp_path):
    status, starts = pods("make_four_steps", 1, progress=lambda: len(list(tmp_path.glob("step-*"))))
    assert status == 75 and len(starts) == 4 + 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_passed_on_and_the_launcher_leaves(pods, number, capfd):
    sent = []

    def tell(pod, folder):
        if not sent and all((folder / f"listening-{i}").exists() for i in range(2)):
            sent.append(True)
            os.kill(os.getpid(), number)

    assert pods("save_on_sigterm", 2, tick=tell) == (75, ["0 of 2", "1 of 2"])
    output = capfd.readouterr().out
    assert f"passing {number.name} on" in output
    assert "leaving as asked: process 0, 1: exit status 75" in output


def test_a_process_that_does_not_leave_in_time_is_ended(pods):
    pids = []

    def tell(pod, folder):
        if not pids and (folder / "deaf").exists():
            pids.append(pod.processes[0].pid)
            os.kill(os.getpid(), signal.SIGTERM)

    assert pods("be_deaf", 1, tick=tell, grace=0.2)[0] == 75
    assert not psutil.pid_exists(pids[0])


# (signal that follows a SIGTERM, whether the launcher then ends its slow pod at once).
@pytest.mark.parametrize(
    ("second", "at_once"), [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGHUP, False)]
)
def test_only_ctrl_c_after_another_signal_ends_the_pod_at_once(pods, second, at_once):
    behaviour = "save_in_ten_minutes" if at_once else "save_in_a_second"
    sent = []

    def tell(pod, folder):
        if not (folder / "deaf").exists():
            return
        if not sent:
            sent.append(signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        elif not (folder / "signalled").exists():
            os.kill(os.getpid(), second)
            (folder / "signalled").touch()

    began = time.monotonic()
    assert pods(behaviour, 1, tick=tell, grace=500.0)[0] == 75
    assert time.monotonic() - began < 60


def test_a_launcher_continues_when_nobody_reads_its_output(tmp_path):
    """The terminal was closed, `| head` has read enough, or there is no standard output at all."""
    for number, redirection in enumerate(("| true", ">&-", ">&- 2>&-", "2>&1 | true")):
        done = tmp_path / f"done-{number}"
        command = f"{sys.executable} -m tests.launch.talking {done} {redirection}"
        subprocess.run(
            ["bash", "-c", command], env=environment(), cwd=ROOT, check=True, timeout=120
        )
        assert done.read_text() == "0"


def test_no_process_outlives_a_launcher_that_is_killed(tmp_path):
    command = [sys.executable, "-m", "tests.launch.launching", str(tmp_path)]
    with psutil.Popen(command, cwd=ROOT, stdout=-1, text=True) as launcher:
        pids = [int(word) for word in launcher.stdout.readline().split()]
        children = [psutil.Process(pid) for pid in pids]
        assert len(children) == 2
        launcher.kill()
        gone, alive = psutil.wait_procs(children, timeout=30)
    assert len(gone) == 2 and not alive


def test_a_stopped_process_is_ended_too(tmp_path):
    with Pod(member(tmp_path, "stay"), 2) as pod:
        pod.processes[0].send_signal(signal.SIGSTOP)
        pids = [p.pid for p in pod.processes]
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_output_without_an_end_of_line_is_passed_on(tmp_path, capfd):
    with Pod(member(tmp_path, "say_without_an_end"), 1) as pod:
        deadline = time.monotonic() + 60
        while not pod.ended() and time.monotonic() < deadline:
            pod.listen(1.0)
        assert pod.ended()[0].error == "error: cut"
    assert capfd.readouterr().out == "[0] error: cut\n"
