"""Workdirs with a checkpoint and its export, shared by the tests of sampling."""

import shutil

import pytest

from fsdit.sampling import exported
from fsdit.training.run import load_generator
from tests.conftest import one_block
from tests.training.checkpoints.saved_runs import save_run


@pytest.fixture(scope="session")
def saved_models(tmp_path_factory):
    """A function that makes, once for each name, a run's workdir and its export."""
    made = {}

    def of(name, config):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            state = save_run(folder / "run", config)
            generator = load_generator(folder / "run", {})
            exported.save(folder / "exported", generator)
            made[name] = folder, state, generator
        return made[name]

    return of


@pytest.fixture
def small(saved_models, small_config):
    config = one_block(small_config, cross_attention="patches", num_latents=0)
    return saved_models("small", config)


@pytest.fixture
def frozen(saved_models, frozen_config):
    return saved_models("frozen", frozen_config)


@pytest.fixture
def exported_copy(small, tmp_path):
    """A copy of the export, which a test may damage."""
    return shutil.copytree(small[0] / "exported", tmp_path / "exported")
