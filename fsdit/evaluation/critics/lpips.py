"""LPIPS, a perceptual distance, between the images of an episode (Zhang et al., 1801.03924)."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, UInt8

from fsdit.errors import DataError
from fsdit.models.pretrained import lpips
from fsdit.parallel import sharding

# Pixels that a device works on at a time. It takes complete episodes, at least one. A pixel
# needs about 1 KB of memory; half of that are the features, which stay until all pairs are done.
_MAX_PIXELS = 2**18


@dataclass(frozen=True, eq=False)
class Lpips:
    """The LPIPS network. params: its parameters, on the host."""

    params: dict

    def pairwise(
        self, images: UInt8[np.ndarray, "E R H W C"], mesh: Mesh | None = None
    ) -> Float[np.ndarray, "E R R"]:
        """LPIPS between any two images of each episode, symmetric, with zeros on the diagonal.

        A grey channel is repeated three times. Episodes are sharded over the mesh (by
        default this process's devices), as many at a time as fit `_MAX_PIXELS`.

        Errors:
            DataError: the images are smaller than 16 x 16 pixels.
        """
        episodes, count, height, width = images.shape[:4]
        if min(height, width) < lpips.MIN_SIZE:
            raise DataError(
                f"LPIPS needs images of {lpips.MIN_SIZE} x {lpips.MIN_SIZE} pixels or more, these "
                f"have {height} x {width}: leave config.evaluation.lpips empty"
            )
        mesh = mesh or sharding.local_mesh()
        each = max(1, _MAX_PIXELS // (count * height * width))
        size = min(each * mesh.size, sharding.round_up(episodes, mesh.size))
        placed = jax.device_put(self.params, sharding.replicated(mesh))
        found = []
        for first in range(0, episodes, size):
            part = images[first : first + size]
            part = np.pad(part, [(0, size - len(part))] + [(0, 0)] * 4)
            on_devices = jax.device_put(part, sharding.batch_sharding(mesh))
            # Full precision everywhere, so that scores do not depend on the hardware.
            with jax.default_matmul_precision("highest"):
                found.append(sharding.to_host(_distances(mesh, placed, on_devices)))
        one, other = _pairs(count)
        distances = np.zeros((episodes, count, count))
        distances[:, one, other] = np.concatenate(found)[:episodes]
        return distances + distances.swapaxes(1, 2)


def load_lpips(location: str) -> Lpips:
    """Reads vgg16.safetensors and lpips.safetensors of a directory, on the host.

    Errors:
        DataError: a file is missing or damaged, or a tensor is missing, misshapen or unknown.
    """
    return Lpips(lpips.load(location))


def _pairs(count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.triu_indices(count, 1)


@partial(jax.jit, static_argnums=0)
def _distances(mesh: Mesh, params: dict, images: UInt8[Array, "E R H W C"]) -> Float[Array, "E P"]:
    """LPIPS of the P = R (R - 1) / 2 pairs of each episode, one pair of all episodes at a time."""

    def distances_of_shard(params: dict, images: Array) -> Array:
        network, shape = lpips.network(params), images.shape[:2]
        features = network.features(images.reshape(-1, *images.shape[2:]))
        features = [x.reshape(*shape, *x.shape[1:]) for x in features]

        def distance_of_pair(pair: tuple[Array, Array]) -> Array:
            one, other = ([x[:, i] for x in features] for i in pair)
            return network.distance(one, other)

        first, second = _pairs(shape[1])
        pairs = (jnp.asarray(first), jnp.asarray(second))
        return jax.lax.map(distance_of_pair, pairs).T

    specs = (PartitionSpec(), sharding.BATCH)
    mapped = jax.shard_map(distances_of_shard, mesh=mesh, in_specs=specs, out_specs=sharding.BATCH)
    return mapped(params, images)
