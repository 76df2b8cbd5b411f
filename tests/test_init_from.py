"""Training programs that start from the weights of another model."""

import dataclasses
import shutil
import signal

import jax
import numpy as np
import pytest

from fsdit.sampling import exported
from fsdit.training.run import load_generator
from tests.conftest import experiment_file, one_block
from tests.processes import (
    UNHURRIED,
    final_state,
    finish,
    losses,
    pod_losses,
    start,
    wait_for_step,
)
from tests.sampling.generators import supports_for
from tests.training.checkpoints.saved_runs import save_run

pytestmark = pytest.mark.large

STEPS = 12


@pytest.fixture
def models(tmp_path, small_config):
    """A run and its export, the generator of both, and an experiment for another run."""
    config = one_block(small_config)
    save_run(tmp_path / "old", config)
    generator = load_generator(tmp_path / "old", {})
    exported.save(tmp_path / "exported", generator)
    train = dataclasses.replace(config.train, num_steps=STEPS, eval_interval=1000)
    config = dataclasses.replace(config, train=train)
    return generator, experiment_file(tmp_path / "experiment.py", config)


def test_a_killed_run_goes_on_bitwise_when_the_model_it_started_from_is_gone(tmp_path, models):
    _, experiment = models
    flag = f"--config.train.init_from={tmp_path / 'exported'}"
    status, output = finish(start(experiment, tmp_path / "whole", flag))
    assert status == 0 and "arrays are taken" in output, output
    process = start(experiment, tmp_path / "killed", flag, UNHURRIED)
    wait_for_step(process, tmp_path / "killed", 6)
    process.send_signal(signal.SIGKILL)
    finish(process)
    shutil.move(tmp_path / "exported", tmp_path / "moved")
    status, output = finish(start(experiment, tmp_path / "killed", flag))
    assert status == 0 and "after step" in output and "arrays are taken" not in output, output
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    jax.tree.map(
        np.testing.assert_array_equal,
        *(final_state(tmp_path / name, STEPS) for name in ("killed", "whole")),
    )
    status, output = finish(start(experiment, tmp_path / "fresh"))
    assert status == 0 and losses(tmp_path / "fresh") != losses(tmp_path / "whole")


def test_a_run_that_learns_nothing_samples_as_the_model_it_started_from(tmp_path, models):
    generator, experiment = models
    still = (
        "--config.train.num_steps=1",
        "--config.train.ema_decay=0",
        "--config.optimizer.peak_learning_rate=1e-37",
        "--config.optimizer.final_learning_rate=0",
    )
    supports = supports_for(generator, 5)
    expected = generator.generate(supports, 8)
    for name in ("old", "exported"):
        flag = f"--config.train.init_from={tmp_path / name}"
        status, output = finish(start(experiment, tmp_path / f"from-{name}", flag, *still))
        assert status == 0, output
        found = load_generator(tmp_path / f"from-{name}", {}).generate(supports, 8)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("name", ["old", "exported"])
def test_a_pod_starts_from_the_same_weights(tmp_path, models, name):
    _, experiment = models
    flags = (f"--config.train.init_from={tmp_path / name}", "--config.mesh.fsdp=-1")
    flags = (*flags, "--config.mesh.data=1")
    status, output = finish(start(experiment, tmp_path / "alone", *flags))
    assert status == 0, output
    alone = losses(tmp_path / "alone")
    together = pod_losses(2, experiment, tmp_path / "pod", STEPS, *flags)
    np.testing.assert_allclose([together[s] for s in alone], list(alone.values()), rtol=1e-4)
