"""The best checkpoint: which one it is, how long it is kept, and what finds it again."""

import dataclasses
import json
import math
import re
import shutil
import signal

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from fsdit.config import Config
from fsdit.errors import CheckpointError
from fsdit.training.checkpoints import listing, selection, store
from fsdit.training.checkpoints.selection import SELECTED_BY, best_of, better, score, to_meta
from fsdit.training.run import load_generator, load_run, saved_config
from tests.conftest import experiment_file
from tests.processes import UNHURRIED, finish, rows, start, start_pod, wait_for_step
from tests.programs import one_line_error, run_module
from tests.training.checkpoints.saved_runs import (
    DAMAGES,
    IDENTITY,
    assert_equal,
    at_step,
    mesh_of,
    saved_run,
    template_of,
)

pytestmark = pytest.mark.medium
LARGE = pytest.mark.large


@pytest.fixture
def config(small_config):
    policy = dataclasses.replace(small_config.checkpoint, keep_last=2)
    return dataclasses.replace(small_config, checkpoint=policy)


def resumed(workdir, config):
    """(writer, state) of a run that goes on from what the workdir holds."""
    restored = store.restore(workdir, template_of(config)[2], set_aside=True)
    mesh = mesh_of(config)
    selected = selection.resumed(workdir, config, restored.step, restored.best)
    writer = store.Checkpoints(workdir, config, IDENTITY, mesh, restored.step, selected)
    return writer, restored.state


def test_the_best_is_kept_until_a_better_one_is_whole(tmp_path, config):
    saved_run(tmp_path, config, range(1, 6), {1: 0.5, 2: 0.2, 3: 0.3, 4: 0.2})
    assert listing.steps(tmp_path) == [5, 4, 2]
    writer, state = resumed(tmp_path, config)
    assert (writer.selection.best.step, writer.selection.best.value) == (2, 0.2)
    assert not writer.selection.consider(6, 0.25)
    assert writer.selection.consider(7, 0.1)
    for step in (7, 8):
        writer.save(at_step(state, step), step, step * 16, {})
    writer.finish()
    assert listing.steps(tmp_path) == [8, 7]
    writer, state = resumed(tmp_path, config)
    for step in (9, 10):
        writer.save(at_step(state, step), step, step * 16, {})
    writer.finish()
    assert listing.steps(tmp_path) == [10, 9, 7]
    assert listing.saved_meta(tmp_path, "best")[0] == 7


def test_a_best_step_that_is_kept_anyway_stays(tmp_path, config):
    policy = dataclasses.replace(config.checkpoint, keep_every=4)
    config = dataclasses.replace(config, checkpoint=policy)
    saved_run(tmp_path, config, range(1, 9), {4: 0.5, 5: 0.1})
    assert listing.steps(tmp_path) == [8, 7, 5, 4]


def test_what_is_not_finite_is_never_best(tmp_path, config):
    found = {1: math.nan, 2: 0.9, 3: math.inf, 4: -math.inf, 5: math.nan}
    saved_run(tmp_path, config, range(1, 6), found)
    assert listing.steps(tmp_path) == [5, 4, 2]
    assert "NaN" not in (tmp_path / "checkpoints" / "5" / "meta" / "metadata").read_text()


@pytest.mark.parametrize("loss", ["gone", pytest.param("no meta", marks=LARGE), "cut meta"])
def test_a_best_step_that_is_lost_leaves_the_best_of_the_others(tmp_path, config, capsys, loss):
    policy = dataclasses.replace(config.checkpoint, keep_last=4)
    config = dataclasses.replace(config, checkpoint=policy)
    saved_run(tmp_path, config, range(1, 6), {1: 0.1, 2: 0.4, 3: 0.3, 4: 0.5})
    damage = DAMAGES.get(loss, shutil.rmtree)
    damage(tmp_path / "checkpoints" / "1")
    writer, _ = resumed(tmp_path, config)
    assert (writer.selection.best.step, writer.selection.best.value) == (3, 0.3)
    printed = capsys.readouterr().out
    assert re.search(r"warning: .*checkpoints/1, the best step, is damaged or gone", printed)
    assert "step 3 is the best of the others" in printed
    writer.finish()


