"""LPIPS between the images of an episode: how different they look (arXiv 1801.03924)."""

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

# A device works on whole episodes of at most so many pixels at a time, but on one at least:
# a pixel takes about 1 KB, half of it for the features, which stay for the pairs.
_MAX_PIXELS = 2**18


@dataclass(frozen=True, eq=False)
class Lpips:
    """params: of the network, on the host."""

    params: dict

    def pairwise(
        self, images: UInt8[np.ndarray, "E R H W C"], mesh: Mesh | None = None
    ) -> Float[np.ndarray, "E R R"]:
        """Between any two images of an episode, for `variety.mean_pairwise`.

        Symmetric, with a diagonal of zeros; greyscale counts as RGB. Episodes lie over
        the mesh (by default, this process's devices), some of them at a time.

        Errors:
            DataError: images of less than 16 x 16 pixels.
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
            # In full precision everywhere, so that a figure does not depend on the hardware.
            with jax.default_matmul_precision("highest"):
                found.append(sharding.to_host(_distances(mesh, placed, on_devices)))
        one, other = _pairs(count)
        distances = np.zeros((episodes, count, count))
        distances[:, one, other] = np.concatenate(found)[:episodes]
        return distances + distances.swapaxes(1, 2)


def load_lpips(location: str) -> Lpips:
    """From a directory of vgg16.safetensors and lpips.safetensors; no device is used yet.

    Errors:
        DataError: a file is missing or damaged; a tensor missing, left over or misshapen.
    """
    return Lpips(lpips.load(location))


def _pairs(count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.triu_indices(count, 1)


@partial(jax.jit, static_argnums=0)
def _distances(mesh: Mesh, params: dict, images: UInt8[Array, "E R H W C"]) -> Float[Array, "E P"]:
    """Of the P pairs of each episode, one pair of all episodes after another."""

    def of_my_episodes(params: dict, images: Array) -> Array:
        network, shape = lpips.network(params), images.shape[:2]
        features = network.features(images.reshape(-1, *images.shape[2:]))
        features = [x.reshape(*shape, *x.shape[1:]) for x in features]

        def of_pair(pair: tuple[Array, Array]) -> Array:
            return network.distance(*([x[:, i] for x in features] for i in pair))

        return jax.lax.map(of_pair, tuple(map(jnp.asarray, _pairs(shape[1])))).T

    specs = (PartitionSpec(), sharding.BATCH)
    mapped = jax.shard_map(of_my_episodes, mesh=mesh, in_specs=specs, out_specs=sharding.BATCH)
    return mapped(params, images)
