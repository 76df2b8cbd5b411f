"""Features of support images, computed when they are needed and cached on the host.

Each process encodes the images of its own rows, on its own devices. Processes never wait for
one another here, so this can run in a thread beside the train step.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from cachetools import LRUCache
from jax.sharding import Mesh
from jaxtyping import Int

from fsdit.config import Config
from fsdit.data.readers import ImageReader
from fsdit.models.pretrained.encoder import FrozenEncoder
from fsdit.parallel import sharding

Features = dict[str, np.ndarray]  # pooled (D,), tokens (T, D); or with leading axes
_Key = tuple[str, int]  # split, index of the image


def encoded_rows(config: Config, mesh: Mesh) -> int:
    """Number of supports that one process encodes at once."""
    return sharding.round_up(config.features.encode_batch, mesh.size)


def compile_encoder(encoder: FrozenEncoder, mesh: Mesh) -> Callable[..., Any]:
    """Returns a compiled function (params, images (rows, 1, H, W, C)) -> (pooled, tokens).

    Rows are split over the mesh's devices.
    """
    return jax.jit(encoder, out_shardings=sharding.batch_sharding(mesh))


class OnlineFeatures:
    """Maps indices of images to features, on the host.

    Images that are not in the cache are read and encoded, each at most once a batch, by a
    program of one fixed shape. The features of a row do not depend on the other rows, so
    neither the cache nor a restart changes any value.
    """

    def __init__(self, encoder: FrozenEncoder, params: dict, config: Config):
        settings = config.features
        mesh = sharding.local_mesh()
        self._rows = encoded_rows(config, mesh)
        self._tokens = config.model.use_context
        self._sharding = sharding.batch_sharding(mesh)
        self._params = jax.device_put(params, sharding.replicated(mesh))
        self._encode = compile_encoder(encoder, mesh)
        self._cache = LRUCache(settings.cache_mb * 1e6, getsizeof=_size)
        self._readers = ThreadPoolExecutor(config.data.read_threads)
        # Training and evaluation call this from threads of their own.
        self._lock = threading.Lock()
        self._hits = self._misses = 0

    def __call__(
        self, images: ImageReader, split: str, indices: Int[np.ndarray, "b K"]
    ) -> Features:
        """The features of images: pooled (b, K, D), and tokens (b, K, T, D) where the model attends
        to them.

        Raises DataError for an image that cannot be read.
        """
        with self._lock:
            wanted = dict.fromkeys((split, int(index)) for index in indices.flat)
            found = {key: self._cache[key] for key in wanted if key in self._cache}
            missing = [key for key in wanted if key not in found]
            self._hits += len(found)
            self._misses += len(missing)
            for start in range(0, len(missing), self._rows):
                found |= self._encoded(images, missing[start : start + self._rows])
            for key in missing:
                if _size(found[key]) <= self._cache.maxsize:
                    self._cache[key] = found[key]
        rows = [found[split, int(index)] for index in indices.flat]
        return {
            name: np.stack([row[name] for row in rows]).reshape(
                *indices.shape, *rows[0][name].shape
            )
            for name in rows[0]
        }

    def _encoded(self, images: ImageReader, keys: list[_Key]) -> dict[_Key, Features]:
        """The features of at most `_rows` images. The first image fills the remaining rows."""
        pixels = list(self._readers.map(lambda key: images[key[1]], keys))
        pixels += [pixels[0] for _ in range(self._rows - len(pixels))]
        placed = jax.device_put(np.stack(pixels)[:, None], self._sharding)
        pooled, tokens = self._encode(self._params, placed)
        features = {"pooled": pooled, "tokens": tokens} if self._tokens else {"pooled": pooled}
        batch = {name: np.asarray(array)[:, 0] for name, array in features.items()}
        # Copies, since a cached view would keep the arrays of its whole batch in memory.
        return {key: {n: a[i].copy() for n, a in batch.items()} for i, key in enumerate(keys)}

    def counters(self) -> dict[str, int | float]:
        """Hits and misses since this process started, counted once for each image of a batch,
        and bytes in the cache."""
        return {
            "encoder_cache/hits": self._hits,
            "encoder_cache/misses": self._misses,
            "encoder_cache/bytes": self._cache.currsize,
        }


def _size(features: Features) -> int:
    """Bytes of the features of one image."""
    return sum(array.nbytes for array in features.values())
