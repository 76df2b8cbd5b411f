"""The Slurm script, with shell scripts in place of srun and scontrol."""

import os
import signal
import subprocess
import sys

import pytest

from tests.launch.scripts.commands import LAUNCH, executable, lines, wait_for
from tests.programs import ROOT

pytestmark = pytest.mark.medium


@pytest.fixture
def slurm(tmp_path):
    """A function that starts the batch script; its srun exits with the statuses given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    executable(
        folder / "srun",
        f"""#!/usr/bin/env bash
echo "$*" >> {tmp_path}/srun
n=$(wc -l < {tmp_path}/srun)
action=$(sed -n "${{n}}p" {tmp_path}/actions)
case "$action" in
  wait)
    trap 'exit 75' TERM
    touch {tmp_path}/training
    while true; do sleep 0.05; done ;;
  error)
    echo "error: config.seed is wrong"
    exit 134 ;;
  *) exit "$action" ;;
esac
""",
    )
    executable(folder / "scontrol", f'#!/usr/bin/env bash\necho "$*" >> {tmp_path}/scontrol\n')
    environment = {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "SLURM_JOB_ID": "42",
    }

    def start(*actions):
        (tmp_path / "actions").write_text("\n".join(actions) + "\n")
        command = ["bash", LAUNCH / "slurm.sbatch", "--config=x.py", f"--workdir={tmp_path}/run"]
        return subprocess.Popen(command, env=environment, cwd=ROOT)

    return start


def test_slurm_restarts_inside_the_allocation(slurm, tmp_path):
    assert slurm("75", "137", "0").wait(120) == 0
    started = lines(tmp_path / "srun")
    assert len(started) == 3
    assert started[0].startswith(f"--kill-on-bad-exit=0 {sys.executable} -m fsdit.main --config=x")
    assert not lines(tmp_path / "scontrol")


def test_slurm_queues_the_job_again_before_its_time_is_over(slurm, tmp_path):
    job = slurm("wait", "0")
    wait_for(tmp_path / "training")
    job.send_signal(signal.SIGTERM)
    assert job.wait(120) == 75
    assert lines(tmp_path / "scontrol") == ["requeue 42"]
    assert len(lines(tmp_path / "srun")) == 1
    # Slurm then starts the same script again with the same flags.
    again = slurm("0", "0")
    assert again.wait(120) == 0
    assert lines(tmp_path / "scontrol") == ["requeue 42"]


def test_slurm_stops_at_a_users_error(slurm, tmp_path):
    assert slurm("error", "0").wait(120) == 1
    assert len(lines(tmp_path / "srun")) == 1 and not lines(tmp_path / "scontrol")
