"""A trained model that samples from a user's pictures.

generator = fsdit.load("exported")
samples = generator.generate(generator.read_supports(["a.png", "b.png"]), count=16)
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from fsdit.data.records import num_supports
from fsdit.errors import ConfigError, DataError
from fsdit.features.frozen import Frozen, open_networks
from fsdit.models.codec import LatentCodec
from fsdit.models.dit import Supports
from fsdit.models.spec import ModelSpec
from fsdit.parallel import backend, sharding
from fsdit.sampling.guide import Guide
from fsdit.sampling.images import ROWS, WHOLE, by_rows, sample_images

# Compiled programs of a generator: one that is asked for ever new samplings would fill the memory.
_KEPT_PROGRAMS = 8


def online_networks(config: Config, image_size: int, channels: int) -> tuple[ModelSpec, Frozen]:
    """The networks of a run, with its frozen networks opened.

    They are opened even where the run was trained on their stored outputs, since new pictures
    have none. Raises ConfigError or DataError.
    """
    online = dataclasses.replace(config, features=FeaturesConfig(cache_mb=0))
    info = DatasetInfo(image_size, channels, splits={}, command="", seed=0)
    return open_networks(online, info)


@dataclasses.dataclass(frozen=True, eq=False)
class _Way:
    """The way to another set of supports, encoded: `count` samples at each of the weights (S,)."""

    supports: Supports
    weights: np.ndarray
    count: int

    def weights_of(self, rows: np.ndarray) -> np.ndarray:
        """The weights of samples by their number; those of the last place go on for ever."""
        return self.weights[np.minimum(rows // self.count, len(self.weights) - 1)]


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
    _programs: dict[tuple[SamplingConfig, bool], Callable] = dataclasses.field(
        default_factory=dict, init=False, repr=False
    )
    # Numbers of supports of which it was said that training had another one.
    _said: set[int] = dataclasses.field(default_factory=set, init=False, repr=False)

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
        samples. The first call with a K, a batch size and a sampling compiles, and for a K that
        is not that of the training a line is printed. Raises DataError or ConfigError.
        """
        batches = self.stream(supports, count, seed=seed, sampling=sampling, batch_size=batch_size)
        return _joined(batches, progress)

    draw = generate  # its name in earlier versions

    def stream(
        self,
        supports: Shaped[np.ndarray, "..."],
        count: int = 1,
        *,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        batch_size: int = 16,
    ) -> Iterator[UInt8[np.ndarray, "N H W C"]]:
        """Yields the samples of `generate` batch by batch, as they are made.

        Errors are raised by the call itself, before the first batch.
        """
        sampling = sampling or self.config.sampling
        self._check(supports, count, seed, sampling, batch_size)
        self._say_other_number(len(supports))
        return self._batches(self._encoded(supports), None, count, seed, sampling, batch_size)

    def generate_between(
        self,
        first: Shaped[np.ndarray, "..."],
        second: Shaped[np.ndarray, "..."],
        weights: Sequence[float],
        count: int = 1,
        *,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        batch_size: int = 16,
        progress: Callable[[int], Any] | None = None,
    ) -> UInt8[np.ndarray, "S N H W C"]:
        """Samples `count` images at each of S places between what two sets of supports show.

        weights: the places in [0, 1]. The condition is (1 - weight) times that of the first set
        plus weight times that of the second one (`fsdit.models.conditioning.between`); the noise
        of sample i is the same at all places. The sets may differ in size, except for a model
        with cross-attention and no latents. Everything else is as for `generate`.
        """
        sampling = sampling or self.config.sampling
        for supports in (first, second):
            self._check(supports, count, seed, sampling, batch_size)
            self._say_other_number(len(supports))
        self._check_way(len(first), len(second), weights)
        way = _Way(self._encoded(second), np.asarray(weights, np.float32), count)
        total = len(weights) * count
        batches = self._batches(self._encoded(first), way, total, seed, sampling, batch_size)
        images = _joined(batches, progress)
        return images.reshape(len(weights), count, *images.shape[1:])

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

    def _say_other_number(self, found: int) -> None:
        """Prints a line where the model was trained with another number of supports, once."""
        trained = num_supports(self.config.data.shots)
        if found != trained and found not in self._said:
            self._said.add(found)
            print(
                f"warning: {found} supports, and the model was trained with {trained}: it takes "
                "any number, but how good its samples are then was not measured in training",
                flush=True,
            )

    def _check_way(self, first: int, second: int, weights: Sequence[float]) -> None:
        """Raises ConfigError where conditions of so many supports have no places between them."""
        if not len(weights) or not all(0 <= weight <= 1 for weight in weights):
            raise ConfigError(f"weights={list(weights)} must be one or more numbers from 0 to 1")
        specs = (self.spec, self.guide.spec) if self.guide else (self.spec,)
        paired = any(spec.config.use_context and not spec.config.num_latents for spec in specs)
        if paired and first != second:
            raise ConfigError(
                f"sets of {first} and {second} supports: a model with config.model.num_latents=0 "
                "pairs the tokens of two sets; name as many supports in both"
            )

    def _batches(
        self,
        supports: Supports,
        way: _Way | None,
        count: int,
        seed: int,
        sampling: SamplingConfig,
        batch: int,
    ) -> Iterator[np.ndarray]:
        # As few batches as `batch` allows, of equal size.
        num_batches = math.ceil(count / batch)
        rows = sharding.round_up(math.ceil(count / num_batches), self._mesh.size)
        sample = self._program(sampling, on_the_way=way is not None)
        params, codec, _, guide = self._placed
        for start in range(0, count, rows):
            # The last batch is as long as the others, so that one program serves all.
            index = np.arange(start, start + rows, dtype=np.uint32)
            towards = None
            if way is not None:
                towards, index = (way.supports, way.weights_of(index)), index % way.count
            images = sample(params, codec, supports, index, np.uint32(seed), guide, towards)
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

    def _program(self, sampling: SamplingConfig, *, on_the_way: bool) -> Callable:
        """(params, codec, supports, index (B,), seed, guide_params, towards) -> images.

        Compiled once for each of the last few samplings. supports, and those in towards, are of
        one episode. guide_params: None without a guide. towards: None unless `on_the_way`.
        images (B, H, W, C).
        """
        if (sampling, on_the_way) not in self._programs:
            for oldest in list(self._programs)[: 1 - _KEPT_PROGRAMS]:
                del self._programs[oldest]
            guide = self.guide.spec if sampling.guide else None
            sample = functools.partial(sample_images, self.spec, guide, sampling)
            towards = (WHOLE, ROWS) if on_the_way else WHOLE
            inputs = (WHOLE, WHOLE, WHOLE, ROWS, WHOLE, WHOLE, towards)
            self._programs[sampling, on_the_way] = jax.jit(by_rows(sample, self._mesh, inputs))
        return self._programs[sampling, on_the_way]


def _joined(
    batches: Iterable[np.ndarray], progress: Callable[[int], Any] | None
) -> UInt8[np.ndarray, "N H W C"]:
    """All batches in one array; `progress` is called with the number of samples of each."""
    samples = []
    for images in batches:
        samples.append(images)
        if progress:
            progress(len(images))
    return np.concatenate(samples)
