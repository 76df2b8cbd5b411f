"""Batches for the train step and for sampling: read, passed through frozen networks, placed.

in the reader's thread    indices of supports -> features (`online`), rows -> global arrays
in the loop, in jits      target images -> moments of latents,
before the step           indices -> features and latents on the devices (`resident`)
"""

import dataclasses
from collections.abc import Callable, Generator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, UInt8

from fsdit.config import Config
from fsdit.data import pipeline
from fsdit.data.pipeline import Batch, ReadExample
from fsdit.features.frozen import Frozen
from fsdit.features.online import OnlineFeatures
from fsdit.features.resident import ResidentFeatures
from fsdit.models.codec import LatentCodec
from fsdit.parallel import sharding


def compile_moments(mesh: Mesh) -> Callable[[LatentCodec, UInt8[Array, "B H W C"]], Any]:
    """Returns a compiled function (codec, images) -> moments of the latents, on the mesh."""
    by_row = sharding.batch_sharding(mesh)
    return jax.jit(lambda codec, images: codec.moments(images), out_shardings=by_row)


class Feed:
    """Makes batches, with the frozen networks of a run on the devices of its mesh.

    codec: that of the run, with its parameters on the mesh. resident: the features and latents
    of the training split that the devices hold, or None.
    """

    def __init__(
        self, config: Config, mesh: Mesh, frozen: Frozen, resident: ResidentFeatures | None = None
    ):
        self._config, self._mesh, self._resident = config, mesh, resident
        self.codec: LatentCodec = jax.device_put(frozen.codec, sharding.replicated(mesh))
        self._online = None
        if frozen.encoder is not None:
            self._online = OnlineFeatures(frozen.encoder, frozen.encoder_params, config)
        self._moments = compile_moments(mesh)

    def batches(
        self,
        read: ReadExample,
        batch_size: int,
        num_batches: int,
        *,
        start: int = 0,
        workers: int = 0,
        overfit_batches: int = 0,
    ) -> Generator[Batch, None, None]:
        """Yields global batches of examples, from the global index `start` on.

        workers: input processes; 0 reads in this one. overfit_batches: repeat so many batches
        for ever; 0 does not.
        """
        place = sharding.global_batch(self._mesh, batch_size)
        rows = pipeline.host_batches(
            read,
            sharding.host_rows(self._mesh, batch_size),
            batch_size,
            start=start,
            num_batches=num_batches,
            config=dataclasses.replace(self._config.data, workers=workers),
            place=lambda batch: place(self._with_features(read, batch)),
            overfit_batches=overfit_batches,
        )
        try:
            for batch in rows:
                yield self._prepared(read, batch)
        finally:
            rows.close()

    def counters(self) -> Mapping[str, int | float]:
        """Further values for the lines of telemetry."""
        return self._online.counters() if self._online else {}

    def _with_features(self, read: ReadExample, batch: Batch) -> Batch:
        if self._online is None or read.supports != "indices":
            return batch
        indices = batch["supports"]
        if not read.aligned:
            return {**batch, "supports": self._online(read.images, read.split, indices)}
        aligned = batch["aligned"]
        images = np.concatenate([indices, aligned["image"][:, None]], axis=1)
        found = self._online(read.images, read.split, images)
        return {
            **batch,
            "supports": {name: array[:, :-1] for name, array in found.items()},
            "aligned": {"mirrored": aligned["mirrored"], "tokens": found["tokens"][:, -1]},
        }

    def _prepared(self, read: ReadExample, batch: Batch) -> Batch:
        if self._resident is not None:
            batch = self._resident(read, batch)
        if read.targets == "images" and jax.tree.leaves(self.codec):
            batch = {**batch, "target": self._moments(self.codec, batch["target"])}
        return batch
