"""The TPU script, with a stand-in for gcloud that runs the workers' commands here."""

import os
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.launch.scripts.commands import LAUNCH, executable, lines
from tests.programs import ROOT

pytestmark = pytest.mark.medium

GCLOUD = """#!/usr/bin/env bash
# Stands for a slice of two workers, whose home folders lie beside this file. Each line of
# "trouble" makes one call that contains its first word fail: CALL STATUS STATE MESSAGE.
here={folder}
echo "$*" >> "$here/calls"
while read -r call status state words; do
  if [[ "$*" == *"$call"* ]]; then
    sed -i "0,/^$call /{{/^$call /d}}" "$here/trouble"
    if [ "$state" != - ]; then echo "$state" > "$here/state"; fi
    echo "$words" >&2
    exit "$status"
  fi
done < <(cat "$here/trouble" 2>/dev/null)
case "$*" in
  *"queued-resources describe"*) cat "$here/state" 2>/dev/null ;;
  *"queued-resources create"*) echo ACTIVE > "$here/state" ;;
  *"queued-resources delete"*) rm "$here/state" ;;
  *"tpu-vm scp"*) for w in 0 1; do mkdir -p "$here/$w"; cp "$5" "$here/$w/${{6#*:}}"; done ;;
  *"tpu-vm ssh"*)
    for argument in "$@"; do
      case "$argument" in --command=*) command="${{argument#--command=}}" ;; esac
    done
    if [[ "$command" == *launch.local* && -e "$here/preempt" ]]; then
      rm "$here/preempt"
      echo SUSPENDED > "$here/state"
      exit 255
    fi
    for w in 0 1; do (cd "$here/$w" && HOME="$here/$w" bash -c "$command") || exit; done ;;
esac
"""


@pytest.fixture
def slice_of_two(tmp_path):
    """A function that runs the TPU script with the stand-in for gcloud."""
    executable(tmp_path / "gcloud", GCLOUD.format(folder=tmp_path))
    repository = tmp_path / "repository"
    repository.mkdir()
    for name in ("experiments", "fsdit"):
        shutil.copytree(ROOT / name, repository / name)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(repository)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "."]):
        subprocess.run([*git, *command], check=True)

    def run(install, *flags):
        environment = {
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "PYTHONPATH": "",
            "ZONE": "us-west4-a",
            "ACCELERATOR_TYPE": "v5litepod-8",
            "POLL_SECONDS": "0",
            "MAX_FAILURES": "3",
            "INSTALL": f"mkdir -p .venv/bin; {install}",
        }
        return subprocess.run(
            ["bash", LAUNCH / "tpu_vm.sh", "job", *flags],
            env=environment,
            cwd=repository,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


def worker_python(line: str) -> str:
    """Return a shell command that installs a .venv/bin/python of one line."""
    text = shlex.quote(f"#!/bin/sh\n{line}\n")
    return f"printf %s {text} > .venv/bin/python; chmod +x .venv/bin/python"


def test_a_preempted_slice_is_requested_again(slice_of_two, tmp_path):
    (tmp_path / "preempt").touch()
    flags = ("--config=x.py", "--workdir=/bucket/a run")
    done = slice_of_two(worker_python('for a; do echo "$a"; done > $HOME/args'), *flags)
    assert done.returncode == 0, done.stderr
    for worker in "01":
        expected = ["-m", "fsdit.launch.local", "--", *flags]
        assert lines(tmp_path / worker / "args") == expected
    calls = lines(tmp_path / "calls")
    changes = [call.split()[3] for call in calls if "queued-resources" in call]
    changes = [change for change in changes if change != "describe"]
    assert changes == ["create", "delete", "create", "delete"]
    create = next(call for call in calls if " create " in call)
    assert "--spot" in create and "--accelerator-type=v5litepod-8" in create
    assert all("--worker=all" in call for call in calls if " tpu-vm " in call)


BUSY = "ERROR: (gcloud.compute.tpus) UNAVAILABLE: HTTP 503"
FINE = "exit 0"
# (failures of gcloud, the workers' python, exit status of the script, number of trainings).
TROUBLES = {
    "the slice goes during scp": ([f"scp 1 SUSPENDED {BUSY}"], FINE, 0, 1),
    "the slice goes during ssh": ([f"launch.local 1 SUSPENDED {BUSY}"], FINE, 0, 2),
    "scp fails": ([f"scp 1 - {BUSY}"] * 3, FINE, 0, 1),
    "ssh fails": ([f"launch.local 1 - {BUSY}"] * 2, FINE, 0, 3),
    "describe fails": ([f"describe 1 - {BUSY}"] * 3, FINE, 0, 1),
    "describe fails always": ([f"describe 1 - {BUSY}"] * 9, FINE, 1, 0),
    "no such request": (["describe 1 - ERROR: NOT_FOUND: it"], FINE, 0, 1),
    "create fails": ([f"create 1 - {BUSY}"] * 3, FINE, 0, 1),
    "create fails always": ([f"create 1 - {BUSY}"] * 9, FINE, 1, 0),
    "delete fails": ([f"delete 1 - {BUSY}"], FINE, 0, 1),
    "out of patience": ([], "exit 75", 75, 4),
    "killed": ([], "exit 137", 137, 4),
    "a user's error": ([], "exit 1", 1, 1),
    "a user's error of one of two": ([], '[ "$HOME" = "${HOME%/1}" ]', 1, 1),
}


@pytest.mark.medium
@pytest.mark.parametrize(
    ("troubles", "python", "status", "trainings"), TROUBLES.values(), ids=TROUBLES.keys()
)
def test_the_script_exits_as_training_did_despite_failures_of_gcloud(
    slice_of_two, tmp_path, troubles, python, status, trainings
):
    (tmp_path / "trouble").write_text("".join(f"{line}\n" for line in troubles))
    done = slice_of_two(worker_python(python), "--config=x.py", "--workdir=w")
    assert done.returncode == status, done.stderr
    calls = lines(tmp_path / "calls")
    assert sum("launch.local" in call for call in calls) == trainings, done.stderr
    # The script keeps the slice, which costs money, only if training began and did not finish.
    assert (tmp_path / "state").exists() == (status not in (0,) and trainings > 0)


def test_a_users_error_on_a_slice_stops_the_script(slice_of_two, tmp_path):
    python = worker_python(f'exec {sys.executable} "$@"')
    done = slice_of_two(python, "--config=no.py", "--workdir=w")
    assert done.returncode == 1, done.stderr
    assert "error: " in done.stderr and "no.py" in done.stderr
    assert (tmp_path / "state").read_text() == "ACTIVE\n"
