"""Runs that start from the weights of another model: what is taken, and what is said."""

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from fsdit.config import Config, DataConfig, MeshConfig, changed_fields, to_dict
from fsdit.data.images.photos import Preparation
from fsdit.data.run_dataset import DatasetFacts
from fsdit.errors import CheckpointError, ConfigError, DataError
from fsdit.features.frozen import Frozen
from fsdit.sampling import exported
from fsdit.sampling.generator import Generator
from fsdit.storage import bucket as objects
from fsdit.training import loop
from fsdit.training import state as train_state
from fsdit.training.checkpoints import store
from fsdit.training.checkpoints.start import open_start, read_start
from tests.training.checkpoints.saved_runs import (
    IDENTITY,
    RUNNING,
    FewArrays,
    assert_equal,
    at_step,
    fresh_state,
    mesh_of,
    template_of,
)

pytestmark = pytest.mark.medium

STEP, BATCH = 5, 16
CONFIG = Config(data=DataConfig(dataset_dir="any", batch_size=BATCH), mesh=MeshConfig(2, 4))
FACTS = DatasetFacts(24, 1, Preparation("black", "pad"), {"train": 3}, {"train": 30}, {})


class Other(FewArrays):
    """One array has another shape, and one another name."""

    def init(self, seed):
        params = super().init(seed)
        params["embed"]["kernel"] = jnp.full((36, 32), 7.0)
        params["blocks"]["down"] = params["blocks"].pop("up")
        return params


class Foreign(FewArrays):
    def init(self, seed):
        return {"else": super().init(seed)}


