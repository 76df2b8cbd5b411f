"""The best checkpoint: which one it is, how long it is kept, and what finds it again."""

import dataclasses
import functools
import json
import math
import re
import shutil

import pytest

from fsdit.config import Config
from fsdit.errors import CheckpointError
from fsdit.training.checkpoints import listing, selection, store
from fsdit.training.checkpoints.selection import best_of, better, score, to_meta
from fsdit.training.run import load_generator, load_run, saved_config
from tests.conftest import one_block
from tests.programs import one_line_error, run_module
from tests.training.checkpoints import saved_runs
from tests.training.checkpoints.saved_runs import (
    DAMAGES,
    IDENTITY,
    FewArrays,
    assert_equal,
    at_step,
    mesh_of,
)

pytestmark = pytest.mark.medium
LARGE = pytest.mark.large

saved_run = functools.partial(saved_runs.saved_run, model=FewArrays)
template_of = functools.partial(saved_runs.template_of, model=FewArrays)


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


def test_the_best_is_kept_until_a_better_one_is_complete(tmp_path, config):
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


def test_a_former_best_step_stays_if_keep_every_keeps_it(tmp_path, config):
    policy = dataclasses.replace(config.checkpoint, keep_every=4)
    config = dataclasses.replace(config, checkpoint=policy)
    saved_run(tmp_path, config, range(1, 9), {4: 0.5, 5: 0.1})
    assert listing.steps(tmp_path) == [8, 7, 5, 4]


def test_a_score_that_is_not_finite_is_never_best(tmp_path, config):
    found = {1: math.nan, 2: 0.9, 3: math.inf, 4: -math.inf, 5: math.nan}
    saved_run(tmp_path, config, range(1, 6), found)
    assert listing.steps(tmp_path) == [5, 4, 2]
    assert "NaN" not in (tmp_path / "checkpoints" / "5" / "meta" / "metadata").read_text()


@pytest.mark.parametrize(
    "loss", ["gone", *(pytest.param(loss, marks=LARGE) for loss in ("no meta", "cut meta"))]
)
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


def test_a_run_that_lost_its_only_scored_step_takes_the_next(tmp_path, config, capsys):
    saved_run(tmp_path, config, range(1, 6), {1: 0.1})
    shutil.rmtree(tmp_path / "checkpoints" / "1")
    writer, _ = resumed(tmp_path, config)
    assert writer.selection.best is None and "no other has a score" in capsys.readouterr().out
    assert writer.selection.consider(6, 7.0)
    writer.finish()


def test_resuming_from_an_older_step_forgets_the_scores_after_it(tmp_path, config):
    saved_run(tmp_path, config, range(1, 6), {3: 0.5, 5: 0.1})
    DAMAGES["flipped bits"](tmp_path / "checkpoints" / "5")
    writer, state = resumed(tmp_path, config)  # from step 4; step 3 was deleted once 5 was complete
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
def test_a_setting_newer_than_a_score_counts_as_its_default(config, shift, compares):
    config = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, shift=shift))
    old = score(config, 10, 0.1)
    del old.settings["sampling.shift"]
    assert better(score(config, 20, 0.9), old) is not compares


def test_checkpoints_of_versions_without_scores_can_be_read(tmp_path, config):
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
def scored_run(made, small_config):
    """(workdir, states by step): 10 is the best of 5, 10 and 15; `plain` beside it has no score."""
    folder, states = made
    if not states:
        policy = dataclasses.replace(small_config.checkpoint, keep_last=3)
        config = dataclasses.replace(one_block(small_config), checkpoint=policy)
        found = {5: 0.5, 10: 0.1, 15: 0.4}
        states.update(saved_runs.saved_run(folder / "run", config, (5, 10, 15), found))
        saved_run(folder / "plain", config, (5,))
    return folder / "run", states


CHOICES = {"newest": 15, "best": 10, 5: 5}


@pytest.mark.parametrize("choice", CHOICES)
def test_readers_take_the_chosen_step(scored_run, choice):
    workdir, states = scored_run
    run, generator = load_run(workdir, {}, choice), load_generator(workdir, {}, choice)
    assert run.step == generator.step == CHOICES[choice]
    assert_equal(run.ema, states[run.step].ema)
    assert_equal(generator.params, states[run.step].ema)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_chosen_step_that_is_damaged_is_named_and_no_other_taken(scored_run, tmp_path, damage):
    workdir = tmp_path / "run"
    shutil.copytree(scored_run[0], workdir)
    damage(workdir / "checkpoints" / "10")
    for choice in ("best", 10):
        with pytest.raises(CheckpointError, match=r"/10 is damaged \(.*; name another --step"):
            load_generator(workdir, {}, choice)
    assert load_generator(workdir, {}).step == 15
    assert len(listing.steps(workdir)) == 3


def test_the_best_step_is_not_guessed_if_the_newest_is_damaged(scored_run, tmp_path):
    shutil.copytree(scored_run[0], tmp_path / "run")
    DAMAGES["cut meta"](tmp_path / "run" / "checkpoints" / "15")
    with pytest.raises(CheckpointError, match="checkpoints/15 is damaged"):
        saved_config(tmp_path / "run", {}, "best")
    assert saved_config(tmp_path / "run", {}, 10).name == "small"


def test_weights_of_the_packed_kernel_are_used_with_the_plain_one(scored_run):
    packed = {"model.attention": "packed"}
    assert saved_config(scored_run[0], packed).model.attention == "plain"


def test_programs_use_the_step_that_is_asked_for(scored_run, tmp_path):
    workdir = f"--workdir={scored_run[0]}"
    done = run_module("fsdit.export", workdir, f"--output={tmp_path}/best", "--step=best")
    assert done.returncode == 0 and "EMA weights of step 10" in done.stdout, done.stderr
    done = run_module(
        "fsdit.sample",
        *(workdir, "--split=val", "--episode=0", "--num_samples=1"),
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
    "no score": (
        (*EXPORT, "--workdir={plain}", "--step=best"),
        "no step of {plain} has a score: --step=best needs config.train.few_shot_interval",
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
def test_an_impossible_step_gives_one_line_and_writes_nothing(scored_run, tmp_path, case):
    workdir, _ = scored_run
    names = {"run": workdir, "plain": workdir.parent / "plain", "out": tmp_path}
    command, message = BAD[case]
    one_line_error(run_module(*(word.format(**names) for word in command)), message.format(**names))
    assert list(tmp_path.iterdir()) == []
