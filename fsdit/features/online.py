"""Features of support images, computed when they are first needed and kept for a while.

Each process encodes what its own rows need, on its own devices: processes never wait for
one another here, so this may run in a thread beside the train step.
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
_Key = tuple[str, int]  # split, image


def encoded_rows(config: Config, mesh: Mesh) -> int:
    """Supports that one process encodes at once."""
    return sharding.round_up(config.features.encode_batch, mesh.size)


def compile_encoder(encoder: FrozenEncoder, mesh: Mesh) -> Callable[..., Any]:
    """(params, images (rows, 1, H, W, C)) -> (pooled, tokens), rows over the mesh's devices."""
    return jax.jit(encoder, out_shardings=sharding.batch_sharding(mesh))


class OnlineFeatures:
    """Image numbers -> features, on the host.

    Images that are not in the cache are read and encoded, each once a batch, in a program
    of one fixed shape. A row's result does not depend on the rows beside it, so neither
    the cache nor a restart changes a number.
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
        self._lock = threading.Lock()  # training and evaluation prepare their batches in threads
        self._hits = self._misses = 0

    def __call__(
        self, images: ImageReader, split: str, numbers: Int[np.ndarray, "b K"]
    ) -> Features:
        """pooled (b, K, D) and, where the model attends to them, tokens (b, K, T, D).

        Raises DataError for an image that cannot be read.
        """
        with self._lock:
            wanted = dict.fromkeys((split, int(number)) for number in numbers.flat)
            found = {key: self._cache[key] for key in wanted if key in self._cache}
            missing = [key for key in wanted if key not in found]
            self._hits += len(found)
            self._misses += len(missing)
            for start in range(0, len(missing), self._rows):
                found |= self._encoded(images, missing[start : start + self._rows])
            for key in missing:
                if _size(found[key]) <= self._cache.maxsize:
                    self._cache[key] = found[key]
        rows = [found[split, int(number)] for number in numbers.flat]
        return {
            name: np.stack([row[name] for row in rows]).reshape(
                *numbers.shape, *rows[0][name].shape
            )
            for name in rows[0]
        }

    def _encoded(self, images: ImageReader, keys: list[_Key]) -> dict[_Key, Features]:
        """At most one program's rows; what is left of them is filled up with the first."""
        pixels = list(self._readers.map(lambda key: images[key[1]], keys))
        pixels += pixels[:1] * (self._rows - len(pixels))
        placed = jax.device_put(np.stack(pixels)[:, None], self._sharding)
        pooled, tokens = self._encode(self._params, placed)
        features = {"pooled": pooled, "tokens": tokens} if self._tokens else {"pooled": pooled}
        whole = {name: np.asarray(array)[:, 0] for name, array in features.items()}
        # Copies: a view would keep its whole batch in memory for as long as it is cached.
        return {key: {n: a[i].copy() for n, a in whole.items()} for i, key in enumerate(keys)}

    def counters(self) -> dict[str, int | float]:
        """Since the start of this process: distinct images of batches, and bytes held."""
        return {
            "encoder_cache/hits": self._hits,
            "encoder_cache/misses": self._misses,
            "encoder_cache/bytes": self._cache.currsize,
        }


def _size(features: Features) -> int:
    return sum(array.nbytes for array in features.values())
