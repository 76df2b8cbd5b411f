"""The device mesh, the sharding rules, and how rows of the host become global arrays.

The mesh has two named axes: `data` replicates parameters, `fsdp` shards them. The batch is
split over both. All rules of which array lies on which device are in this module;
`exchange` has what devices send each other in a train step.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PyTree, Shaped

from fsdit.config import Config
from fsdit.errors import ConfigError, divisors, multiples_near
from fsdit.parallel import backend

AXES = ("data", "fsdp")
BATCH = PartitionSpec(AXES)

# Parameters with fewer elements are replicated: gathering them would cost more in latency than
# sharding them saves in memory.
_MIN_SHARDED_SIZE = 2**14

# Parameters under this name are stacked by layer: axis 0 is the layer, over which a scan runs.
_STACKED = "blocks"

# Stacked kernels under this name are multiplied with one vector an image. It is less to send the
# vectors than to gather such a kernel, so it is split by columns (`exchange.by_columns`).
_BY_COLUMN = "modulation"


def axis_sizes(config: Config, num_devices: int) -> tuple[int, int]:
    """Sizes of the axes (data, fsdp).

    Raises ConfigError where they do not fit the devices, or the batch does not fit them.
    """
    sizes = [config.mesh.data, config.mesh.fsdp]
    if sizes == [-1, -1]:
        raise ConfigError("config.mesh.data and config.mesh.fsdp cannot both be -1")
    for i in (0, 1):
        if sizes[i] == -1:
            sizes[i] = max(num_devices // sizes[1 - i], 1)
    data, fsdp = sizes
    if data * fsdp != num_devices:
        raise ConfigError(
            f"config.mesh.data={config.mesh.data} x config.mesh.fsdp={config.mesh.fsdp} "
            f"does not lay out {num_devices} devices: {_laid_out(num_devices)}"
        )
    rows = num_devices * config.train.accumulate_steps
    if config.data.batch_size % rows:
        raise ConfigError(
            f"config.data.batch_size={config.data.batch_size} is not divisible by {rows}: "
            f"{num_devices} devices x config.train.accumulate_steps="
            f"{config.train.accumulate_steps}; {multiples_near(config.data.batch_size, rows)}"
        )
    return data, fsdp


def _laid_out(num_devices: int) -> str:
    """The meshes that fit, for the end of a message: "4 x 1, 2 x 2, 1 x 4 would"."""
    sizes = [f"{num_devices // n} x {n}" for n in divisors(num_devices)]
    return f"{', '.join(sizes[:8])} would"


def make_mesh(config: Config, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over the given devices, by default all devices of the job.

    Its axes are Auto: XLA's partitioner places the collectives, so that the model's code needs
    no names of axes. Raises ConfigError where mesh, batch or attention do not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    backend.check_attention(config, devices)
    sizes = axis_sizes(config, len(devices))
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array of which every device holds a complete copy."""
    return NamedSharding(mesh, PartitionSpec())


def gathered(mesh: Mesh, params: PyTree[Array]) -> PyTree[Array]:
    """The parameters, complete on every device; to be called where a jitted function begins.

    Of parameters that are split over devices, XLA's partitioner would else make every layer of
    every step exchange activations.
    """
    return jax.lax.with_sharding_constraint(params, replicated(mesh))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose axis 0 is split over all devices."""
    return NamedSharding(mesh, BATCH)


def state_shardings(
    mesh: Mesh, abstract: PyTree[jax.ShapeDtypeStruct | Array]
) -> PyTree[NamedSharding]:
    """Shardings of a training state: `fsdp` splits the first axis whose size it divides.

    Of the stacked kernels that `exchange.by_columns` multiplies with, it splits the last such
    axis. Optimizer state and EMA have the shapes and names of the parameters, and so their
    shardings.
    """

    def rule(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct | Array) -> NamedSharding:
        axes = range(1 if is_stacked(path) else 0, len(leaf.shape))
        axes = reversed(axes) if is_by_column(path) else axes
        return NamedSharding(mesh, _parameter_spec(mesh.shape["fsdp"], leaf.shape, axes))

    return jax.tree.map_with_path(rule, abstract)


def is_stacked(path: tuple[Any, ...]) -> bool:
    """Whether the parameter at this path is stacked by layer."""
    return _STACKED in _names(path)


def is_by_column(path: tuple[Any, ...]) -> bool:
    """Whether the parameter at this path is split by columns, if their number allows it."""
    return {_STACKED, _BY_COLUMN, "kernel"} <= _names(path)


def _names(path: tuple[Any, ...]) -> set[Any]:
    return {getattr(k, "key", None) for k in path}


def _parameter_spec(fsdp: int, shape: tuple[int, ...], axes: Iterable[int]) -> PartitionSpec:
    """Splits the first one of `axes` whose size `fsdp` divides.

    An early axis is best: the shares of the devices then lie one after another in memory, and
    gathering copies each into its place at once.
    """
    axes = [i for i in axes if shape[i] % fsdp == 0]
    if fsdp == 1 or math.prod(shape) < _MIN_SHARDED_SIZE or not axes:
        return PartitionSpec()
    return PartitionSpec(*[None] * axes[0], "fsdp")


def round_up(rows: int, num_devices: int) -> int:
    """The smallest multiple of `num_devices` that is at least `rows`.

    A batch of that many rows can be split evenly over the devices.
    """
    return math.ceil(rows / num_devices) * num_devices


def host_rows(mesh: Mesh, batch_size: int) -> Int[np.ndarray, "b"]:
    """The rows of a global batch that this process must supply, ascending.

    They are read off the sharding, so this holds for any order of devices in the mesh, and
    where two processes need the same rows.
    """
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    rows = [np.arange(batch_size)[index] for index in slices]
    return np.unique(np.concatenate(rows))


def global_batch(mesh: Mesh, batch_size: int) -> Callable[[PyTree], PyTree[jax.Array]]:
    """Returns a function from this process's rows (b, ...) to global arrays (batch_size, ...)."""
    sharding = batch_sharding(mesh)

    def put(rows: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, rows, (batch_size, *rows.shape[1:]))

    return lambda tree: jax.tree.map(put, tree)


