"""Programs whose time follows from the published peaks, to hold the prediction against.

    product      (N, N) x (N, N) in bfloat16        2 N^3 / peak FLOP/s             (1)
    copy         of b bytes                         2 b / bandwidth                 (2)
    all-gather   over g chips, of b bytes from each (g - 1) b / ring                (3)
                 and the copy of its result         + 2 g b / bandwidth

They are known by arithmetic, not by a run: an error of zero says that schedules, traffic and
transfers are read as the peaks have it, not that a chip reaches its peaks. (3) is what the
prediction itself assumes of links, so its error shows only what else is in such a program: the
compiler copies the gathered array once, because it is the program's result.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from fsdit.parallel.chips import Chip
from fsdit.planning.schedule.core import Core

_SIDE = 8192  # N of the product: 5.6 ms on a v5e
_COPIED = (16384, 8192)  # float32: 0.5 GiB
_SHARD = (4096, 4096)  # bfloat16: 32 MiB


@dataclasses.dataclass(frozen=True)
class Check:
    """A calibration program. known: seconds by arithmetic. predicted: seconds."""

    name: str
    known: float
    predicted: float

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.predicted / self.known - 1


class Known(NamedTuple):
    """A calibration program before it is compiled.

    chips: how many it runs on. seconds: by arithmetic.
    """

    name: str
    chips: int
    seconds: float
    lowered: jax.stages.Lowered


def programs(devices: Sequence[jax.Device], chip: Chip, core: Core) -> Iterator[Known]:
    """The calibration programs for these devices."""
    one = SingleDeviceSharding(devices[0])
    square = jax.ShapeDtypeStruct((_SIDE, _SIDE), jnp.bfloat16, sharding=one)
    product = jax.jit(jnp.matmul).lower(square, square)
    yield Known("bfloat16 product", 1, product_seconds(_SIDE, chip), product)

    array = jax.ShapeDtypeStruct(_COPIED, jnp.float32, sharding=one)
    copied = jax.jit(jnp.copy).lower(array)
    yield Known("copy", 1, copy_seconds(array.size * 4, chip), copied)

    if len(devices) > 1:
        yield Known(
            "all-gather",
            len(devices),
            gather_seconds(_SHARD[0] * _SHARD[1] * 2, len(devices), chip, core),
            _all_gather(devices),
        )


def product_seconds(side: int, chip: Chip) -> float:
    """Least time of a product of two square matrices, equation 1."""
    return 2 * side**3 / chip.flops


def copy_seconds(size: int, chip: Chip) -> float:
    """Least time of a copy of `size` bytes within the main memory, equation 2."""
    return 2 * size / chip.bandwidth


def gather_seconds(size: int, group: int, chip: Chip, core: Core) -> float:
    """Least time of an all-gather of `size` bytes from each chip, equation 3."""
    return (group - 1) * size / core.ring + copy_seconds(group * size, chip)


def _all_gather(devices: Sequence[jax.Device]) -> jax.stages.Lowered:
    mesh = Mesh(np.array(devices), ("x",))
    gather = jax.shard_map(
        lambda shard: jax.lax.all_gather(shard, "x", tiled=True),
        mesh=mesh,
        in_specs=PartitionSpec("x"),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    shape = (len(devices) * _SHARD[0], _SHARD[1])
    split = NamedSharding(mesh, PartitionSpec("x"))
    return jax.jit(gather).lower(jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=split))
