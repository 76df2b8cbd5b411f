"""The train step and checkpoints of models with variants of their blocks."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from fsdit.config import Config, DataConfig, MeshConfig, ModelConfig, OptimizerConfig
from fsdit.models.encoder import FeatureShape
from fsdit.models.spec import ModelSpec
from fsdit.parallel import sharding
from fsdit.training import optimizer
from fsdit.training import state as train_state
from fsdit.training.checkpoints import store
from fsdit.training.step import compile_train_step
from tests.models.variants import ALL, each_variant
from tests.training.checkpoints.saved_runs import IDENTITY, RUNNING

pytestmark = [pytest.mark.medium, pytest.mark.several_devices]

BATCH, FEATURES = 4, FeatureShape(8, (2, 2))


def config_of(settings, method="adamw") -> Config:
    # Enough heads and patches that keys and values of the context are made (`is_few`).
    small = {"hidden_size": 64, "depth": 2, "num_heads": 8, "patch_size": 2, "num_latents": 0}
    return Config(
        data=DataConfig(batch_size=BATCH),
        model=ModelConfig(**small | {"dtype": "float32"} | settings),
        optimizer=OptimizerConfig(method=method, peak_learning_rate=1e-2, warmup_steps=0),
        mesh=MeshConfig(data=1, fsdp=2),
    )


CASES = [*each_variant(), pytest.param(ALL, id="all", marks=pytest.mark.large)]


class Run:
    """A train step on two devices, and its batches by step."""

    def __init__(self, config: Config):
        self.config, self.mesh = config, sharding.make_mesh(config, jax.devices()[:2])
        self.spec = ModelSpec(config.model, 8, 1, features=FEATURES)
        tx = optimizer.transformation(config.optimizer)
        self.template = train_state.abstract(self.spec, tx, self.mesh)
        self.start = lambda: train_state.init(self.spec, tx, 0, self.template)
        self.step = compile_train_step(self.spec, config, tx, self.mesh, self.template)

    def steps(self, state, first, last):
        for step in range(first, last):
            state, metrics = self.step(state, self._batch(step))
            assert np.isfinite(metrics["loss"])
        return state

    def _batch(self, step):
        rng = np.random.default_rng(step)
        rows = {
            "index": np.arange(BATCH, dtype=np.uint32),
            "class_id": np.zeros(BATCH, np.int32),
            "target": rng.integers(0, 256, (BATCH, 8, 8, 1), np.uint8),
            "supports": {
                "pooled": rng.normal(size=(BATCH, 3, 8)).astype(np.float32),
                "tokens": rng.normal(size=(BATCH, 3, 4, 8)).astype(np.float32),
            },
        }
        return sharding.global_batch(self.mesh, BATCH)(rows)


@pytest.mark.parametrize("settings", CASES)
def test_every_parameter_learns_and_a_resumed_run_is_the_same_to_the_bit(tmp_path, settings):
    run = Run(config_of(settings))
    state = run.steps(run.start(), 0, 2)
    writer = store.Checkpoints(tmp_path, run.config, IDENTITY, run.mesh, 0)
    writer.save(state, 2, 2 * BATCH, RUNNING)
    writer.finish()
    expected = jax.device_get(run.steps(state, 2, 4))
    restored = store.restore(tmp_path, run.template, set_aside=False)
    found = jax.device_get(run.steps(restored.state, 2, 4))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    start = jax.device_get(run.start().params)
    still = jax.tree.map(lambda a, b: np.array_equal(a, b), start, found.params)
    still["blocks"]["cross"]["key"].pop("bias")  # adds the same to all logits of a query
    assert not any(jax.tree.leaves(still)), still


@pytest.mark.large
@pytest.mark.parametrize("settings", CASES)
def test_unrolled_layers_and_other_meshes_train_alike(settings):
    scanned = Run(config_of(settings))
    expected = jax.device_get(scanned.steps(scanned.start(), 0, 3).params)
    other = Run(config_of(settings | {"scan_layers": False, "remat": "dots"}))
    found = jax.device_get(other.steps(other.start(), 0, 3).params)
    pairs = zip(*map(jax.tree.leaves, (found, expected)), strict=True)
    # AdamW divides by the size of a gradient, so that a gradient of zero is nothing but rounding.
    close = [np.mean(np.abs(a - b) < 1e-3) for a, b in pairs]
    assert min(close) > 0.9


def test_muon_updates_matrices_and_fsdp_splits_them():
    run = Run(config_of(ALL, "muon"))
    methods = optimizer.methods(run.template.params)
    kernels = {"muon": [], "adamw": []}
    for path, method in jax.tree.leaves_with_path(methods):
        kernels[method].append("/".join(part.key for part in path))
    assert sorted(kernels["muon"]) == sorted(
        [
            *(f"blocks/attention/{n}/kernel" for n in ("qkv", "out")),
            *(f"blocks/cross/{n}/kernel" for n in ("query", "key", "value", "out")),
            *(f"blocks/mlp/{n}/kernel" for n in ("gate", "up", "down")),
            "modulation/kernel",
        ]
    )
    assert jax.tree.leaves(optimizer.matrices(run.template.params)) == [
        path.endswith("kernel")
        for path in ("/".join(k.key for k in p) for p, _ in jax.tree.leaves_with_path(methods))
    ]
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, run.template.params)
    assert specs["modulation"]["kernel"] == PartitionSpec("fsdp")
    assert specs["blocks"]["modulation"]["offset"] == PartitionSpec()