def local_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over the devices of one process, for work that needs no other process.

    devices: by default those of this process.
    """
    mine = jax.local_devices() if devices is None else devices
    return Mesh(np.array(mine).reshape(-1, 1), AXES, axis_types=(AxisType.Auto,) * 2)


def row_table(
    mesh: Mesh, read: Callable[[int], PyTree[np.ndarray]], count: int
) -> PyTree[jax.Array]:
    """Arrays (N, ...) of the rows read(0) to read(count - 1), with axis 0 over all devices.

    N is `count` rounded up to a multiple of the devices; the last row fills the rest. Each
    process reads the rows of its own devices, and holds those of one device at a time.
    """
    sharding = batch_sharding(mesh)
    total = round_up(count, mesh.size)
    pieces = []
    for device, (span,) in sharding.addressable_devices_indices_map((total,)).items():
        mine = [read(min(i, count - 1)) for i in range(*span.indices(total))]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *mine)
        pieces.append(jax.device_put(stacked, device))

    def joined(*parts: jax.Array) -> jax.Array:
        shape = (total, *parts[0].shape[1:])
        return jax.make_array_from_single_device_arrays(shape, sharding, list(parts))

    return jax.tree.map(joined, *pieces)


def gather_rows(
    mesh: Mesh, table: Shaped[Array, "N ..."], rows: Int[Array, "B ..."]
) -> Shaped[Array, "B ..."]:
    """table[rows], where axis 0 of both and of the result is split over all devices.

    Each device looks up the rows of the whole batch that it holds, with zeros for the others,
    and a reduce-scatter adds them and leaves each device its own rows. Bits are added as
    integers, not as floats, so that rows arrive exactly as they were stored.
    """
    bits = {2: jnp.uint16, 4: jnp.uint32}[table.dtype.itemsize]

    def local(part: Array, wanted: Array) -> Array:
        wanted = jax.lax.all_gather(wanted, AXES, tiled=True)
        place = wanted - jax.lax.axis_index(AXES) * part.shape[0]
        held = (place >= 0) & (place < part.shape[0])
        found = part[jnp.clip(place, 0, part.shape[0] - 1)]
        held = held.reshape(*held.shape, *[1] * (found.ndim - held.ndim))
        found = jnp.where(held, jax.lax.bitcast_convert_type(found, bits), 0)
        mine = jax.lax.psum_scatter(found, AXES, tiled=True)
        return jax.lax.bitcast_convert_type(mine, part.dtype)

    return jax.shard_map(local, mesh=mesh, in_specs=(BATCH, BATCH), out_specs=BATCH)(table, rows)


def to_host(tree: PyTree[jax.Array]) -> PyTree[np.ndarray]:
    """Copies arrays to the host, as NumPy arrays.

    An array that lies on the devices of several processes is gathered on each of them, and all
    processes must call this. One that lies on this process's own devices is only copied.
    """
    if all(leaf.is_fully_addressable for leaf in jax.tree.leaves(tree)):
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
