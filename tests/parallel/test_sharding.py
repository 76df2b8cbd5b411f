import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from fsdit.config import Config, DataConfig, MeshConfig, TrainConfig
from fsdit.errors import ConfigError
from fsdit.parallel import sharding


def config(data, fsdp, batch_size=16, accumulate_steps=1) -> Config:
    return Config(
        data=DataConfig(batch_size=batch_size),
        mesh=MeshConfig(data=data, fsdp=fsdp),
        train=TrainConfig(accumulate_steps=accumulate_steps),
    )


def abstract(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.fixture
def mesh():
    return sharding.make_mesh(config(2, 4))


@pytest.mark.parametrize(
    ("axes", "devices", "sizes"),
    [
        ((-1, 1), 8, (8, 1)),
        ((1, -1), 8, (1, 8)),
        ((-1, 4), 8, (2, 4)),
        ((2, -1), 8, (2, 4)),
        ((2, 4), 8, (2, 4)),
        ((-1, 1), 1, (1, 1)),
    ],
)
def test_minus_one_takes_the_devices_that_are_left(axes, devices, sizes):
    assert sharding.axis_sizes(config(*axes), devices) == sizes


@pytest.mark.parametrize("axes", [(3, 2), (-1, 3), (-1, 16), (8, 2), (1, 1)])
def test_axes_that_do_not_multiply_to_the_devices_are_refused(axes):
    message = rf"data={axes[0]} x config.mesh.fsdp={axes[1]} does not lay out 8 devices"
    with pytest.raises(ConfigError, match=message):
        sharding.axis_sizes(config(*axes), 8)


def test_two_axes_cannot_both_take_what_is_left():
    with pytest.raises(ConfigError, match="cannot both be -1"):
        sharding.axis_sizes(config(-1, -1), 8)


@pytest.mark.parametrize(("batch_size", "accumulate_steps"), [(12, 1), (24, 2), (4, 1)])
def test_a_batch_that_does_not_divide_is_refused(batch_size, accumulate_steps):
    message = rf"batch_size={batch_size} is not divisible by {8 * accumulate_steps}"
    with pytest.raises(ConfigError, match=message):
        sharding.axis_sizes(config(-1, 1, batch_size, accumulate_steps), 8)


def test_the_mesh_spans_all_devices(mesh):
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4}
    assert sorted(d.id for d in mesh.devices.flat) == list(range(8))


@pytest.mark.parametrize(
    ("name", "shape", "spec"),
    [
        ("head", (256, 128), ("fsdp",)),
        ("head", (128, 256), ("fsdp",)),
        ("head", (130, 256, 4), (None, "fsdp")),
        ("head", (1023, 64), (None, "fsdp")),  # the first axis is not divisible
        ("head", (129, 257), ()),
        ("head", (127, 128), ()),  # too small
        ("head", (128, 128), ("fsdp",)),  # just large enough
        ("head", (), ()),
        ("blocks", (12, 64, 256), (None, "fsdp")),
        ("blocks", (512, 64, 32), (None, "fsdp")),
        ("blocks", (512, 33, 33), ()),
        ("blocks", (2**16,), ()),
        ("modulation", (64, 256), ("fsdp",)),
    ],
)
def test_the_first_divisible_axis_is_sharded_but_never_the_layers(mesh, name, shape, spec):
    shardings = sharding.state_shardings(mesh, {name: {"kernel": abstract(*shape)}})
    assert shardings[name]["kernel"].spec == PartitionSpec(*spec)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((2, 64, 192), (None, None, "fsdp")),
        ((2, 128, 129), (None, "fsdp")),  # the columns are not divisible
        ((2, 64, 64), ()),  # too small
    ],
)
def test_modulations_of_layers_are_split_by_columns(mesh, shape, spec):
    abstracts = {"kernel": abstract(*shape), "bias": abstract(512, 64)}
    shardings = sharding.state_shardings(mesh, {"blocks": {"modulation": abstracts}})
    assert shardings["blocks"]["modulation"]["kernel"].spec == PartitionSpec(*spec)
    assert shardings["blocks"]["modulation"]["bias"].spec == PartitionSpec(None, "fsdp")


