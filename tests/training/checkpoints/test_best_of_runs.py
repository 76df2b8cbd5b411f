"""The best checkpoint of real runs of the training program."""

import dataclasses
import re
import signal

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from fsdit.training.checkpoints import listing
from fsdit.training.checkpoints.selection import SELECTED_BY
from tests.conftest import experiment_file
from tests.processes import UNHURRIED, finish, rows, start, start_pod, wait_for_step
from tests.training.checkpoints.saved_runs import (
    DAMAGES,
)

pytestmark = pytest.mark.medium


STEPS = 60


JUDGED = "tests.training.checkpoints.judged_run"


@pytest.fixture
def experiment(tmp_path, small_config):
    """An experiment of 60 steps, scored at each third, saved at each seventh and at the best."""
    train = dataclasses.replace(
        small_config.train, num_steps=STEPS, eval_interval=1000, few_shot_interval=3
    )
    policy = dataclasses.replace(small_config.checkpoint, interval=7)
    return experiment_file(
        tmp_path / "experiment.py",
        dataclasses.replace(small_config, train=train, checkpoint=policy),
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A function that makes, once, the run that is never stopped: (workdir, output)."""
    made = []

    def run(experiment):
        if not made:
            workdir = tmp_path_factory.mktemp("reference") / "run"
            status, output = finish(start(experiment, workdir, module=JUDGED))
            assert status == 0, output
            made.append((workdir, output))
        return made[0]

    return run


def values(workdir):
    return {row["step"]: row[SELECTED_BY] for row in rows(workdir) if SELECTED_BY in row}


def best_line(output):
    (line,) = re.findall(rf"^best by {SELECTED_BY}: step (\d+), ", output, re.MULTILINE)
    return int(line)


@pytest.mark.large
def test_a_run_keeps_its_best_step_and_says_which(experiment, reference):
    workdir, output = reference(experiment)
    found = values(workdir)
    assert list(found) == list(range(3, STEPS + 1, 3))
    best = min(found, key=found.get)
    assert best_line(output) == best < STEPS - 14 and best % 7
    assert listing.steps(workdir) == [STEPS, STEPS // 7 * 7, best]
    kept = listing.saved_meta(workdir, best)[1]
    assert kept["judged"] == kept["best"]
    assert (kept["best"]["step"], kept["best"]["value"]) == (best, found[best])
    row = next(row for row in rows(workdir) if row["step"] == STEPS)
    assert {"val/loss", SELECTED_BY, "few_shot/top1"} <= row.keys()
    assert row["timing/evaluation_seconds"] > 0


@pytest.mark.large
def test_killed_damaged_and_preempted_runs_end_with_the_same_best(tmp_path, experiment, reference):
    workdir = tmp_path / "run"
    expected, _ = reference(experiment)
    best = listing.saved_meta(expected, "best")[0]
    moments = np.random.default_rng(1).choice(np.arange(9, best), 2, replace=False)
    for moment in (*sorted(moments), best):  # at the best, its save is under way
        process = start(experiment, workdir, module=JUDGED)
        wait_for_step(process, workdir, moment)
        process.send_signal(signal.SIGKILL)
        assert finish(process)[0] == -signal.SIGKILL
    DAMAGES["flipped bits"](workdir / "checkpoints" / str(listing.steps(workdir)[0]))

    process = start(experiment, workdir, UNHURRIED, module=JUDGED)
    wait_for_step(process, workdir, max(values(workdir)) + 3)
    process.send_signal(signal.SIGTERM)
    status, output = finish(process)
    assert status == 75, output
    assert "best by" not in output

    status, output = finish(start(experiment, workdir, module=JUDGED))
    assert status == 0, output
    assert best_line(output) == best
    assert values(workdir) == values(expected)
    assert listing.saved_meta(workdir, "best")[0] == best
    assert listing.steps(workdir) == listing.steps(expected)
    for name in ("judged", "best"):
        assert (
            listing.saved_meta(workdir, best)[1][name]
            == listing.saved_meta(expected, best)[1][name]
        )


@pytest.mark.large
def test_the_best_of_two_processes_is_that_of_one(tmp_path, experiment, reference):
    workdir = tmp_path / "run"
    expected, _ = reference(experiment)
    best = listing.saved_meta(expected, "best")[0]
    pod = start_pod(2, experiment, workdir, module=JUDGED)
    try:
        wait_for_step(pod[0], workdir, 15)
    finally:
        for process in pod:
            process.kill()
            process.communicate()
    assert listing.saved_meta(workdir)[1]["mesh"]["processes"] == 2
    early = {step: value for step, value in values(workdir).items() if step <= 15}
    status, output = finish(start(experiment, workdir, module=JUDGED, devices=4))
    assert status == 0, output
    assert best_line(output) == best == listing.saved_meta(workdir, "best")[0]
    found = values(expected)
    assert early == {step: pytest.approx(found[step], rel=1e-3) for step in early} and early


@pytest.mark.large
def test_training_scores_samples_of_unseen_classes(tmp_path, small_config):
    train = dataclasses.replace(
        small_config.train, num_steps=5, eval_interval=4, few_shot_interval=2, few_shot_samples=32
    )
    config = dataclasses.replace(small_config, train=train)
    experiment, workdir = experiment_file(tmp_path / "experiment.py", config), tmp_path / "run"
    status, output = finish(start(experiment, workdir))
    assert status == 0, output
    found = values(workdir)
    assert list(found) == [2, 4, 5] and np.isfinite(list(found.values())).all()
    best = min(found, key=found.get)
    assert best_line(output) == best == listing.saved_meta(workdir, "best")[0]
    at = {row["step"]: row for row in rows(workdir)}
    assert "val/loss" in at[4] and "val/loss" not in at[2] and SELECTED_BY not in at[3]
    assert 0 <= at[2]["few_shot/top1"] <= 1 and at[2]["timing/evaluation_seconds"] > 0
    events = EventAccumulator(str(workdir / "tensorboard"), {"tensors": 0}).Reload()
    scores = events.Tensors("2 few-shot quality/kernel_distance")
    logged = {e.step: float(make_ndarray(e.tensor_proto)) for e in scores}
    assert logged == {step: pytest.approx(value, rel=1e-6) for step, value in found.items()}
