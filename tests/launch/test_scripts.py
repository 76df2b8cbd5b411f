"""The scripts that need a cluster, with its commands replaced by small real programs."""

import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.programs import ROOT

pytestmark = pytest.mark.medium

LAUNCH = ROOT / "experiments" / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_are_sound(script):
    for linter in (["bash", "-n"], [Path(sys.executable).with_name("shellcheck")]):
        done = subprocess.run([*linter, script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_scripts():
    assert [script.name for script in SCRIPTS] == ["slurm.sbatch", "tpu_vm.sh"]


# Of JobSet's v1alpha2 definition, what its file here uses; no package carries the whole.
RULE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "action"],
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
        "action": {"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
        "onJobFailureReasons": {
            "type": "array",
            "items": {
                "enum": [
                    *("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes"),
                    *("MaxFailedIndexesExceeded", "PodFailurePolicy"),
                ]
            },
        },
        "targetReplicatedJobs": {"type": "array", "items": {"type": "string"}},
    },
}
JOBSET = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
        "kind": {"const": "JobSet"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["replicatedJobs"],
            "properties": {
                "failurePolicy": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "maxRestarts": {"type": "integer", "minimum": 0},
                        "restartStrategy": {"enum": ["Recreate", "BlockingRecreate"]},
                        "rules": {"type": "array", "items": RULE},
                    },
                },
                "replicatedJobs": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["name", "template"],
                        "properties": {
                            "name": {"type": "string"},
                            "replicas": {"type": "integer", "minimum": 1},
                            "template": {"type": "object", "required": ["spec"]},
                        },
                    },
                },
            },
        },
    },
}


def job_of(jobset: dict) -> dict:
    """Its Job, with the one default that a schema cannot fill in."""
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"}}
    return {**job, **jobset["spec"]["replicatedJobs"][0]["template"]}


@pytest.fixture
def jobset():
    return yaml.safe_load((LAUNCH / "jobset.yaml").read_text())


def test_the_jobset_is_valid(jobset):
    jsonschema.validate(jobset, JOBSET)
    kubernetes_validate.validate(job_of(jobset), "1.33", strict=True)


def test_a_wrong_jobset_is_found(jobset):
    job_of(jobset)["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["operator"] = ["In"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job_of(jobset), "1.33", strict=True)
    jobset["spec"]["failurePolicy"]["maxRestart"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(jobset, JOBSET)


def test_the_jobset_restarts_on_75_and_not_on_a_users_error(jobset):
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (rule,) = spec["podFailurePolicy"]["rules"]
    container = spec["template"]["spec"]["containers"][0]
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [1])
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # or the policy is refused
    assert spec["backoffLimit"] == 0
    (failing,) = jobset["spec"]["failurePolicy"]["rules"]
    assert (failing["action"], failing["onJobFailureReasons"]) == (
        "FailJobSet",
        ["PodFailurePolicy"],
    )
    grace = int(container["args"][0].partition("=")[2])
    assert grace < spec["template"]["spec"]["terminationGracePeriodSeconds"]


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def slurm(tmp_path):
    """Starts the batch script with an srun that ends with the statuses it is given."""
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


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


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
    # Its second life: the same script with the same flags.
    again = slurm("0", "0")
    assert again.wait(120) == 0
    assert lines(tmp_path / "scontrol") == ["requeue 42"]


def test_slurm_stops_at_a_users_error(slurm, tmp_path):
    assert slurm("error", "0").wait(120) == 1
    assert len(lines(tmp_path / "srun")) == 1 and not lines(tmp_path / "scontrol")


GCLOUD = """#!/usr/bin/env bash
# A slice of two workers, whose home folders lie beside this file. Each line of "trouble" is
# for one call that has its first word: the status it ends with, a state, what it says.
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
    """Runs the TPU script with a gcloud that runs the workers' commands here."""
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
    """A command that installs a .venv/bin/python of one line."""
    text = shlex.quote(f"#!/bin/sh\n{line}\n")
    return f"printf %s {text} > .venv/bin/python; chmod +x .venv/bin/python"


def test_a_slice_that_is_taken_away_is_asked_for_again(slice_of_two, tmp_path):
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
# What happens to gcloud -> what workers run, the script's status, how often it trains, states.
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
def test_the_script_ends_as_training_did_whatever_gcloud_goes_through(
    slice_of_two, tmp_path, troubles, python, status, trainings
):
    (tmp_path / "trouble").write_text("".join(f"{line}\n" for line in troubles))
    done = slice_of_two(worker_python(python), "--config=x.py", "--workdir=w")
    assert done.returncode == status, done.stderr
    calls = lines(tmp_path / "calls")
    assert sum("launch.local" in call for call in calls) == trainings, done.stderr
    # A slice that costs money is kept only for an error, and where patience is at its end.
    assert (tmp_path / "state").exists() == (status not in (0,) and trainings > 0)


def test_a_users_error_on_a_slice_stops_the_script(slice_of_two, tmp_path):
    python = worker_python(f'exec {sys.executable} "$@"')
    done = slice_of_two(python, "--config=no.py", "--workdir=w")
    assert done.returncode == 1, done.stderr
    assert "error: " in done.stderr and "no.py" in done.stderr
    assert (tmp_path / "state").read_text() == "ACTIVE\n"
