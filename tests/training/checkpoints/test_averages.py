"""Which of several averages of the weights is the best, and which one programs take."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from fsdit.checks import validate
from fsdit.config import changed_fields, to_dict
from fsdit.data.layout import read_dataset_info
from fsdit.errors import CheckpointError, ConfigError
from fsdit.evaluation.in_training import few_shot_row
from fsdit.planning import programs, target
from fsdit.sampling.export_files import read_info
from fsdit.training.checkpoints import listing, selection, store
from fsdit.training.checkpoints.selection import Selection
from fsdit.training.run import load_generator, load_run, saved_config
from tests.conftest import experiment_file, one_block
from tests.processes import final_state, finish, start, wait_for_step
from tests.programs import one_line_error, run_module
from tests.training.checkpoints.saved_runs import (
    IDENTITY,
    assert_equal,
    at_step,
    fresh_state,
    mesh_of,
    template_of,
)

pytestmark = pytest.mark.medium

OWN, FURTHER = 0.9, (0.5, 0.99)  # train.ema_decay of `small_config`, train.ema_decays


def with_decays(config, decays=FURTHER):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, ema_decays=decays))


@pytest.fixture
def config(small_config):
    return with_decays(one_block(small_config))


SCORES = {5: (0.3, 0.4, math.nan), 10: (0.3, 0.2, 0.25), 15: (0.1, math.inf, 0.21)}


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ({5: SCORES[5]}, (5, 0.3, OWN)),
        ({5: SCORES[5], 10: SCORES[10]}, (10, 0.2, 0.5)),
        (SCORES, (15, 0.1, OWN)),
        ({5: (0.3, math.nan, 0.3)}, (5, 0.3, OWN)),
        ({5: (math.nan, -math.inf, 7.0)}, (5, 7.0, 0.99)),
        ({5: (math.nan,) * 3}, None),
    ],
)
def test_the_score_of_a_step_is_that_of_its_best_average(config, scores, best):
    selected = Selection(config)
    for step, values in scores.items():
        selected.consider(step, *values)
    found = selected.best
    assert (found and (found.step, found.value, found.ema)) == best


def test_processes_that_see_different_averages_as_the_lowest_take_the_first(config, monkeypatch):
    """Another process finds the second lowest, this one the third."""
    monkeypatch.setattr(selection.processes, "agree", lambda found: False)
    selected = Selection(config)
    assert not selected.consider(5, 0.3, 0.2, 0.19)
    assert selected.to_meta(5)["judged"]["ema"] == OWN


def test_a_row_of_the_log_has_the_scores_of_each_average(config):
    rows = [{"few_shot/top1": value} for value in (1.0, 2.0, 3.0)]
    assert few_shot_row(config, rows) == {
        "few_shot/top1": 1.0,
        "few_shot_ema_0.5/top1": 2.0,
        "few_shot_ema_0.99/top1": 3.0,
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tmp_path_factory.mktemp("averages"), {}


@pytest.fixture
def workdir(made, config):
    """A run with checkpoints at 5 and 10, where each average has values of its own."""
    folder, states = made
    if not states:
        writer = store.Checkpoints(folder / "run", config, IDENTITY, mesh_of(config), 0)
        for step in (5, 10):
            state = at_step(fresh_state(config), step)
            averages = [
                jax.tree.map(lambda a, more=step + i: a + more, average)
                for i, average in enumerate(state.averages)
            ]
            state = state.replace(**state.fields_of(averages))
            states[step] = jax.device_get(state)
            writer.selection.consider(step, *SCORES[step])
            writer.save(state, step, step * 16, {})
        writer.finish()
    return folder / "run"


# Of SCORES at 5 and 10, the lowest is that of the second average at step 10.
TAKEN = {("best", None): (10, 0.5), ("newest", 0.99): (10, 0.99), ("newest", None): (10, OWN)}
ALSO = {("best", OWN): (10, OWN), (5, None): (5, OWN), (5, 0.5): (5, 0.5)}


@pytest.mark.parametrize(
    ("choice", "taken"),
    [
        *TAKEN.items(),
        *(pytest.param(*each, marks=pytest.mark.large) for each in ALSO.items()),
    ],
    ids=str,
)
def test_readers_take_the_chosen_average(made, workdir, choice, taken):
    step, decay = taken
    expected = made[1][step].averages[(OWN, *FURTHER).index(decay)]
    run, generator = load_run(workdir, {}, *choice), load_generator(workdir, {}, *choice)
    assert (run.step, run.ema_decay) == (generator.step, generator.ema_decay) == (step, decay)
    assert_equal(run.ema, expected)
    assert_equal(generator.params, expected)


def test_an_average_that_a_run_does_not_keep_is_refused(workdir, tmp_path):
    with pytest.raises(CheckpointError, match=r"no average of decay 0\.7: --ema can be 0\.9, 0\.5"):
        saved_config(workdir, {}, "newest", 0.7)
    export = ("fsdit.export", f"--workdir={workdir}", f"--output={tmp_path}/exported")
    one_line_error(run_module(*export, "--ema=0.7"), "keeps no average of decay 0.7")
    sample = ("fsdit.sample", f"--model={workdir}", f"--supports={workdir}", "--ema=0.5")
    done = run_module(*sample, f"--output={tmp_path}/grid.png")
    one_line_error(done, "--ema needs a --workdir: an exported --model has one average")
    assert list(tmp_path.iterdir()) == []


def test_an_export_says_which_average_it_holds(workdir, tmp_path):
    export = ("fsdit.export", f"--workdir={workdir}", f"--output={tmp_path}/exported")
    done = run_module(*export, "--step=best")
    assert done.returncode == 0 and "step 10, decay 0.5" in done.stdout, done.stderr
    assert read_info(tmp_path / "exported").ema_decay == 0.5


def test_the_decays_of_a_run_are_fixed_and_different(small_config, config):
    (change,) = changed_fields(to_dict(one_block(small_config)), config)
    assert change.startswith("config.train.ema_decays is ")
    for decays in ((OWN,), (0.5, 0.5)):
        with pytest.raises(ConfigError, match=r"config\.train\.ema_decays=.* repeats a value"):
            validate(with_decays(config, decays))


@pytest.mark.large
def test_a_plan_counts_each_average(small_config, config):
    info = read_dataset_info(config.data.dataset_dir)
    (local,) = target.open_targets(["local"])

    def state_bytes(config):
        (program,) = programs.lower("train", config, info, local)
        (state, _), _ = program.lowered.in_avals
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))

    params = jax.tree.leaves(template_of(config)[0].abstract_params())
    more = len(FURTHER) * sum(leaf.size * leaf.dtype.itemsize for leaf in params)
    assert state_bytes(config) == state_bytes(one_block(small_config)) + more


JUDGED = "tests.training.checkpoints.judged_run"


@pytest.mark.large
def test_a_killed_run_keeps_its_averages_and_their_scores(tmp_path, config):
    train = dataclasses.replace(config.train, num_steps=30, eval_interval=1000, few_shot_interval=3)
    policy = dataclasses.replace(config.checkpoint, interval=7)
    config = dataclasses.replace(config, train=train, checkpoint=policy)
    experiment = experiment_file(tmp_path / "experiment.py", config)
    status, output = finish(start(experiment, tmp_path / "whole", module=JUDGED))
    assert status == 0 and ", EMA decay 0." in output, output
    process = start(experiment, tmp_path / "killed", module=JUDGED)
    wait_for_step(process, tmp_path / "killed", 16)
    process.kill()
    finish(process)
    status, output = finish(start(experiment, tmp_path / "killed", module=JUDGED))
    assert status == 0, output
    jax.tree.map(
        np.testing.assert_array_equal,
        *(final_state(tmp_path / name, 30) for name in ("killed", "whole")),
    )
    bests = [listing.saved_meta(tmp_path / name)[1]["best"] for name in ("killed", "whole")]
    assert bests[0] == bests[1] and bests[0]["ema"] in (OWN, *FURTHER)
