"""Runs of the tiny miniImageNet recipe: frozen networks, latents, and every source of features."""

import dataclasses
import json
import shutil
import signal

import jax
import numpy as np
import pytest
from PIL import Image

from fsdit.config import CheckpointConfig, apply_overrides
from tests.conftest import experiment_file
from tests.processes import (
    UNHURRIED,
    final_state,
    finish,
    losses,
    pod_losses,
    rows,
    start,
    wait_for_step,
)
from tests.programs import run_module
from tests.training.objectives import ALL

pytestmark = pytest.mark.medium

STEPS = 150  # each takes milliseconds, and JAX looks for a preemption once a second
ONLINE = ("--config.features.cache_mb=16",)
UNCACHED = ("--config.features.cache_mb=0",)
PRECOMPUTED = ("--config.features.supports=precomputed", "--config.features.targets=precomputed")
DEVICE = (*PRECOMPUTED, "--config.features.location=device")
TERMS = tuple(f"--config.train.{name}={value}" for name, value in ALL.items())


@pytest.fixture
def experiment(tmp_path, frozen_config, encoded):
    config = apply_overrides(frozen_config, {"data.dataset_dir": str(encoded)})
    train = dataclasses.replace(config.train, num_steps=STEPS, log_interval=1, eval_interval=1000)
    config = dataclasses.replace(config, train=train, checkpoint=CheckpointConfig(interval=50))
    return experiment_file(tmp_path / "experiment.py", config)


@pytest.mark.large
@pytest.mark.parametrize(
    ("flags", "reference"),
    [
        (ONLINE, UNCACHED),
        (PRECOMPUTED, PRECOMPUTED),
        (DEVICE, PRECOMPUTED),
        ((*DEVICE, *TERMS), (*PRECOMPUTED, *TERMS)),
    ],
    ids=["online", "precomputed", "device", "terms"],
)
def test_a_preempted_run_resumes_bitwise_and_is_evaluated(
    tmp_path, experiment, undisturbed, weights, flags, reference
):
    """The reference run is not stopped, has no cache, and keeps its features on the host."""
    workdir = tmp_path / "run"
    process = start(experiment, workdir, *flags, UNHURRIED)
    wait_for_step(process, workdir, 3)
    process.send_signal(signal.SIGTERM)
    status, output = finish(process)
    assert status == 75, output
    status, output = finish(start(experiment, workdir, *flags))
    assert status == 0 and "resuming" in output, output

    expected = undisturbed(experiment, *reference)
    assert losses(workdir) == losses(expected)
    assert len(losses(workdir)) == STEPS
    states = (final_state(run, STEPS) for run in (workdir, expected))
    jax.tree.map(np.testing.assert_array_equal, *states)

    shutil.copytree(weights, tmp_path / "moved")
    result = run_module(
        *("fsdit.evaluate", f"--workdir={workdir}", f"--output={tmp_path / 'test'}"),
        *(
            "--config.evaluation.samples_per_episode=2",
            f"--config.model.codec.location={tmp_path / 'moved' / 'vae'}",
        ),
    )
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "test" / "samples.png") as picture:
        assert len(np.unique(np.asarray(picture))) > 100


@pytest.mark.large
def test_stored_and_online_features_give_the_same_losses_up_to_precision(experiment, undisturbed):
    stored, online = (losses(undisturbed(experiment, *f)) for f in (PRECOMPUTED, UNCACHED))
    np.testing.assert_allclose(stored[1], online[1], rtol=1e-3)
    first = range(1, 25)
    np.testing.assert_allclose([stored[i] for i in first], [online[i] for i in first], rtol=2e-2)


@pytest.mark.large
def test_the_cache_changes_no_bit_on_two_processes(tmp_path, experiment, undisturbed):
    runs = {}
    for name, flags in (("cached", ONLINE), ("uncached", UNCACHED)):
        runs[name] = pod_losses(2, experiment, tmp_path / name, 8, *flags)
    assert runs["cached"] == runs["uncached"]
    counters = {name: rows(tmp_path / name)[7] for name in runs}
    assert counters["uncached"]["encoder_cache/bytes"] == 0
    assert counters["cached"]["encoder_cache/hits"] > counters["cached"]["encoder_cache/misses"] > 0
    alone = losses(undisturbed(experiment, *UNCACHED))
    np.testing.assert_allclose(runs["cached"][8], alone[8], rtol=1e-3)


def refused(experiment, workdir, *flags):
    """The error line of a run, which must be refused and leave nothing behind."""
    result = run_module("fsdit.main", f"--config={experiment}", f"--workdir={workdir}", *flags)
    assert result.returncode == 1, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and not workdir.exists()
    return line


def test_features_of_another_encoder_are_refused(tmp_path, experiment, encoded, weights):
    other = tmp_path / "other" / "siglip"
    shutil.copytree(weights / "siglip", other)
    data = bytearray((other / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "model.safetensors").write_bytes(data)
    flags = (*PRECOMPUTED, f"--config.model.encoder.location={other}")
    line = refused(experiment, tmp_path / "run", *flags)
    assert "'siglip'" in line and str(encoded) in line and "config.model.encoder.location" in line


def test_features_that_are_not_there_are_named(tmp_path, experiment):
    flags = (*PRECOMPUTED, "--config.features.encoder=dinov2")
    line = refused(experiment, tmp_path / "run", *flags)
    assert "'dinov2'" in line and "it has siglip" in line and "data_prep.encode --encoder" in line


def test_features_that_do_not_fit_the_devices_are_refused_with_their_size(tmp_path, experiment):
    flags = (*DEVICE, "--config.features.device_gb=0.0001")
    line = refused(experiment, tmp_path / "run", *flags)
    assert "GB on each of 1 devices" in line and "config.features.device_gb=0.0001" in line


@pytest.mark.large
def test_a_run_is_not_continued_with_other_weights_of_the_same_name(
    tmp_path, experiment, undisturbed, weights
):
    moved = tmp_path / "weights"
    shutil.copytree(weights, moved)
    data = bytearray((moved / "siglip" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (moved / "siglip" / "model.safetensors").write_bytes(data)
    workdir = undisturbed(experiment, *UNCACHED)
    flags = (*UNCACHED, f"--config.model.encoder.location={moved / 'siglip'}")
    result = run_module("fsdit.main", f"--config={experiment}", f"--workdir={workdir}", *flags)
    assert result.returncode == 1 and "another encoder than config.model.encoder" in result.stderr
    evaluate = ("fsdit.evaluate", f"--workdir={workdir}", f"--output={tmp_path}/result", flags[-1])
    result = run_module(*evaluate)
    assert result.returncode == 1 and "another encoder than config.model.encoder" in result.stderr
    result = run_module(*evaluate, "--config.data.shots=3")
    assert result.returncode == 1 and "config.data.shots is 3" in result.stderr
    flags = (*UNCACHED, f"--config.model.codec.location={moved / 'vae'}")  # a copy
    status, output = finish(start(experiment, workdir, *flags))
    assert status == 0 and "is finished" in output, output
    assert json.loads((workdir / "config.json").read_text())["name"] == "miniimagenet_tiny"
