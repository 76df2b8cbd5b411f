"""A trained model that samples from a user's pictures.

generator = fsdit.load("exported")
samples = generator.generate(generator.read_supports(["a.png", "b.png"]), count=16)
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Shaped, UInt8

from fsdit.checks import validate
from fsdit.config import Config, FeaturesConfig, SamplingConfig
from fsdit.data import supports as support_pictures
from fsdit.data.images.photos import Preparation
from fsdit.data.layout import DatasetInfo
from fsdit.errors import ConfigError, DataError
from fsdit.features.frozen import Frozen, open_networks
from fsdit.models.codec import LatentCodec
from fsdit.models.dit import Supports
from fsdit.models.spec import ModelSpec
from fsdit.parallel import backend, sharding
from fsdit.sampling.guide import Guide
from fsdit.sampling.images import sample_images


def online_networks(config: Config, image_size: int, channels: int) -> tuple[ModelSpec, Frozen]:
    """The networks of a run, with its frozen networks opened.

    They are opened even where the run was trained on their stored outputs, since new pictures
    have none. Raises ConfigError or DataError.
    """
    online = dataclasses.replace(config, features=FeaturesConfig(cache_mb=0))
    info = DatasetInfo(image_size, channels, splits={}, command="", seed=0)
    return open_networks(online, info)


@dataclasses.dataclass(frozen=True, eq=False)
class Generator:
    """The EMA weights of a step, with the frozen networks that they were trained with.

    Images have the size and channels of `spec`. All devices of this process share the work.

    params: the EMA weights. preparation: how the training images were made from pictures; None
    where that was not recorded. guide: the model that `config.sampling.guide` names, or None.
    ema_decay: decay of the average; None where an export is too old to say.
    """

    config: Config
    spec: ModelSpec
    frozen: Frozen
    params: dict
    step: int
    preparation: Preparation | None = None
    guide: Guide | None = None
    ema_decay: float | None = None
    _programs: dict[SamplingConfig, Callable] = dataclasses.field(
        default_factory=dict, init=False, repr=False
    )

    def read_supports(self, files: Iterable[str | Path]) -> UInt8[np.ndarray, "K H W C"]:
        """Supports for `generate` from picture files of any size, or folders of them.

        They are prepared as the training images were. Raises DataError naming a file that is
        no picture.
        """
        size, channels = self.spec.image_size, self.spec.channels
        return support_pictures.from_files(files, size, channels, self.preparation).images

    def generate(
        self,
        supports: Shaped[np.ndarray, "..."],
        count: int = 1,
        *,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        batch_size: int = 16,
        progress: Callable[[int], Any] | None = None,
    ) -> UInt8[np.ndarray, "N H W C"]:
        """Samples `count` images of what the supports (K, H, W, C) uint8 show, for any K.

        Sample i depends on (seed, i) alone, whatever the count and the batch are, up to the
        rounding of a pixel. sampling: by default that of the run; its guide is the one that was
        loaded with the model, or "". progress: called after each batch with the number of its
        samples. The first call with a K, a batch size and a sampling compiles. Raises DataError
        or ConfigError.
        """
        sampling = sampling or self.config.sampling
        self._check(supports, count, seed, sampling, batch_size)
        samples = []
        for images in self._batches(supports, count, seed, sampling, batch_size):
            samples.append(images)
            if progress:
                progress(len(images))
        return np.concatenate(samples)

    draw = generate  # its name in earlier versions

    def _check(
        self, supports: np.ndarray, count: int, seed: int, sampling: SamplingConfig, batch: int
    ) -> None:
        size, channels = self.spec.image_size, self.spec.channels
        wanted = (size, size, channels)
        shape = np.shape(supports)
        if len(shape) != 4 or not shape[0] or shape[1:] != wanted or supports.dtype != np.uint8:
            raise DataError(
                f"supports of shape {shape} and type {getattr(supports, 'dtype', None)}: this "
                f"model takes uint8 of shape (K, {size}, {size}, {channels}), K at least 1; "
                "read_supports makes them of files"
            )
        for name, value, low in (("count", count, 1), ("batch_size", batch, 1), ("seed", seed, 0)):
            if not low <= value < 2**32:
                raise ConfigError(f"{name}={value} must be at least {low} and below 2**32")
        validate(dataclasses.replace(self.config, sampling=sampling))
        if sampling.guide not in ("", self.config.sampling.guide if self.guide else ""):
            raise ConfigError(
                f"config.sampling.guide={sampling.guide}: a guide is read with its model; load "
                f"the model with the setting sampling.guide={sampling.guide}"
            )
        backend.check_attention(self.config, self._mesh.devices.flat)

    def _batches(
        self, supports: np.ndarray, count: int, seed: int, sampling: SamplingConfig, batch: int
    ) -> Iterator[np.ndarray]:
        # As few batches as `batch` allows, of equal size.
        num_batches = math.ceil(count / batch)
        rows = sharding.round_up(math.ceil(count / num_batches), self._mesh.size)
        encoded, sample = self._encoded(supports), self._program(sampling)
        params, codec, _, guide = self._placed
        for start in range(0, count, rows):
            # The last batch is as long as the others, so that one program serves all.
            index = np.arange(start, start + rows, dtype=np.uint32)
            images = sample(params, codec, encoded, index, np.uint32(seed), guide)
            yield jax.device_get(images)[: count - start]

    @functools.cached_property
    def _mesh(self) -> Mesh:
        return sharding.local_mesh()

    @functools.cached_property
    def _placed(self) -> tuple[dict, LatentCodec, dict, dict | None]:
        """Parameters, codec, the encoder's and the guide's parameters on the devices."""
        shared, guide = sharding.replicated(self._mesh), self.guide and self.guide.params
        params, codec, guide = jax.device_put((self.params, self.frozen.codec, guide), shared)
        # The few supports of an episode are encoded on one device.
        return params, codec, jax.device_put(self.frozen.encoder_params), guide

    def _encoded(self, supports: np.ndarray) -> Supports:
        """The supports (1, K, ...) of one episode as the model takes them, on the devices."""
        made: Any = supports[None]
        if self.frozen.encoder is not None:
            pooled, tokens = self._encode(self._placed[2], made)
            made = {"pooled": pooled}
            if self.config.model.use_context:
                made["tokens"] = tokens
        return jax.device_put(made, sharding.replicated(self._mesh))

    @functools.cached_property
    def _encode(self) -> Callable:
        return jax.jit(self.frozen.encoder)

    def _program(self, sampling: SamplingConfig) -> Callable:
        """(params, codec, supports of one episode, index (B,), seed, guide_params) -> images.

        Compiled once for each sampling. images (B, H, W, C); guide_params: None without a guide.
        """
        rows, shared = sharding.batch_sharding(self._mesh), sharding.replicated(self._mesh)
        if sampling not in self._programs:
            guide = self.guide.spec if sampling.guide else None
            self._programs[sampling] = jax.jit(
                functools.partial(sample_images, self.spec, guide, sampling),
                in_shardings=(shared, shared, shared, rows, shared, shared),
                out_shardings=rows,
            )
        return self._programs[sampling]
