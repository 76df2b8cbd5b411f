"""Runs that are killed, preempted or moved to other processes resume from their checkpoint."""

import dataclasses
import json
import re
import shutil
import signal

import jax
import numpy as np
import pytest

import fsdit
from fsdit.training.checkpoints import listing
from fsdit.training.objective import TERMS
from tests.conftest import experiment_file, one_block, small_disk_at
from tests.processes import (
    STEPS,
    UNHURRIED,
    final_state,
    finish,
    long_run,
    losses,
    pod_losses,
    rows,
    start,
    start_pod,
    wait_for_start,
    wait_for_step,
)
from tests.programs import one_line_error, run_module
from tests.training.objectives import ALL

pytestmark = pytest.mark.medium


@pytest.fixture
def experiment(tmp_path, small_config):
    return long_run(tmp_path, one_block(small_config))


def test_killed_and_preempted_runs_end_bitwise_as_if_never_stopped(
    tmp_path, experiment, undisturbed
):
    workdir = tmp_path / "run"
    process = start(experiment, workdir)
    wait_for_step(process, workdir, np.random.default_rng(0).integers(9, 14))
    process.send_signal(signal.SIGKILL)
    assert finish(process)[0] == -signal.SIGKILL

    process = start(experiment, workdir, UNHURRIED)
    wait_for_step(process, workdir, max(losses(workdir)) + 2)
    process.send_signal(signal.SIGTERM)
    status, output = finish(process)
    assert status == 75, output
    stopped = int(re.search(r"preempted at step (\d+)", output)[1])
    assert (workdir / "checkpoints" / str(stopped) / "state").is_dir()
    assert max(losses(workdir)) == stopped

    status, output = finish(start(experiment, workdir))
    assert status == 0, output
    assert f"after step {stopped}" in output

    reference = undisturbed(experiment)
    assert [r["step"] for r in rows(workdir)] == list(range(1, STEPS + 1))
    same = [k for k in rows(reference)[0] if k.startswith("train/")]
    assert len(same) > 5
    for row, expected in zip(rows(workdir), rows(reference), strict=True):
        assert {k: row.get(k) for k in same} == {k: expected.get(k) for k in same}
    assert losses(workdir) == losses(reference)
    jax.tree.map(
        np.testing.assert_array_equal, final_state(workdir, STEPS), final_state(reference, STEPS)
    )


@pytest.mark.large
def test_a_preempted_run_with_every_term_ends_bitwise_and_exports_the_model_alone(
    tmp_path, small_config, undisturbed
):
    train = dataclasses.replace(small_config.train, **ALL)
    experiment = long_run(tmp_path, dataclasses.replace(small_config, train=train))
    workdir, exported = tmp_path / "run", tmp_path / "exported"
    process = start(experiment, workdir, UNHURRIED)
    wait_for_step(process, workdir, 9)
    process.send_signal(signal.SIGTERM)
    status, output = finish(process)
    assert status == 75, output
    status, output = finish(start(experiment, workdir))
    assert status == 0, output

    reference = undisturbed(experiment)
    names = ("train/loss", *(f"train/{term}" for term in TERMS))
    assert [[r[n] for n in names] for r in rows(workdir)] == [
        [r[n] for n in names] for r in rows(reference)
    ]
    jax.tree.map(
        np.testing.assert_array_equal, final_state(workdir, STEPS), final_state(reference, STEPS)
    )
    done = run_module("fsdit.export", f"--workdir={workdir}", f"--output={exported}")
    assert done.returncode == 0, done.stderr
    model = fsdit.load(exported)
    assert "blocks" in model.params and "projection" not in model.params


def test_ctrl_c_saves_and_a_resumed_run_heeds_a_signal_before_its_first_step(tmp_path, experiment):
    workdir, endless = tmp_path / "run", "--config.train.num_steps=100000"
    process = start(experiment, workdir, endless)
    wait_for_step(process, workdir, 9)
    process.send_signal(signal.SIGINT)
    status, output = finish(process, timeout=120)
    assert status == 75, output
    stopped = int(re.search(r"preempted at step (\d+)", output)[1])
    assert max(losses(workdir)) == stopped == max(listing.steps(workdir))

    # A single process leaves at once. A terminal that is closed sends SIGHUP.
    process = start(experiment, workdir, endless)
    wait_for_start(process, workdir, 2)
    process.send_signal(signal.SIGHUP)
    status, output = finish(process, timeout=120)
    assert status == 75 and f"after step {stopped}" in output, output
    kept = max(listing.steps(workdir))
    assert kept == max(losses(workdir)) >= stopped


