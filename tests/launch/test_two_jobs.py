"""Two jobs on one workdir: one trains, the other waits for it and goes on where it ended."""

import dataclasses
import re
import signal
import subprocess
import sys

import psutil
import pytest

from tests.conftest import experiment_file
from tests.processes import rows, wait_for_step, wait_for_text
from tests.programs import ROOT, environment

pytestmark = pytest.mark.large
STEPS = 120


@pytest.fixture(params=["disk", "bucket"])
def workdir(request, tmp_path):
    if request.param == "disk":
        return tmp_path / "run"
    return f"{request.getfixturevalue('bucket')}/run"


def launch(experiment, workdir, log):
    command = [sys.executable, "-m", "fsdit.launch.local", "--num_processes=1", "--"]
    with log.open("w") as output:
        return subprocess.Popen(
            [*command, f"--config={experiment}", f"--workdir={workdir}"],
            env=environment(),
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def test_the_second_job_waits_and_takes_over_from_a_killed_one(tmp_path, small_config, workdir):
    config = dataclasses.replace(
        small_config,
        train=dataclasses.replace(small_config.train, num_steps=STEPS, eval_interval=1000),
        checkpoint=dataclasses.replace(small_config.checkpoint, interval=4),
    )
    experiment = experiment_file(tmp_path / "experiment.py", config)
    first = launch(experiment, workdir, tmp_path / "first.log")
    wait_for_step(first, workdir, 3)
    trainer = psutil.Process(first.pid).children()[0]
    trainer.send_signal(signal.SIGSTOP)  # it trains no further until the second job has come
    second = launch(experiment, workdir, tmp_path / "second.log")
    wait_for_text(second, tmp_path / "second.log", "the workdir is in use, trying again in 30 s")
    trainer.send_signal(signal.SIGCONT)
    wait_for_step(first, workdir, 12)
    first.kill()  # its pod dies with it
    first.wait()

    assert second.wait(300) == 0
    output = (tmp_path / "second.log").read_text()
    assert re.search(r"is in use by process \d+ on \S+ since \d{4}-\d\d-\d\d", output)
    assert re.search(r"resuming .* after step \d+", output)
    assert [row["step"] for row in rows(workdir)] == list(range(1, STEPS + 1))
