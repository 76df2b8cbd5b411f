import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsdit.config import MeshConfig
from fsdit.data import pipeline
from fsdit.models.spec import ModelSpec
from fsdit.parallel import sharding
from fsdit.training import optimizer
from fsdit.training import state as train_state
from fsdit.training.checkpoints import store
from fsdit.training.objective import example_losses
from fsdit.training.step import all_finite, make_train_step, time_bins
from tests.conftest import one_block

pytestmark = pytest.mark.medium


def run_steps(config, steps, first=0, state=None):
    """States after each step (as NumPy) and the metrics of each.

    first: global index of the first example. state: to go on from, instead of a fresh one.
    """
    spec = ModelSpec(config.model, 24, 1)
    # Two devices where the configuration asks for no mesh.
    mesh = sharding.make_mesh(config, jax.devices()[:2] if config.mesh == MeshConfig() else None)
    tx = optimizer.transformation(config.optimizer)
    template = train_state.abstract(spec, tx, mesh, len(config.train.all_decays))
    if state is None:
        state = train_state.init(spec, tx, config.seed, template)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, template)
    step = jax.jit(
        make_train_step(spec, config, tx, mesh),
        in_shardings=(shardings, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, sharding.replicated(mesh)),
    )
    size = config.data.batch_size
    batches = pipeline.host_batches(
        pipeline.training_examples(config),
        sharding.host_rows(mesh, size),
        size,
        start=first,
        num_batches=steps,
        config=config.data,
        place=sharding.global_batch(mesh, size),
    )
    states, metrics = [jax.device_get(state)], []
    for batch in batches:
        state, row = step(state, batch)
        states.append(jax.device_get(state))
        metrics.append(jax.device_get(row))
    return states, metrics


@pytest.fixture
def config(small_config):
    return one_block(small_config, hidden_size=64)  # wide enough that fsdp shards some kernels


@functools.cache
def four_steps(config):
    """The states and metrics of four steps, made once."""
    return run_steps(config, 4)


@pytest.mark.parametrize(("data", "fsdp"), [(4, 2), pytest.param(1, 8, marks=pytest.mark.large)])
def test_losses_do_not_depend_on_the_mesh(config, data, fsdp):
    _, expected = four_steps(config)
    _, actual = run_steps(dataclasses.replace(config, mesh=MeshConfig(data=data, fsdp=fsdp)), 4)
    expected, actual = ([m["loss"] for m in rows] for rows in (expected, actual))
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_accumulated_micro_batches_equal_one_batch(config):
    whole, metrics = run_steps(config, 2)
    train = dataclasses.replace(config.train, accumulate_steps=2)
    parts, metrics_parts = run_steps(dataclasses.replace(config, train=train), 2)
    for a, b in zip(metrics, metrics_parts, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
        np.testing.assert_allclose(a["bin_counts"], b["bin_counts"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), whole[-1].ema, parts[-1].ema
    )


def test_ema_averages_the_updated_parameters(config):
    states, _ = four_steps(config)
    expected = states[0].params["embed"]["kernel"].astype(np.float64)
    for step, state in enumerate(states[1:]):
        decay = min(config.train.ema_decay, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * state.params["embed"]["kernel"]
    np.testing.assert_allclose(states[-1].ema["embed"]["kernel"], expected, rtol=1e-5, atol=1e-7)


# Below those that equation 2 begins with, so that all averages differ after two steps.
DECAYS = (0.05, 0.12, 0.17)


def with_decays(config):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, ema_decays=DECAYS))


@pytest.mark.large
def test_each_further_average_has_its_decay_and_changes_nothing_else(config):
    one, metrics = four_steps(config)
    states, metrics_many = four_steps(with_decays(config))
    jax.tree.map(np.testing.assert_array_equal, metrics_many, metrics)
    for field in ("params", "ema", "opt_state"):
        found, expected = getattr(states[-1], field), getattr(one[-1], field)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert type(one[-1]) is train_state.TrainState
    for decay, further in zip(DECAYS, states[-1].further, strict=True):
        expected = jax.tree.map(np.float64, states[0].params)
        for step, state in enumerate(states[1:]):
            d = min(decay, (1 + step) / (10 + step))
            expected = jax.tree.map(lambda e, p, d=d: d * e + (1 - d) * p, expected, state.params)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), further, expected
        )


