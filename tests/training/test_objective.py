"""What the objective holds beside the loss, and that it depends on neither mesh nor batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsdit.models.spec import ModelSpec
from fsdit.parallel import exchange, sharding
from fsdit.training import optimizer
from fsdit.training import state as train_state
from fsdit.training.alignment import with_projection
from fsdit.training.objective import (
    TERMS,
    example_losses,
    noised,
    objective,
    routed,
    with_negatives,
)
from fsdit.training.step import compile_train_step
from tests.training.objectives import ALL, SIZE, batch_of, config_with

pytestmark = pytest.mark.medium

METRICS = ("loss", *TERMS, "grad_norm", "bin_losses")  # which tell two runs apart
NETS = with_projection(ModelSpec(config_with().model, SIZE, 1), config_with(**ALL))


@pytest.fixture(scope="module")
def params():
    """Parameters away from the start, at which the network predicts zero."""
    random, shapes = np.random.default_rng(0), NETS.abstract_params()
    return jax.tree.map(lambda s: jnp.asarray(random.normal(0, 0.1, s.shape), s.dtype), shapes)


@pytest.fixture(scope="module")
def found(params):
    """(objective of a batch, velocities u, predicted velocities v) of step 3, with every term."""
    config = config_with(**ALL)

    def all_three(params, batch):
        model = NETS.model(params)
        x_t, u, t = noised(NETS, config, batch, "train", 3)
        route = routed(NETS, config, batch, 3)
        condition = model.condition(batch["supports"])
        v, _ = model.velocity_in_training(x_t, t, condition, 1, route)
        return objective(NETS, config, params, with_negatives(config, batch), 3), u, v

    return jax.device_get(jax.jit(all_three)(params, batch_of(8)))


def test_the_contrastive_term_is_the_squared_distance_to_the_velocity_of_another_class(found):
    (total, loss, _, terms), u, v = found
    classes = batch_of(8)["class_id"]
    for i in range(8):
        away = np.mean((v[i].astype(np.float64) - u[i - 1]) ** 2)
        expected = 0 if classes[i] == classes[i - 1] else away
        np.testing.assert_allclose(terms["contrastive"][i], expected, rtol=1e-5)
        np.testing.assert_allclose(loss[i], np.mean((v[i].astype(np.float64) - u[i]) ** 2), 1e-5)
    expected = loss - 0.1 * terms["contrastive"] + 0.5 * terms["alignment"]
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert np.count_nonzero(terms["contrastive"]) == 7 and terms["alignment"].all()


def test_the_objective_without_terms_is_the_loss_bitwise(params):
    config, batch = config_with(dropout=0.5), batch_of(8)
    found = jax.jit(lambda p, b: objective(NETS, config, p, with_negatives(config, b), 3))(
        params, batch
    )
    loss, t = jax.jit(lambda p, b: example_losses(NETS, config, p, b, "train", 3, 0.5))(
        params, batch
    )
    np.testing.assert_array_equal(found.total, loss)
    np.testing.assert_array_equal(found.t, t)
    assert found.terms == {}


@pytest.mark.parametrize("devices", [2, pytest.param(4, marks=pytest.mark.large)])
def test_terms_do_not_depend_on_the_mesh(params, found, devices):
    config = config_with(**ALL)
    mesh = sharding.make_mesh(config, jax.devices()[:devices])

    def means(params, rows, step):
        ours = objective(NETS, config, params, rows, step)
        return jax.tree.map(jnp.mean, (ours.total, ours.terms)), params

    function = exchange.sharded_gradients(mesh, means, jnp.dtype("float32"))
    placed = jax.device_put(batch_of(8), sharding.batch_sharding(mesh))
    actual = jax.jit(lambda p, b: function(p, with_negatives(config, b), jnp.int32(3))[0])(
        params, placed
    )
    jax.tree.map(
        lambda mean, each: np.testing.assert_allclose(mean, np.mean(each), rtol=1e-5),
        actual,
        (found[0].total, found[0].terms),
    )


def trained(config, devices, steps, state=None):
    """(state as NumPy, metrics of each step) after so many more steps, on so many devices."""
    tx = optimizer.transformation(config.optimizer)
    mesh = sharding.make_mesh(config, jax.devices()[:devices])
    template = train_state.abstract(NETS, tx, mesh)
    step = compile_train_step(NETS, config, tx, mesh, template)
    if state is None:
        state = train_state.init(NETS, tx, config.seed, template)
    else:
        state = jax.tree.map(lambda leaf, t: jax.device_put(leaf, t.sharding), state, template)
    metrics, rows = [], config.data.batch_size
    for _ in range(steps):
        batch = batch_of(rows, start=rows * int(state.step))
        placed = jax.device_put(batch, sharding.batch_sharding(mesh))
        state, row = step(state, placed)
        metrics.append(jax.device_get(row))
    return jax.device_get(state), metrics


def test_patches_are_routed_by_step_and_index_not_by_place():
    config = config_with(routing=0.5)
    spec = ModelSpec(config.model, SIZE, 1)

    @jax.jit
    def kept(index, step):
        return routed(spec, config, {"index": index}, step).kept

    index, order = np.arange(6, dtype=np.uint32), np.array([4, 0, 5, 3, 2, 1])
    found = np.asarray(kept(index, 3))
    assert found.shape == (6, 8) and all(len({*row}) == 8 for row in found)
    np.testing.assert_array_equal(kept(index[order], 3), found[order])
    assert not np.array_equal(kept(index, 4), found)


@pytest.mark.parametrize(("share", "skipping"), [(0.01, 0), (0.3, 4), (0.5, 8), (0.99999, 14)])
def test_an_even_number_of_patches_skips_and_some_are_left(share, skipping):
    config = config_with(routing=share)
    batch = {"index": jnp.zeros(2, jnp.uint32)}
    route = routed(ModelSpec(config.model, SIZE, 1), config, batch, 0)
    assert route.kept.shape == (2, 16 - skipping)


@pytest.fixture(scope="module")
def whole():
    """A run on one device."""
    return trained(config_with(**ALL), 1, 4)


@pytest.mark.large
def test_steps_do_not_depend_on_devices_or_micro_batches(whole):
    _, expected = whole
    for devices, settings in ((2, {}), (1, {"accumulate_steps": 2})):
        _, found = trained(config_with(**ALL, **settings), devices, 2)
        for name in METRICS:
            np.testing.assert_allclose(
                found[1][name], expected[1][name], rtol=1e-4, atol=1e-6, err_msg=name
            )


@pytest.mark.large
def test_a_resumed_run_with_every_term_is_bitwise_the_undisturbed_one(whole):
    state, metrics = whole
    half, first = trained(config_with(**ALL), 1, 2)
    resumed, second = trained(config_with(**ALL), 1, 2, half)
    jax.tree.map(np.testing.assert_array_equal, (resumed, first + second), (state, metrics))
