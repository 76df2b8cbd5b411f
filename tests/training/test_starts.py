"""Starts of a run: programs from the compilation cache, the profile, and the reported times."""

import re

import jax
import pytest

from fsdit.training.checkpoints import listing
from tests.conftest import experiment_file
from tests.processes import finish, losses, rows, start, wait_for_step

pytestmark = pytest.mark.medium

FLAGS = ("--config.train.eval_interval=1000", "--config.checkpoint.interval=4")


@pytest.fixture
def experiment(tmp_path, small_config, monkeypatch):
    """An experiment whose runs have a compilation cache of their own."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    return experiment_file(tmp_path / "experiment.py", small_config)


def first_step(output):
    """(seconds, seconds of compiling, programs from the cache, programs) of a start's line."""
    (found,) = re.findall(
        r"first step done ([\d.]+) s after the start: compiling ([\d.]+) s "
        r"\((\d+) of (\d+) programs from the cache\), restoring [\d.]+ s",
        output,
    )
    return float(found[0]), float(found[1]), int(found[2]), int(found[3])


@pytest.mark.large
def test_the_second_start_of_a_run_hits_the_cache(tmp_path, experiment):
    workdir, other = tmp_path / "run", tmp_path / "other"
    steps = "--config.train.num_steps=100"
    process = start(experiment, workdir, *FLAGS, steps)
    step = 5
    while not listing.steps(workdir):  # a checkpoint is saved while steps go on
        wait_for_step(process, workdir, step)
        step += 1
    process.kill()
    assert first_step(finish(process)[1])[2] == 0
    (entry,) = workdir.glob("compilation_cache/*/jit_train_step-*-cache")
    written = entry.stat().st_mtime_ns
    status, output = finish(start(experiment, workdir, *FLAGS, steps))
    assert status == 0 and "after step" in output, output
    assert first_step(output)[2] >= 1
    # Another run has the same programs, and is given the cache of the first one.
    cache = f"--config.train.compilation_cache={workdir / 'compilation_cache'}"
    status, output = finish(start(experiment, other, *FLAGS, steps, cache))
    assert status == 0, output
    seconds, compiling, hits, _ = first_step(output)
    assert hits >= 1 and 0 < compiling < seconds
    assert entry.stat().st_mtime_ns == written
    assert len(list(workdir.glob("compilation_cache/*/jit_train_step-*-cache"))) == 1
    assert not (other / "compilation_cache").exists()
    assert losses(other) == losses(workdir)  # a loaded program computes the same bits
    row = rows(other)[0]
    assert row["timing/start_cache_hits"] == hits
    assert row["timing/start_to_first_step_seconds"] == pytest.approx(seconds, abs=0.06)
    assert "timing/start_cache_hits" not in rows(other)[1]


@pytest.mark.large
def test_a_window_of_steps_is_profiled(tmp_path, experiment):
    workdir = tmp_path / "run"
    flags = (*FLAGS, "--config.train.num_steps=9", "--config.profile.start_step=4")
    status, output = finish(start(experiment, workdir, *flags, "--config.profile.num_steps=3"))
    assert status == 0, output
    assert f"profiled: tensorboard --logdir={workdir / 'tensorboard'}" in output
    (file,) = workdir.glob("tensorboard/plugins/profile/*/*.xplane.pb")
    events = [
        event
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes
        for line in plane.lines
        for event in line.events
    ]
    steps = [dict(event.stats)["step_num"] for event in events if event.name == "train"]
    assert sorted(map(int, steps)) == [4, 5, 6]
    names = [event.name for event in events]
    assert names.count("data_wait") == 3 and "checkpoint_stall" in names
    assert any("train_step" in name for name in names)
    assert [row["step"] for row in rows(workdir)] == list(range(1, 10))
