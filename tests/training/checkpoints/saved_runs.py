"""Workdirs with checkpoints, made without training, and ways to damage one."""

import dataclasses
import functools
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fsdit.config import MeshConfig
from fsdit.data.layout import read_dataset_info
from fsdit.data.run_dataset import facts_of
from fsdit.features.frozen import open_networks
from fsdit.models.spec import ModelSpec
from fsdit.parallel import sharding
from fsdit.training import optimizer
from fsdit.training import state as train_state
from fsdit.training.checkpoints import store
from fsdit.training.telemetry.running import Running

IDENTITY = {"dataset": "a", "encoder": "b", "codec": "c"}


RUNNING = dataclasses.asdict(Running.fresh())


def mesh_of(config):
    """The mesh that the configuration asks for, or one of two devices where it asks for none."""
    devices = jax.devices()[:2] if config.mesh == MeshConfig() else None
    return sharding.make_mesh(config, devices)


class FewArrays(ModelSpec):
    """Four parameters instead of sixty, for tests of files: they are saved and restored alike."""

    def init(self, seed):
        key = jax.random.key(seed)
        return {
            "embed": {"kernel": jax.random.normal(key, (36, 64)), "bias": jnp.ones(64)},
            # Large enough that fsdp shards it.
            "blocks": {"up": {"kernel": jax.random.normal(key, (2, 64, 256)), "bias": jnp.ones(2)}},
        }


def template_of(config, model=ModelSpec):
    spec, tx = model(config.model, 24, 1), optimizer.transformation(config.optimizer)
    return spec, tx, train_state.abstract(spec, tx, mesh_of(config), len(config.train.all_decays))


@functools.cache
def fresh_state(config, model=ModelSpec):
    """The state of a new run, made once."""
    spec, tx, template = template_of(config, model)
    return train_state.init(spec, tx, 0, template)


def at_step(state, step):
    """The state with another count of steps, laid out as before."""
    return state.replace(step=jax.device_put(np.int32(step), state.step.sharding))


def saved_run(workdir, config, steps=(5, 10), values=None, model=ModelSpec):
    """A workdir with a checkpoint at each of `steps`, all of different content.

    values: scores of some steps, by step: one for each average. model: FewArrays where no
    network reads the checkpoints.
    """
    state = fresh_state(config, model)
    writer = store.Checkpoints(workdir, config, IDENTITY, mesh_of(config), 0)
    states = {}
    for step in steps:
        state = jax.tree.map(lambda a, s=step: (a + s).astype(a.dtype), state)
        state = at_step(state, step)
        states[step] = jax.device_get(state)
        if step in (values or {}):
            writer.selection.consider(step, *np.atleast_1d(values[step]).tolist())
        writer.save(state, step, step * 16, {**RUNNING, "loss_average": 1 / step})
    writer.finish()
    return states


def assert_equal(restored, expected):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), expected)


def _flip_largest(folder: Path):
    file = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    for i in range(len(data) // 4, len(data), len(data) // 7):
        data[i] ^= 0x10
    file.write_bytes(data)


def _truncate_largest(folder: Path):
    file = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _empty(folder: Path):
    shutil.rmtree(folder)
    folder.mkdir()


def _swap_state(folder: Path):
    """Replace the state by that of step 5, which loads without an error."""
    shutil.rmtree(folder / "state")
    shutil.copytree(folder.parent / "5" / "state", folder / "state")


DAMAGES = {
    "flipped bits": _flip_largest,
    "truncated file": _truncate_largest,
    "empty directory": _empty,
    "no state": lambda folder: shutil.rmtree(folder / "state"),
    "no meta": lambda folder: shutil.rmtree(folder / "meta"),
    "cut meta": lambda folder: (folder / "meta" / "metadata").write_text('{"config": {'),
    "state of another step": _swap_state,
}


def save_run(workdir, config):
    """Save a checkpoint of step 5; its EMA is not its parameters, and its velocity is not zero."""
    info = read_dataset_info(config.data.dataset_dir)
    spec, frozen = open_networks(config, info)
    mesh = mesh_of(config)
    tx = optimizer.transformation(config.optimizer)
    state = train_state.init(spec, tx, 0, train_state.abstract(spec, tx, mesh))
    random = np.random.default_rng(1)
    leaves, tree = jax.tree.flatten(state.ema)
    moved = [
        jax.device_put(
            leaf + 0.1 * random.normal(size=leaf.shape).astype(leaf.dtype), leaf.sharding
        )
        for leaf in leaves
    ]
    step = jax.device_put(np.int32(5), state.step.sharding)
    state = state.replace(ema=tree.unflatten(moved), step=step)
    identity = {"dataset": "any", **frozen.weights}
    writer = store.Checkpoints(workdir, config, identity, mesh, 0, dataset=facts_of(info))
    writer.save(state, 5, 80, {})
    writer.finish()
    return jax.device_get(state)