def test_without_an_fsdp_axis_all_is_replicated():
    mesh = sharding.make_mesh(config(8, 1))
    shardings = sharding.state_shardings(mesh, {"head": abstract(256, 256)})
    assert shardings["head"].spec == PartitionSpec()


def test_the_optimizer_shards_like_its_parameters(mesh):
    params = {"blocks": {"kernel": abstract(512, 64, 32)}, "head": abstract(256, 128)}
    state = jax.eval_shape(optax.adam(1e-3).init, params)
    expected = sharding.state_shardings(mesh, params)
    adam = sharding.state_shardings(mesh, state)[0]
    assert adam.mu == adam.nu == expected
    assert adam.count.spec == PartitionSpec()


def test_a_sharded_parameter_is_held_in_parts(mesh):
    placement = sharding.state_shardings(mesh, {"head": abstract(256, 128)})["head"]
    placed = jax.device_put(jnp.zeros((256, 128)), placement)
    assert {s.data.shape for s in placed.addressable_shards} == {(64, 128)}


@pytest.mark.parametrize("axes", [(8, 1), (2, 4), (1, 8)])
def test_one_process_supplies_all_rows_in_order(axes):
    rows = sharding.host_rows(sharding.make_mesh(config(*axes)), 16)
    np.testing.assert_array_equal(rows, np.arange(16))


@pytest.mark.parametrize("axes", [(8, 1), (2, 4), (1, 8)])
def test_host_rows_become_one_global_batch_split_over_all_devices(axes):
    mesh = sharding.make_mesh(config(*axes))
    host = {
        "target": np.arange(16 * 6, dtype=np.uint8).reshape(16, 2, 3),
        "index": np.arange(16, dtype=np.uint32),
    }
    batch = sharding.global_batch(mesh, 16)(host)
    for name, rows in host.items():
        assert batch[name].sharding.is_equivalent_to(sharding.batch_sharding(mesh), rows.ndim)
        np.testing.assert_array_equal(batch[name], rows, strict=True)
        shards = batch[name].addressable_shards
        assert len(shards) == 8
        for shard in shards:
            np.testing.assert_array_equal(shard.data, rows[shard.index], strict=True)
            assert shard.data.shape[0] == 2


def test_to_host_brings_a_sharded_tree_back(mesh):
    rows = np.arange(32, dtype=np.float32).reshape(16, 2)
    back = sharding.to_host(sharding.global_batch(mesh, 16)({"x": rows}))
    assert type(back["x"]) is np.ndarray
    np.testing.assert_array_equal(back["x"], rows, strict=True)


@pytest.mark.parametrize("shape", [(8, 1), (2, 4)])
def test_rows_of_a_table_over_all_devices_arrive_as_they_were_stored(shape):
    """Bits are kept, also of NaN and negative zero, though 19 rows do not divide over 8 devices."""
    mesh = sharding.make_mesh(config(*shape))
    rng = np.random.default_rng(0)
    rows = {
        "half": rng.integers(0, 2**16, (19, 3, 2), np.uint16).view(np.float16),
        "single": np.where(rng.random((19, 5)) < 0.5, np.float32(-0.0), np.float32(np.nan)),
    }
    table = sharding.row_table(mesh, lambda i: {name: a[i] for name, a in rows.items()}, 19)
    assert {len(leaf.sharding.device_set) for leaf in table.values()} == {8}
    wanted = rng.integers(0, 19, (16, 4)).astype(np.int32)
    gather = jax.jit(
        lambda t, w: jax.tree.map(lambda leaf: sharding.gather_rows(mesh, leaf, w), t),
        out_shardings=sharding.batch_sharding(mesh),
    )
    found = jax.device_get(gather(table, sharding.global_batch(mesh, 16)(wanted)))
    for name, stored in rows.items():
        assert found[name].tobytes() == stored[wanted].tobytes()