def save(workdir, config, identity=IDENTITY, scale=2):
    """Saves a checkpoint whose EMA differs from its parameters; returns the EMA by name."""
    state = fresh_state(config, FewArrays)
    state = state.replace(ema=jax.tree.map(lambda a: scale * a + 1, state.ema))
    state = at_step(state, STEP)
    writer = store.Checkpoints(workdir, config, identity, mesh_of(config), 0, dataset=FACTS)
    writer.save(state, STEP, STEP * BATCH, RUNNING)
    writer.finish()
    return jax.device_get(state.ema)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A run and its export; the EMA weights of both."""
    folder = tmp_path_factory.mktemp("start")
    ema = save(folder / "run", CONFIG)
    spec, _, _ = template_of(CONFIG, FewArrays)
    frozen = Frozen(weights={"encoder": "b", "codec": "c"})
    model = Generator(CONFIG, spec, frozen, ema, STEP, FACTS.preparation)
    exported.save(folder / "exported", model)
    return folder, ema


def started(location, config=CONFIG, model=FewArrays, dataset=FACTS, identity=IDENTITY):
    """The state of a new run that starts from the model in a folder, and of one that does not."""
    train = dataclasses.replace(config.train, init_from=str(location))
    config = dataclasses.replace(config, train=train)
    spec, tx, template = template_of(config, model)
    given = read_start(config, template.params, dataset, identity)
    return train_state.init(spec, tx, 0, template, given), train_state.init(spec, tx, 0, template)


@pytest.mark.parametrize("kind", ["run", "exported"])
@pytest.mark.parametrize("mesh", [MeshConfig(1, 8), MeshConfig(8, 1)], ids=["fsdp", "data"])
def test_parameters_and_averages_start_at_the_ema_and_the_rest_is_new(models, kind, mesh, capsys):
    folder, ema = models
    train = dataclasses.replace(CONFIG.train, ema_decays=(0.9,))
    config = dataclasses.replace(CONFIG, mesh=mesh, train=train)
    state, fresh = started(folder / kind, config)
    lines = capsys.readouterr().out.splitlines()
    for params in (state.params, *state.averages):
        assert_equal(params, ema)
    assert len(state.averages) == 2
    rest = lambda s: (s.step, s.opt_state, s.nonfinite, s.nonfinite_in_row)  # noqa: E731
    assert_equal(rest(state), jax.device_get(rest(fresh)))
    jax.tree.map(lambda a, b: a.sharding == b.sharding or pytest.fail("laid out"), state, fresh)
    assert lines == [f"starting from step {STEP} of {folder / kind}: 4 of 4 arrays are taken"]


@pytest.mark.large
@pytest.mark.parametrize("kind", ["run", "exported"])
def test_a_model_in_a_bucket_is_a_start_like_one_on_a_disk(models, kind, bucket):
    folder, ema = models
    for path in filter(Path.is_file, (folder / kind).rglob("*")):
        objects.upload(path, f"{bucket}/{path.relative_to(folder)}")
    assert_equal(started(f"{bucket}/{kind}")[0].params, ema)


def test_a_step_that_gives_its_state_away_changes_no_average(models):
    folder, ema = models
    state, _ = started(folder / "exported")
    step = lambda s: s.replace(params=jax.tree.map(lambda a: a + 1, s.params))  # noqa: E731
    state = jax.jit(step, donate_argnums=0)(state)
    assert_equal(state.ema, ema)
    assert_equal(state.params, jax.tree.map(lambda a: a + 1, ema))
    assert_equal(started(folder / "exported")[0].params, ema)


def test_arrays_that_do_not_fit_are_named_and_new(models, capsys):
    folder, ema = models
    dataset = dataclasses.replace(FACTS, preparation=Preparation("white", "center_crop"))
    state, fresh = started(folder / "run", CONFIG, Other, dataset, {"dataset": "z", "codec": "c"})
    taken = traverse_util.flatten_dict(jax.device_get(state.params), sep="/")
    new = traverse_util.flatten_dict(jax.device_get(fresh.params), sep="/")
    there = traverse_util.flatten_dict(ema, sep="/")
    for name, value in taken.items():
        expected = there if name == "embed/bias" else new
        np.testing.assert_array_equal(value, expected[name])
    assert (taken["embed/bias"] != new["embed/bias"]).all()
    first, *lines = capsys.readouterr().out.splitlines()
    assert "1 of 4 arrays" in first
    assert [line.strip() for line in lines] == [
        "of another shape there, initialised: embed/kernel (36, 32), there (36, 64)",
        "not there, initialised: blocks/down/bias; blocks/down/kernel",
        "only there, left out: blocks/up/bias; blocks/up/kernel",
        "it was trained with another encoder: its weights expect the outputs of that one",
        "its training images were made by --resize=pad --background=black, those of this dataset "
        "by --resize=center_crop --background=white",
    ]


def test_a_start_where_nothing_fits_is_refused(models):
    folder, _ = models
    with pytest.raises(ConfigError, match=r"init_from=.*run: none of its 4 arrays fits") as error:
        started(folder / "run", CONFIG, Foreign)
    assert "\n" not in str(error.value)


def test_a_start_that_is_not_there_or_damaged_gives_one_line(models, tmp_path):
    folder, _ = models
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    swapped, state = tmp_path / "swapped", f"checkpoints/{STEP}/state"
    shutil.copytree(folder / "run", swapped)
    shutil.rmtree(swapped / state)
    save(tmp_path / "other", CONFIG, scale=3)
    shutil.copytree(tmp_path / "other" / state, swapped / state)
    truncated = shutil.copytree(folder / "exported", tmp_path / "truncated")
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    for location, kind, message in (
        (tmp_path / "none", DataError, "config.train.init_from: no run and no exported model"),
        (tmp_path / "begun", CheckpointError, "config.train.init_from=.* no valid checkpoint"),
        (swapped, CheckpointError, "checkpoints/5 is damaged"),
        (truncated, DataError, "model.safetensors is damaged"),
    ):
        with pytest.raises(kind, match=message) as error:
            started(location)
        assert "\n" not in str(error.value)


def test_a_resumed_run_needs_no_start_and_keeps_its_name(small_config, tmp_path):
    """The inputs of a new run are refused where there is nothing to start from."""
    train = dataclasses.replace(small_config.train, init_from=str(tmp_path / "gone"))
    config = dataclasses.replace(small_config, train=train)
    with pytest.raises(DataError, match=r"config\.train\.init_from"):
        loop.open_inputs(config, tmp_path / "new")
    identity = loop.open_inputs(small_config, tmp_path / "new").identity
    save(tmp_path / "run", config, identity)
    assert loop.open_inputs(config, tmp_path / "run").changes == []
    with pytest.raises(CheckpointError, match=r"config\.train\.init_from is ''"):
        loop.open_inputs(small_config, tmp_path / "run")


def test_a_run_that_is_older_than_the_setting_has_no_start():
    saved = to_dict(CONFIG)
    del saved["train"]["init_from"]
    assert changed_fields(saved, CONFIG) == []
    with pytest.raises(DataError):
        open_start("nowhere")
