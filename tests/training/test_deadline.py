"""The time limit of a start leaves room for a last save."""

import math

import pytest

from fsdit.training.deadline import Deadline
from tests.conftest import experiment_file
from tests.processes import files_of, finish, losses, start


def stops_at(minutes, steps, save_seconds):
    """Index and time of the step at which a run with steps of these seconds stops."""
    now = [0.0]
    deadline = Deadline(minutes, lambda: now[0])
    for index, seconds in enumerate(steps):
        now[0] += seconds
        if deadline.reached(save_seconds):
            return index, now[0]
    return None, now[0]


@pytest.mark.parametrize("save", [0.5, 30.0, 300.0])
@pytest.mark.parametrize("longest", [0.1, 20.0, 200.0])
def test_the_longest_step_and_the_longest_save_still_fit_before_the_limit(save, longest):
    steps = [100.0, longest, *[0.1] * 100_000]
    _, stopped = stops_at(60.0, steps, save)
    assert stopped + longest + save < 60 * 60  # even if the next step is as long as the longest
    assert stopped + longest + save > 60 * 60 - 20


def test_without_a_limit_no_step_is_the_last():
    assert stops_at(0.0, [1e6] * 10, 1e6) == (None, 1e7)


def test_the_compilation_before_the_first_step_counts_as_time_but_not_as_a_step():
    _, stopped = stops_at(10.0, [300.0, *[1.0] * 1000], 10.0)
    assert math.isclose(stopped, 600 - 10 - 1 - 15, abs_tol=1)


@pytest.mark.large
@pytest.mark.medium
def test_a_run_whose_time_is_up_saves_leaves_and_goes_on(tmp_path, small_config):
    experiment = experiment_file(tmp_path / "experiment.py", small_config)
    limit = "--config.train.stop_after_minutes=0.01"
    status, output = finish(start(experiment, tmp_path / "run", limit))
    assert status == 75, output
    assert "time limit: config.train.stop_after_minutes=0.01 minutes" in output
    stopped = max(losses(tmp_path / "run"))
    assert (files_of(tmp_path / "run") / "checkpoints" / str(stopped)).is_dir()
    status, output = finish(start(experiment, tmp_path / "run"))
    assert status == 0 and f"after step {stopped}" in output, output
