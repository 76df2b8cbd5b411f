"""The shell scripts pass their linters."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.scripts.commands import LAUNCH

pytestmark = pytest.mark.medium

SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_pass_the_linters(script):
    for linter in (["bash", "-n"], [Path(sys.executable).with_name("shellcheck")]):
        done = subprocess.run([*linter, script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_scripts_are_found():
    assert [script.name for script in SCRIPTS] == ["slurm.sbatch", "tpu_vm.sh"]