@pytest.mark.large
def test_a_pod_heeds_a_signal_before_its_first_step(tmp_path, experiment):
    """All processes leave at the same step, though only one of them gets the signal."""
    workdir, endless = tmp_path / "run", "--config.train.num_steps=100000"
    status, output = finish(start(experiment, workdir, "--config.train.num_steps=9"))
    assert status == 0, output
    kept = max(listing.steps(workdir))
    pod = start_pod(2, experiment, workdir, endless)
    wait_for_start(pod[0], workdir, 2)
    pod[1].send_signal(signal.SIGTERM)
    results = [finish(process, timeout=120) for process in pod]
    assert [status for status, _ in results] == [75, 75], results
    left = {re.search(r"preempted (?:before|at) step (\d+)", output)[1] for _, output in results}
    assert len(left) == 1 and int(left.pop()) <= kept + 3
    assert max(listing.steps(workdir)) == max(losses(workdir)) >= kept


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.large)])
@pytest.mark.usefixtures("all_cores")
def test_losses_do_not_depend_on_the_number_of_processes(tmp_path, experiment, undisturbed, count):
    actual, expected = pod_losses(count, experiment, tmp_path / "run", 12), undisturbed(experiment)
    expected = {step: loss for step, loss in losses(expected).items() if step <= 12}
    assert actual.keys() == expected.keys()
    np.testing.assert_allclose(actual[1], expected[1], rtol=1e-6)
    np.testing.assert_allclose(list(actual.values()), list(expected.values()), rtol=1e-4)


@pytest.mark.large
@pytest.mark.usefixtures("all_cores")
def test_a_run_moves_from_two_processes_to_one_to_four(tmp_path, experiment, undisturbed):
    workdir = tmp_path / "run"
    pod = start_pod(2, experiment, workdir, UNHURRIED)
    wait_for_step(pod[0], workdir, 4)
    pod[1].send_signal(signal.SIGTERM)  # one process gets the signal, both leave
    results = [finish(p) for p in pod]
    assert [status for status, _ in results] == [75, 75], results
    stopped = {re.search(r"preempted at step (\d+)", output)[1] for _, output in results}
    assert len(stopped) == 1

    process = start(experiment, workdir, UNHURRIED, devices=8)
    wait_for_step(process, workdir, int(stopped.pop()) + 2)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 75

    flags = ("--config.mesh.data=2", "--config.mesh.fsdp=2")
    results = [finish(p) for p in start_pod(4, experiment, workdir, *flags)]
    assert [status for status, _ in results] == [0] * 4, results
    actual, expected = losses(workdir), losses(undisturbed(experiment))
    assert actual.keys() == expected.keys()
    np.testing.assert_allclose(list(actual.values()), list(expected.values()), rtol=1e-4)


@pytest.fixture
def small_disk(tmp_path):
    with small_disk_at(tmp_path / "disk", size="3m") as disk:
        yield disk


def test_a_full_disk_stops_the_run_with_one_line_and_loses_nothing(
    tmp_path, experiment, small_disk, undisturbed
):
    workdir = small_disk / "run"
    flags = ("--config.checkpoint.keep_last=100", "--config.checkpoint.interval=2")
    status, output = finish(start(experiment, workdir, *flags))
    assert status == 1, output
    assert "Traceback" not in output and "  File " not in output
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and str(workdir) in errors[0], output
    saved = listing.steps(workdir)
    assert saved

    roomy = tmp_path / "roomy"
    shutil.copytree(workdir, roomy)
    status, output = finish(start(experiment, roomy, "--config.checkpoint.interval=1000"))
    assert status == 0, output
    assert f"after step {max(saved)}" in output
    assert losses(roomy) == losses(undisturbed(experiment))


@pytest.mark.large
def test_a_run_resumes_from_another_folder_with_its_saved_settings(tmp_path, glyphs, small_config):
    data = dataclasses.replace(small_config.data, dataset_dir=glyphs.name)  # relative
    train = dataclasses.replace(small_config.train, num_steps=2, eval_interval=1000)
    config = dataclasses.replace(small_config, name="", data=data, train=train)
    experiment, workdir = experiment_file(tmp_path / "experiment.py", config), tmp_path / "run"
    first = run_module(
        "fsdit.main", f"--config={experiment}", f"--workdir={workdir}", cwd=glyphs.parent
    )
    assert first.returncode == 0, first.stderr
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["data"]["dataset_dir"] == str(glyphs) and saved["name"] == glyphs.name

    more = run_module(
        "fsdit.main", f"--workdir={workdir}", "--config.train.num_steps=4", cwd=tmp_path
    )
    assert more.returncode == 0 and "after step 2" in more.stdout, more.stderr
    assert json.loads((workdir / "config.json").read_text())["optimizer"] == saved["optimizer"]

    flags = (f"--config={workdir}/config.json", f"--workdir={workdir}")
    again = run_module("fsdit.main", *flags, cwd=tmp_path)
    assert again.returncode == 0 and "is finished" in again.stdout, again.stderr
    assert [row["step"] for row in rows(workdir)] == [1, 2, 3, 4]

    # Older versions saved relative paths.
    moved = ("--config.data.dataset_dir=glyphs", f"--output={tmp_path}/grid.png", "--episode=0")
    lost = run_module("fsdit.sample", f"--workdir={workdir}", *moved, cwd=tmp_path)
    one_line_error(lost, f"looked for from {tmp_path}", "--config.data.dataset_dir=DIR")