@pytest.mark.large
def test_further_averages_resume_bitwise_from_a_checkpoint(tmp_path, config):
    config = with_decays(config)
    states, _ = four_steps(config)
    spec, tx = ModelSpec(config.model, 24, 1), optimizer.transformation(config.optimizer)
    mesh = sharding.make_mesh(config, jax.devices()[:2])
    template = train_state.abstract(spec, tx, mesh, 1 + len(DECAYS))
    placed = jax.device_put(states[2], jax.tree.map(lambda leaf: leaf.sharding, template))
    writer = store.Checkpoints(tmp_path, config, {}, mesh, 0)
    writer.save(placed, 2, 2 * config.data.batch_size, {})
    writer.finish()
    restored = store.restore(tmp_path, template, set_aside=True)
    resumed, _ = run_steps(config, 2, restored.next_index, restored.state)
    jax.tree.map(np.testing.assert_array_equal, resumed[-1], states[-1])
    averages = [jax.tree.leaves(average) for average in resumed[-1].averages]
    assert len({np.concatenate([a.ravel() for a in each]).tobytes() for each in averages}) == 4


def test_a_nonfinite_step_changes_nothing_and_is_counted(config):
    exploding = dataclasses.replace(
        config.optimizer, peak_learning_rate=1e38, warmup_steps=0, clip_norm=1.0
    )
    states, metrics = run_steps(dataclasses.replace(config, optimizer=exploding), 3)
    assert np.isfinite(metrics[0]["loss"]) and not np.isfinite(metrics[1]["loss"])
    for name in ("params", "ema", "opt_state"):
        before, after = getattr(states[1], name), getattr(states[3], name)
        jax.tree.map(np.testing.assert_array_equal, before, after)
    assert [int(s.nonfinite_in_row) for s in states] == [0, 0, 1, 2]
    assert [int(s.step) for s in states] == [0, 1, 2, 3]


# Values that give a finite loss and gradient, but no finite update. Settings refuse them;
# schedules may reach them.
NOT_FINITE = {
    "rate": ("optimizer.peak_learning_rate", 1e39),
    "optimizer": ("optimizer.b2", math.nan),
    "average": ("train.ema_decay", math.nan),
}


@pytest.mark.parametrize(
    "case", ["average", *(pytest.param(c, marks=pytest.mark.large) for c in ("rate", "optimizer"))]
)
def test_an_update_that_is_not_finite_changes_nothing_and_is_counted(config, case):
    (section, field), value = NOT_FINITE[case][0].split("."), NOT_FINITE[case][1]
    changes = {"warmup_steps": 0} if section == "optimizer" else {}
    changed = dataclasses.replace(getattr(config, section), **changes)
    object.__setattr__(changed, field, value)
    states, metrics = run_steps(dataclasses.replace(config, **{section: changed}), 2)
    assert all(np.isfinite(row["loss"]) and np.isfinite(row["grad_norm"]) for row in metrics)
    for name in ("params", "ema", "opt_state"):
        before, after = getattr(states[0], name), getattr(states[2], name)
        jax.tree.map(np.testing.assert_array_equal, before, after)
    assert [int(s.nonfinite_in_row) for s in states] == [0, 1, 2]


@pytest.mark.parametrize("leaves", [1, 41, 47, 82, 83])  # n (1 / n) < 1 in float32, but for 1
def test_finite_arrays_are_finite_whatever_their_number(leaves):
    finite = jax.jit(all_finite)
    arrays = [jnp.zeros(1)] * leaves
    assert finite(arrays)
    assert not finite([*arrays[1:], jnp.full(1, jnp.nan)])


