import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from fsdit.config import Config, DataConfig, MeshConfig
from fsdit.models.block import products
from fsdit.parallel import exchange, sharding


def config(data, fsdp) -> Config:
    return Config(data=DataConfig(batch_size=16), mesh=MeshConfig(data=data, fsdp=fsdp))


@pytest.mark.parametrize("layout", [(8, 1), (2, 4), (1, 8)])
def test_sharded_gradients_are_those_of_the_whole_batch(layout):
    """The model has a stacked layer and a matrix that are split, and a bias that is not."""
    mesh = sharding.make_mesh(config(*layout))
    rng = np.random.default_rng(0)
    params = {
        "blocks": {"kernel": rng.normal(size=(2, 64, 256)).astype(np.float32)},
        "out": {"kernel": rng.normal(size=(256, 64)).astype(np.float32), "bias": np.ones(64, "f")},
    }
    params = jax.tree.map(jnp.asarray, params)
    batch = jnp.asarray(rng.normal(size=(16, 64)), jnp.float32)

    def loss(params, batch):
        for kernel in params["blocks"]["kernel"]:
            batch = jnp.tanh(batch @ kernel)[:, :64]
        y = jnp.tile(batch, 4) @ params["out"]["kernel"] + params["out"]["bias"]
        return jnp.square(y).mean()

    def gradients(params, batch, step):
        value, found = jax.value_and_grad(loss)(params, batch)
        return (value, step), found

    shardings = sharding.state_shardings(mesh, params)
    split = shardings["blocks"]["kernel"].spec
    assert split == (PartitionSpec(None, "fsdp") if layout[1] > 1 else PartitionSpec())
    placed = jax.device_put(params, shardings)
    rows = jax.device_put(batch, sharding.batch_sharding(mesh))
    step = jnp.asarray(3)
    call = jax.jit(exchange.sharded_gradients(mesh, gradients, jnp.dtype("float32")))
    (value, same_step), found = call(placed, rows, step)
    expected, wanted = jax.value_and_grad(loss)(params, batch)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert same_step == 3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, wanted)
    for leaf, wanted in zip(*map(jax.tree.leaves, (found, shardings)), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim)


@pytest.mark.parametrize(
    ("layout", "columns"), [((8, 1), 192), ((2, 4), 192), ((1, 8), 192), ((2, 4), 129)]
)
def test_vectors_travel_to_kernels_that_are_split_by_columns(layout, columns):
    """129 columns do not divide over four devices, so these kernels are gathered."""
    mesh = sharding.make_mesh(config(*layout))
    rng = np.random.default_rng(0)
    shapes = {"kernel": (2, 128, columns), "bias": (2, columns)}
    own = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    params = {"blocks": {"modulation": own}, "in": rng.normal(size=(8, 128)).astype(np.float32)}
    params = jax.tree.map(jnp.asarray, params)
    batch = {
        "x": rng.normal(size=(16, 8)).astype(np.float32),
        "y": rng.normal(size=(2, 16, columns)).astype(np.float32).swapaxes(0, 1),
    }

    def loss(multiply, params, batch):
        kernel, bias = (params["blocks"]["modulation"][name] for name in ("kernel", "bias"))
        found = multiply(batch["x"] @ params["in"], kernel) + bias[:, None]
        return jnp.square(found.swapaxes(0, 1) - batch["y"]).mean()

    seen = []

    def gradients(params, batch, step):
        seen.append(params["blocks"]["modulation"]["kernel"].shape[-1])
        multiply = exchange.by_columns(products, columns)
        return jax.value_and_grad(functools.partial(loss, multiply))(params, batch)

    placed = jax.device_put(params, sharding.state_shardings(mesh, params))
    rows = jax.device_put(batch, sharding.batch_sharding(mesh))
    call = exchange.sharded_gradients(mesh, gradients, jnp.dtype("float32"), by_column=True)
    value, found = jax.jit(call)(placed, rows, jnp.asarray(0))
    expected, wanted = jax.value_and_grad(functools.partial(loss, products))(params, batch)
    assert seen == [columns // layout[1] if columns == 192 else columns]
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), found, wanted)