def test_a_run_that_lost_its_only_judged_step_takes_the_next(tmp_path, config, capsys):
    saved_run(tmp_path, config, range(1, 6), {1: 0.1})
    shutil.rmtree(tmp_path / "checkpoints" / "1")
    writer, _ = resumed(tmp_path, config)
    assert writer.selection.best is None and "no other was judged" in capsys.readouterr().out
    assert writer.selection.consider(6, 7.0)
    writer.finish()


def test_going_on_from_an_older_step_forgets_what_came_after(tmp_path, config):
    saved_run(tmp_path, config, range(1, 6), {3: 0.5, 5: 0.1})
    DAMAGES["flipped bits"](tmp_path / "checkpoints" / "5")
    writer, state = resumed(tmp_path, config)  # from step 4; step 3 went when 5 was whole
    assert writer.selection.best is None
    assert writer.selection.consider(5, 0.1)
    writer.save(at_step(state, 5), 5, 80, {})
    writer.finish()
    assert listing.saved_meta(tmp_path, "best")[0] == 5


def test_values_under_other_settings_do_not_compare(config):
    fewer = dataclasses.replace(config, train=dataclasses.replace(config.train, few_shot_samples=8))
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=99))
    old = score(config, 10, 0.1)
    assert better(score(fewer, 20, 0.9), old)
    assert not better(score(longer, 20, 0.9), old)
    own = [score(fewer, 30, 0.8), old, score(fewer, 20, 0.9)]
    assert best_of(to_meta(each, None) for each in own).step == 30


@pytest.mark.parametrize(("shift", "compares"), [(Config().sampling.shift, True), (2.0, False)])
def test_a_setting_that_is_younger_than_a_value_has_had_its_default(config, shift, compares):
    config = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, shift=shift))
    old = score(config, 10, 0.1)
    del old.settings["sampling.shift"]
    assert better(score(config, 20, 0.9), old) is not compares


def test_checkpoints_of_before_steps_were_judged_can_be_read(tmp_path, config):
    saved_run(tmp_path, config)
    for file in (tmp_path / "checkpoints").glob("*/meta/metadata"):
        meta = json.loads(file.read_text())
        del meta["judged"], meta["best"], meta["digest"]
        file.write_text(json.dumps(meta))
    assert store.restore(tmp_path, template_of(config)[2], set_aside=True).best is None


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tmp_path_factory.mktemp("made"), {}


@pytest.fixture
def judged_run(made, small_config):
    """(workdir, states by step) of steps 5, 10 and 15, of which 10 is best; beside it `plain`."""
    folder, states = made
    if not states:
        policy = dataclasses.replace(small_config.checkpoint, keep_last=3)
        config = dataclasses.replace(small_config, checkpoint=policy)
        found = {5: 0.5, 10: 0.1, 15: 0.4}
        states.update(saved_run(folder / "run", config, (5, 10, 15), found))
        saved_run(folder / "plain", config, (5,))
    return folder / "run", states


CHOICES = {"newest": 15, "best": 10, 5: 5}


@pytest.mark.parametrize("choice", CHOICES)
def test_readers_take_the_step_that_is_chosen(judged_run, choice):
    workdir, states = judged_run
    run, generator = load_run(workdir, {}, choice), load_generator(workdir, {}, choice)
    assert run.step == generator.step == CHOICES[choice]
    assert_equal(run.ema, states[run.step].ema)
    assert_equal(generator.params, states[run.step].ema)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_chosen_step_that_is_damaged_is_named_and_no_other_taken(judged_run, tmp_path, damage):
    workdir = tmp_path / "run"
    shutil.copytree(judged_run[0], workdir)
    damage(workdir / "checkpoints" / "10")
    for choice in ("best", 10):
        with pytest.raises(CheckpointError, match=r"/10 is damaged \(.*; name another --step"):
            load_generator(workdir, {}, choice)
    assert load_generator(workdir, {}).step == 15
    assert len(listing.steps(workdir)) == 3


