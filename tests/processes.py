"""Runs of the training program as processes: started, watched, ended, read back."""

import dataclasses
import json
import socket
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from fsdit import storage
from fsdit.config import Config
from tests.conftest import experiment_file
from tests.programs import Fork, start_program

# A run that saves at each step is too slow to end before it notices a preemption: JAX looks
# for one once a second.
UNHURRIED = "--config.checkpoint.interval=1"
STEPS = 40


def long_run(folder: Path, config: Config) -> Path:
    """Writes an experiment of STEPS steps: it logs each, saves every 7th, evaluates at the end."""
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, batch_size=8),
        train=dataclasses.replace(
            config.train, num_steps=STEPS, eval_interval=1000, eval_batches=2
        ),
        checkpoint=dataclasses.replace(config.checkpoint, interval=7),
    )
    return experiment_file(folder / "experiment.py", config)


def start(experiment, workdir, *flags, devices=1, module="fsdit.main"):
    own = (f"--config={experiment}", f"--workdir={workdir}")
    return start_program(module, *own, *flags, devices=devices)


def start_pod(count, experiment, workdir, *flags, devices=1, module="fsdit.main"):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    return [
        start(
            experiment,
            workdir,
            f"--coordinator_address={address}",
            f"--num_processes={count}",
            f"--process_id={i}",
            *flags,
            devices=devices,
            module=module,
        )
        for i in range(count)
    ]


def finish(process, timeout=600):
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as error:
        if isinstance(process, Fork):
            raise AssertionError(f"runs after {timeout} s:\n{process.traces()}") from error
        raise
    return process.returncode, output


def pod_losses(count, experiment, workdir, step, *flags):
    """Losses of a pod up to `step`. The pod is then killed, since its normal end takes minutes."""
    pod = start_pod(count, experiment, workdir, *flags)
    try:
        wait_for_step(pod[0], workdir, step)
    finally:
        for process in pod:
            process.kill()
            process.communicate()
    return {s: loss for s, loss in losses(workdir).items() if s <= step}


def files_of(workdir):
    """The local folder with the logs of a run, also of one in a bucket while it runs here."""
    if storage.is_remote(workdir):
        return storage.folder_of(str(workdir), "runs") / "0" / Path(str(workdir)).name
    return Path(workdir)


def rows(workdir):
    path = files_of(workdir) / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def losses(workdir):
    return {row["step"]: row["train/loss"] for row in rows(workdir)}


def wait_for_step(process, workdir, step, timeout=600):
    """Returns as soon as the log of the running process has this step."""
    deadline = time.monotonic() + timeout
    while max([0, *losses(workdir)]) < step:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"step {step} was not reached"
        time.sleep(0.02)


def wait_for_start(process, workdir, count, timeout=600):
    """Returns once the run has started `count` times, and so compiles its first step."""
    path, deadline = files_of(workdir) / "goodput.jsonl", time.monotonic() + timeout
    while not path.exists() or path.read_text().count('"event": "start"') < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the run does not start"
        time.sleep(0.02)


def final_state(workdir, step):
    folder = Path(workdir) / "checkpoints" / str(step) / "state"
    handler = ocp.StandardCheckpointHandler()
    state = handler.restore(folder, args=ocp.args.StandardRestore())
    return jax.tree.map(np.asarray, state)


def wait_for_text(process, log, text, timeout=300):
    """Returns as soon as the file that a running process writes to holds the text."""
    deadline = time.monotonic() + timeout
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"{text!r} was not printed: {log.read_text()}"
        time.sleep(0.1)
