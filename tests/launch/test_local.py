"""The local launcher running the training program itself."""

import dataclasses
import re
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest

from fsdit.launch.supervise import newest_checkpoint
from tests.conftest import experiment_file
from tests.processes import UNHURRIED, finish, losses, wait_for_step
from tests.programs import ROOT, environment, run_module

pytestmark = pytest.mark.medium

STEPS = 40


@pytest.fixture
def experiment(tmp_path, small_config):
    config = dataclasses.replace(
        small_config,
        train=dataclasses.replace(small_config.train, num_steps=STEPS, eval_interval=1000),
        checkpoint=dataclasses.replace(small_config.checkpoint, interval=7),
    )
    return experiment_file(tmp_path / "experiment.py", config)


def launch(experiment, workdir, *flags, count=2):
    command = [sys.executable, "-m", "fsdit.launch.local", f"--num_processes={count}"]
    return subprocess.Popen(
        [*command, "--", f"--config={experiment}", f"--workdir={workdir}", *flags],
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.large
def test_a_pod_goes_on_after_a_kill_and_after_a_preemption(tmp_path, experiment, undisturbed):
    workdir = tmp_path / "run"
    launcher = launch(experiment, workdir, UNHURRIED)
    wait_for_step(launcher, workdir, 10)
    children = psutil.Process(launcher.pid).children()
    next(c for c in children if "--process_id=1" in c.cmdline()).kill()
    wait_for_step(launcher, workdir, max(losses(workdir)) + 3)
    launcher.send_signal(signal.SIGINT)  # Ctrl-C
    status, output = finish(launcher)
    assert status == 75, output
    assert re.search(r"launcher: starting again in 0 s, from step \d+: process 1: killed", output)
    assert re.search(r"^\[0\] resuming .* after step", output, re.MULTILINE)
    assert "leaving as asked: process 0, 1: exit status 75" in output
    stopped = int(re.search(r"preempted at step (\d+)", output)[1])
    assert newest_checkpoint(workdir) == stopped

    status, output = finish(launch(experiment, workdir, UNHURRIED))
    assert status == 0, output
    assert f"after step {stopped}" in output
    actual, expected = losses(workdir), losses(undisturbed(experiment))
    assert actual.keys() == expected.keys()
    np.testing.assert_allclose(list(actual.values()), list(expected.values()), rtol=1e-4)


def test_a_users_error_gives_one_line_and_no_restart(tmp_path):
    flags = ("--num_processes=2", "--", "--config=none.py", f"--workdir={tmp_path}/run")
    result = run_module("fsdit.launch.local", *flags)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and "none.py" in line and "no restart" in line
    assert "starting again" not in result.stdout
    assert re.search(r"^\[[01]\] error: .*none.py", result.stdout, re.MULTILINE)


WRONG = {
    "no workdir": (["--", "--config=x.py"], "--workdir"),
    "no dashes": (["--config=x.py", "--workdir=w"], "config"),
    "no process": (["--num_processes=0", "--", "--workdir=w"], "num_processes"),
}


@pytest.mark.parametrize(("flags", "word"), WRONG.values(), ids=WRONG.keys())
def test_wrong_flags_of_the_launcher_give_one_line(flags, word):
    result = run_module("fsdit.launch.local", *flags)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and word in line