def test_noise_and_loss_follow_the_index_not_the_place(small_config):
    spec = ModelSpec(small_config.model, 24, 1)
    params = jax.jit(lambda: spec.init(0))()
    read = pipeline.training_examples(small_config)
    batch = jax.tree.map(lambda *rows: np.stack(rows), *[read(i) for i in range(8)])
    order = np.array([3, 1, 7, 0, 2, 6, 5, 4])
    shuffled = jax.tree.map(lambda a: a[order], batch)

    @jax.jit
    def losses(b):
        return example_losses(spec, small_config, params, b, "train", 5, dropout=0.5)

    expected, times = losses(batch)
    actual, shuffled_times = losses(shuffled)
    np.testing.assert_array_equal(shuffled_times, times[order])
    np.testing.assert_allclose(actual, expected[order], rtol=1e-5)


def test_time_bins_sum_losses_by_tenths():
    losses, t = jnp.array([1.0, 2.0, 4.0, 8.0]), jnp.array([0.05, 0.01, 0.95, 0.999])
    sums, counts = time_bins(losses, t, jnp.array([1.0, 1.0, 1.0, 0.0]))
    np.testing.assert_allclose(sums, [3, 0, 0, 0, 0, 0, 0, 0, 0, 4])
    np.testing.assert_allclose(counts, [2, 0, 0, 0, 0, 0, 0, 0, 0, 1])


def test_learning_rate_warms_up_and_decays(small_config):
    config = dataclasses.replace(
        small_config.optimizer,
        peak_learning_rate=1e-4,
        final_learning_rate=1e-6,
        warmup_steps=5_000,
    )
    rate = optimizer.learning_rate(config, 200_000)
    middle = 1e-6 + (1e-4 - 1e-6) / 2
    steps = (0, 2_500, 5_000, 102_500, 200_000)
    np.testing.assert_allclose(
        [rate(s) for s in steps], [0, 5e-5, 1e-4, middle, 1e-6], rtol=1e-4, atol=1e-12
    )
    short = [float(optimizer.learning_rate(config, 100)(s)) for s in range(101)]
    assert max(short) == pytest.approx(1e-4) and np.argmax(short) == 10
    assert short[-1] == pytest.approx(1e-6, rel=1e-3)


def test_update_equals_adamw_with_clipping(small_config):
    config = dataclasses.replace(small_config.optimizer, weight_decay=0.1, clip_norm=1.0)
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=(4,))}
    tx = optimizer.transformation(config)
    state = tx.init(jax.tree.map(jnp.asarray, params))
    mean, square = ({k: np.zeros_like(v) for k, v in params.items()} for _ in range(2))
    for t in range(1, 4):
        grads = {k: rng.normal(size=v.shape) * 3 for k, v in params.items()}
        updates, state = tx.update(grads, state, params)
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        for k, g in grads.items():
            clipped = g / max(norm, 1.0)
            mean[k] = config.b1 * mean[k] + (1 - config.b1) * clipped
            square[k] = config.b2 * square[k] + (1 - config.b2) * clipped**2
            step = mean[k] / (1 - config.b1**t)
            step = step / (np.sqrt(square[k] / (1 - config.b2**t)) + config.eps)
            decay = config.weight_decay * params[k] if k == "kernel" else 0.0
            np.testing.assert_allclose(updates[k], step + decay, rtol=2e-4, atol=1e-6)


def test_weight_decay_acts_on_matrices_only(small_config):
    params = ModelSpec(small_config.model, 24, 1).abstract_params()
    mask = optimizer.matrices(params)
    assert mask["blocks"]["mlp"]["up"] == {"bias": False, "kernel": True}
    assert mask["conditioner"]["null"] is False and mask["conditioner"]["latents"] is False


def test_state_is_created_with_its_shardings(small_config):
    config = dataclasses.replace(
        small_config,
        model=dataclasses.replace(small_config.model, hidden_size=64),
        mesh=MeshConfig(data=2, fsdp=4),
    )
    spec, tx = ModelSpec(config.model, 24, 1), optimizer.transformation(config.optimizer)
    template = train_state.abstract(spec, tx, sharding.make_mesh(config))
    state = train_state.init(spec, tx, 0, template)
    jax.tree.map(lambda leaf, t: _assert_same_sharding(leaf, t), state, template)
    kernel = state.ema["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4


def _assert_same_sharding(leaf, template):
    assert leaf.sharding == template.sharding
