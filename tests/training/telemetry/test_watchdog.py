"""The watchdog of processes that are really stuck, stopped or slow."""

import os
import re
import signal
import time

import pytest

from tests.conftest import experiment_file
from tests.processes import finish, rows, start, start_pod, wait_for_step
from tests.programs import start_program

pytestmark = pytest.mark.medium


def stuck(path, stop_seconds, part="step", **choices):
    return start_program(
        "tests.training.telemetry.stuck_process", path, stop_seconds, part, **choices
    )


def wait_for(condition, process, timeout=120):
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_process_stuck_in_c_code_is_reported_and_leaves_to_be_started_again(tmp_path):
    path = tmp_path / "stacks.txt"
    status, output = finish(stuck(path, 2))
    assert status == 75, output
    reported = [line for line in output.splitlines() if line.startswith("watchdog: ")]
    assert len(reported) == 2, output  # one report of the stall and one on leaving
    assert re.match(
        r"watchdog: step 20 has taken (0\.[4-9]|1\.\d) s, its neighbours take 0\.0", reported[0]
    )
    assert reported[1].endswith("leaving with status 75")
    stacks = path.read_text()
    assert "in waiting_for_a_device" in stacks
    assert stacks.count("Current thread") == 2 and "step 20 has taken" in stacks
    assert (tmp_path / "left").exists()


def test_time_outside_of_steps_has_a_limit_of_ten_times_min_seconds(tmp_path):
    path = tmp_path / "stacks.txt"
    status, output = finish(stuck(path, 6, "evaluation"))
    assert status == 75
    reported = [line for line in output.splitlines() if line.startswith("watchdog: ")]
    assert len(reported) == 2, output
    after = r"watchdog: step 20 is not over after (\d\.\d) s, the last of them in: evaluation; "
    assert 4 <= float(re.match(after, reported[0])[1]) < 6
    assert re.match(after, reported[1]) and reported[1].endswith("leaving with status 75")
    assert path.read_text().count("in waiting_for_a_device") == 2


@pytest.mark.large
def test_a_stuck_process_leaves_even_if_writing_its_report_hangs(tmp_path):
    # Opening a pipe that nobody reads hangs, as a lost network file system does.
    path = tmp_path / "stacks.txt"
    os.mkfifo(path)
    process = stuck(path, 1)
    assert process.wait(timeout=120) == 75
    process.communicate()


def test_a_stopped_process_does_not_blame_its_step(tmp_path):
    path = tmp_path / "stacks.txt"
    process = stuck(path, 0, "evaluation", real=True)  # it is alive, and not in a step
    assert "stuck" in process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    while time.monotonic() < stopped + 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGCONT)
    line = process.stdout.readline()
    process.kill()
    process.communicate()
    assert re.match(r"watchdog: this process was stopped for [12]\.\d s, in step \d+", line), line
    assert not path.exists()


LIMITS = ("--config.watchdog.min_seconds=4", "--config.watchdog.factor=10")


@pytest.fixture
def experiment(tmp_path, small_config):
    return experiment_file(tmp_path / "experiment.py", small_config)


@pytest.mark.large
def test_a_pod_with_a_stopped_process_says_who_waits_and_who_was_stopped(tmp_path, experiment):
    workdir = tmp_path / "run"
    flags = ("--config.train.num_steps=100000", "--config.train.eval_interval=100000", *LIMITS)
    flags += ("--config.checkpoint.interval=100000",)  # no save interrupts the steps
    pod = start_pod(2, experiment, workdir, *flags)
    try:
        wait_for_step(pod[0], workdir, 20)
        pod[1].send_signal(signal.SIGSTOP)
        wait_for((workdir / "watchdog-0.txt").exists, pod[0])
        before = rows(workdir)[-1]["step"]
        pod[1].send_signal(signal.SIGCONT)
        wait_for_step(pod[0], workdir, before + 20)  # the pod continues
    finally:
        outputs = []
        for process in pod:
            process.send_signal(signal.SIGCONT)
            process.kill()
            outputs.append(process.communicate()[0])
    reported = [[s for s in o.splitlines() if s.startswith("watchdog: ")] for o in outputs]
    assert re.match(r"watchdog: step \d+ has taken [\d.]+ s, its neighbours take", reported[0][0])
    assert re.match(r"watchdog: step \d+ is over, after [\d.]+ s", reported[0][1])
    stacks = (workdir / "watchdog-0.txt").read_text()
    assert "loop.py" in stacks and "in train" in stacks
    assert any("this process was stopped for" in line for line in reported[1])
    assert not (workdir / "watchdog-1.txt").exists()


@pytest.mark.large
def test_a_run_whose_input_is_stuck_is_reported_stopped_and_resumed(tmp_path, experiment):
    workdir = tmp_path / "run"
    flags = ("--config.train.num_steps=30", "--config.train.eval_interval=1000", *LIMITS)
    stopping = ("--config.watchdog.stop_seconds=60",)
    stuck = start(
        experiment, workdir, *flags, *stopping, module="tests.training.telemetry.stuck_run"
    )
    status, output = finish(stuck)
    assert status == 75, output
    last = rows(workdir)[-1]["step"]
    assert 10 < last < 30
    stacks = (workdir / "watchdog-0.txt").read_text()
    assert "stuck_run.py" in stacks and "the_disk_is_gone" in stacks
    assert "leaving with status 75" in output
    status, output = finish(start(experiment, workdir, *flags))
    assert status == 0, output
    assert rows(workdir)[-1]["step"] == 30
    # The time of the stall counts as waiting for data.
    assert rows(workdir)[-1]["goodput/data_wait"] * rows(workdir)[-1]["goodput/wall_seconds"] > 20
