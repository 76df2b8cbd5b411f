"""What sees the images when drawings are judged: the pixels, or a frozen encoder.

An encoder judges fairly only if it is not the one that conditions: a model could please
that one in ways that no other eye sees.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8

from fsdit.config import Config
from fsdit.data.layout import read_dataset_info
from fsdit.data.run_dataset import features_name
from fsdit.errors import ConfigError
from fsdit.models.pretrained.encoder import FrozenEncoder, load_encoder
from fsdit.models.pretrained.stored.checkpoint import open_checkpoint
from fsdit.parallel import sharding

# Greyscale or RGB, all of one size: an array (N, H, W, C), or one (H, W, C) after another.
Images = Iterable[UInt8[np.ndarray, "H W C"]]


@dataclass(frozen=True)
class Judge:
    """name: "pixels", or the encoder's location.

    features: N >= 1 images -> (N, *D), in their order. Of pixels, the uint8 images
    themselves; of an encoder, its pooled output in float32. An encoder sees one batch at
    a time, so `images` may be read while they are judged. It works on this process's
    devices, and stays on them for no longer than the call.
    """

    name: str
    features: Callable[[Images], Shaped[np.ndarray, "N *D"]]


def open_judge(config: Config) -> Judge:
    """The judge that config.evaluation names, checked on the host; no device is used yet.

    Errors:
        ConfigError: it is the encoder that conditions.
        DataError: weights that are missing, damaged or of another architecture.
    """
    location = config.evaluation.judge
    if not location:
        return Judge("pixels", _pixels)
    _check_independent(config)
    encoder, params = load_encoder(location, "float32")
    return Judge(location, partial(_encoded, encoder, params, config.features.encode_batch))


def _check_independent(config: Config) -> None:
    judge, conditions = config.evaluation.judge, config.model.encoder
    if conditions.name == "learned":
        return
    same = judge == conditions.location
    if same or open_checkpoint(judge).sha256() == _conditioning_sum(config):
        raise ConfigError(
            f"config.evaluation.judge={judge} is the encoder that conditions: the judge must be "
            "another one, such as facebook/dinov2-base"
        )


def _conditioning_sum(config: Config) -> str:
    """Sum of the weights; where features are read, of those that made them."""
    location = config.model.encoder.location
    if config.features.supports == "precomputed" and not Path(location).is_dir():
        described = read_dataset_info(config.data.dataset_dir).features.get(features_name(config))
        return described.sha256 if described else ""
    return open_checkpoint(location).sha256()


def _pixels(images: Images) -> UInt8[np.ndarray, "N H W C"]:
    return images if isinstance(images, np.ndarray) else np.stack(list(images))


def _encoded(
    encoder: FrozenEncoder, params: dict, batch_size: int, images: Images
) -> Float[np.ndarray, "N D"]:
    mesh = sharding.local_mesh()
    rows = -(-batch_size // mesh.size) * mesh.size
    placed = jax.device_put(params, sharding.replicated(mesh))
    found: list[Array | np.ndarray] = []
    for batch in _batches(images, rows):
        pixels = np.stack(batch + batch[:1] * (rows - len(batch)))
        on_devices = jax.device_put(pixels, sharding.batch_sharding(mesh))
        # In full precision everywhere, so that a figure does not depend on the hardware.
        with jax.default_matmul_precision("highest"):
            pooled = _pooled(encoder, placed, on_devices)
        # The devices work on this batch while the last one is fetched and the next one read.
        found[-1:] = map(np.asarray, found[-1:])
        found.append(pooled[: len(batch)])
    return np.concatenate(found)


@partial(jax.jit, static_argnums=0)
def _pooled(
    encoder: FrozenEncoder, params: dict, images: UInt8[Array, "B H W C"]
) -> Float[Array, "B D"]:
    return encoder(params, images[:, None])[0][:, 0]


def _batches(images: Images, size: int) -> Iterator[list[np.ndarray]]:
    each = iter(images)
    while batch := list(itertools.islice(each, size)):
        yield batch
