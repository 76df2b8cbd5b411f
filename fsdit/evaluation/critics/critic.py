"""The critic: in whose features samples and real images are compared.

It is trained on the training split, or it is the pixels themselves or a frozen encoder. An
encoder is a fair critic only if it is not the one that conditions the model: the model could
please that encoder in ways that no other encoder, and no person, would see.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8

from fsdit.config import Config
from fsdit.data.layout import DatasetInfo, read_dataset_info
from fsdit.data.run_dataset import features_name
from fsdit.errors import ConfigError
from fsdit.evaluation.critics import trained
from fsdit.models.pretrained.encoder import FrozenEncoder, load_encoder
from fsdit.models.pretrained.stored.checkpoint import open_checkpoint
from fsdit.parallel import sharding

# Greyscale or RGB images of one size: an array (N, H, W, C), or one (H, W, C) after another.
Images = Iterable[UInt8[np.ndarray, "H W C"]]


@dataclass(frozen=True)
class Critic:
    """A function from images to the features in which they are compared.

    name: "trained-" with digits of what it is trained on, "pixels", or the encoder's location.

    features: N >= 1 images -> (N, *D), in the same order. The pixel critic returns the uint8
    images themselves, the trained one vectors of unit length, an encoder its pooled output, both
    in float32. An encoder takes one batch of `images` at a time, so they may be read from disk as
    it goes. It runs on this process's devices and leaves nothing on them. on_host: whether it
    computes in NumPy alone, so that the devices can do something else meanwhile.
    """

    name: str
    features: Callable[[Images], Shaped[np.ndarray, "N *D"]]
    on_host: bool = False


# The largest side of images that the critic "auto" compares, and that pixels may compare: those
# of larger images say little about likeness, and their distances take much memory.
LARGEST_SMALL = 64


def kind_of(critic: str, image_size: int) -> Literal["trained", "pixels", "encoder"]:
    """What config.evaluation.critic means for images of this size.

    "" is how older versions named the pixels. Raises ConfigError where the images are too large.
    """
    kind = {"auto": "trained", "trained": "trained", "": "pixels", "pixels": "pixels"}.get(critic)
    if critic != "trained" and kind and image_size > LARGEST_SMALL:
        raise ConfigError(
            f"config.evaluation.critic={critic}: images of {image_size} x {image_size} are too "
            "large to be compared by their pixels or gradients; name a frozen encoder, such as "
            "facebook/dinov2-base"
        )
    return kind or "encoder"


def open_critic(config: Config, info: DatasetInfo) -> Critic:
    """Opens and checks, on the host, the critic that config.evaluation names.

    info: of the dataset. "auto" takes the pixels, and says so, where none can be trained. Errors:
        ConfigError: the critic is the encoder that conditions, or the dataset cannot have it.
        DataError: weights are missing, damaged or of another architecture.
    """
    location = config.evaluation.critic
    kind = kind_of(location, info.image_size)
    if location == "auto" and not trained.is_possible(info):
        print(
            "the training split has too few images for a trained critic; compared by pixels",
            flush=True,
        )
        kind = "pixels"
    if kind == "pixels":
        return PIXELS
    if kind == "trained":
        return Critic(*trained.open_trained(config.data.dataset_dir, info), on_host=True)
    _check_independent(config)
    encoder, params = load_encoder(location, "float32")
    return Critic(location, partial(_encode, encoder, params, config.features.encode_batch))


def _check_independent(config: Config) -> None:
    critic, conditions = config.evaluation.critic, config.model.encoder
    if conditions.name == "learned":
        return
    same = critic == conditions.location
    if same or open_checkpoint(critic).sha256() == _conditioning_checksum(config):
        raise ConfigError(
            f"config.evaluation.critic={critic} is the encoder that conditions: the critic must be "
            "another one, such as facebook/dinov2-base"
        )


def _conditioning_checksum(config: Config) -> str:
    """SHA-256 of the conditioning encoder's weights.

    A run that reads precomputed features may name weights that are not on this machine. Then
    it is the checksum that the dataset records for its features, "" where there is none.
    """
    location = config.model.encoder.location
    if config.features.supports == "precomputed" and not Path(location).is_dir():
        described = read_dataset_info(config.data.dataset_dir).features.get(features_name(config))
        return described.sha256 if described else ""
    return open_checkpoint(location).sha256()


def _pixels(images: Images) -> UInt8[np.ndarray, "N H W C"]:
    return images if isinstance(images, np.ndarray) else np.stack(list(images))


PIXELS = Critic("pixels", _pixels, on_host=True)


def _encode(
    encoder: FrozenEncoder, params: dict, batch_size: int, images: Images
) -> Float[np.ndarray, "N D"]:
    mesh = sharding.local_mesh()
    rows = sharding.round_up(batch_size, mesh.size)
    placed = jax.device_put(params, sharding.replicated(mesh))
    fetched: list[np.ndarray] = []
    running: Array | None = None
    for batch in _batches(images, rows):
        pixels = np.stack(batch + batch[:1] * (rows - len(batch)))
        on_devices = jax.device_put(pixels, sharding.batch_sharding(mesh))
        # Full precision everywhere, so that scores do not depend on the hardware.
        with jax.default_matmul_precision("highest"):
            pooled = _pooled(encoder, placed, on_devices)
        # The devices work on this batch while the one before is fetched and the next is read.
        if running is not None:
            fetched.append(np.asarray(running))
        running = pooled[: len(batch)]
    return np.concatenate([*fetched, np.asarray(running)])


@partial(jax.jit, static_argnums=0)
def _pooled(
    encoder: FrozenEncoder, params: dict, images: UInt8[Array, "B H W C"]
) -> Float[Array, "B D"]:
    return encoder(params, images[:, None])[0][:, 0]


def _batches(images: Images, size: int) -> Iterator[list[np.ndarray]]:
    each = iter(images)
    while batch := list(itertools.islice(each, size)):
        yield batch