def test_what_the_newest_says_of_the_best_is_not_guessed(judged_run, tmp_path):
    shutil.copytree(judged_run[0], tmp_path / "run")
    DAMAGES["cut meta"](tmp_path / "run" / "checkpoints" / "15")
    with pytest.raises(CheckpointError, match="checkpoints/15 is damaged"):
        saved_config(tmp_path / "run", {}, "best")
    assert saved_config(tmp_path / "run", {}, 10).name == "small"


def test_programs_use_the_step_that_is_asked_for(judged_run, tmp_path):
    workdir = f"--workdir={judged_run[0]}"
    done = run_module("fsdit.export", workdir, f"--output={tmp_path}/best", "--step=best")
    assert done.returncode == 0 and "EMA weights of step 10" in done.stdout, done.stderr
    done = run_module(
        "fsdit.sample",
        *(workdir, "--split=val", "--episode=0", "--num_drawings=1"),
        *(f"--output={tmp_path}/grid.png", "--step=5"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "grid.json").read_text())["step"] == 5


SAMPLE = ("fsdit.sample", "--split=val", "--episode=0", "--output={out}/grid.png")
EXPORT = ("fsdit.export", "--output={out}/exported")
EVALUATE = ("fsdit.evaluate", "--output={out}/result")
BAD = {
    "sample, none": (
        (*SAMPLE, "--workdir={run}", "--step=7"),
        "holds no step 7; it holds 5, 10, 15",
    ),
    "export, none": (
        (*EXPORT, "--workdir={run}", "--step=7"),
        "holds no step 7; it holds 5, 10, 15",
    ),
    "evaluate, none": (
        (*EVALUATE, "--workdir={run}", "--step=7"),
        "holds no step 7; it holds 5, 10",
    ),
    "not judged": (
        (*EXPORT, "--workdir={plain}", "--step=best"),
        "no step of {plain} was judged: --step=best needs config.train.few_shot_interval",
    ),
    "no workdir": ((*EXPORT, "--workdir={out}", "--step=best"), "{out} holds no checkpoint"),
    "no step": (
        (*EXPORT, "--workdir={run}", "--step=last"),
        "--step=last must be newest, best or the number of a step",
    ),
    "negative": ((*EXPORT, "--workdir={run}", "--step=-5"), "--step=-5 must be newest, best or"),
    "of an export": (
        (SAMPLE[0], "--supports={run}", SAMPLE[-1], "--model={run}", "--step=best"),
        "--step needs a --workdir: an exported --model has one step",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_step_that_cannot_be_is_one_line_and_writes_nothing(judged_run, tmp_path, case):
    workdir, _ = judged_run
    names = {"run": workdir, "plain": workdir.parent / "plain", "out": tmp_path}
    command, message = BAD[case]
    one_line_error(run_module(*(word.format(**names) for word in command)), message.format(**names))
    assert list(tmp_path.iterdir()) == []


STEPS = 60
JUDGED = "tests.training.checkpoints.judged_run"


@pytest.fixture
def experiment(tmp_path, small_config):
    """Judged at each third of 60 steps, saved at each 7th, and at the best."""
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
    """Makes, once, the run that is never stopped: (workdir, output)."""
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
def test_training_judges_drawings_of_unseen_classes(tmp_path, small_config):
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
    logged = {e.step: float(make_ndarray(e.tensor_proto)) for e in events.Tensors(SELECTED_BY)}
    assert logged == {step: pytest.approx(value, rel=1e-6) for step, value in found.items()}
