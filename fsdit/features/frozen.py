"""Opens and checks the frozen networks of a run on the host, before any device is used."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from fsdit.config import Config
from fsdit.data import run_dataset
from fsdit.data.layout import DatasetInfo, FeaturesInfo
from fsdit.data.records import num_supports
from fsdit.errors import ConfigError, DataError
from fsdit.models.codec import LatentCodec, PixelCodec
from fsdit.models.encoder import FeatureShape
from fsdit.models.pretrained import autoencoder_kl
from fsdit.models.pretrained.encoder import FrozenEncoder, load_encoder
from fsdit.models.pretrained.preprocessing import read_preprocessing
from fsdit.models.pretrained.stored.checkpoint import open_checkpoint
from fsdit.models.spec import ModelSpec


@dataclasses.dataclass(frozen=True)
class Frozen:
    """The frozen networks of a run, with parameters as NumPy arrays.

    encoder: None where the encoder is learned or its stored outputs are read.
    features: shape of a frozen encoder's outputs; None where the encoder is learned.
    weights: digests by which checkpoints identify the networks: of the weights of "codec", and
    of the weights and the preprocessing of "encoder".
    """

    codec: LatentCodec = PixelCodec()
    encoder: FrozenEncoder | None = None
    encoder_params: dict = dataclasses.field(default_factory=dict)
    features: FeatureShape | None = None
    weights: dict[str, str] = dataclasses.field(default_factory=dict)


def open_networks(config: Config, info: DatasetInfo) -> tuple[ModelSpec, Frozen]:
    """The trainable and the frozen networks of a run on a dataset.

    Raises ConfigError or DataError where weights are missing, have another architecture or are
    not those that the precomputed files were made with, or where the cache of features is
    smaller than a batch.
    """
    frozen = _with_encoder(_with_codec(Frozen(), config, info), config, info)
    spec = ModelSpec(config.model, info.image_size, info.channels, frozen.codec, frozen.features)
    return spec, frozen


def _with_codec(frozen: Frozen, config: Config, info: DatasetInfo) -> Frozen:
    wanted = config.model.codec
    if wanted.name == "pixels":
        return frozen
    with _naming("model.codec.location"):
        codec = autoencoder_kl.load(
            wanted.location, wanted.subfolder, dtype=wanted.dtype, max_batch=wanted.max_batch
        )
        sha256 = open_checkpoint(wanted.location, wanted.subfolder).sha256()
    name = run_dataset.latents_name(config)
    described = info.latents.get(name)
    if described is not None and described.sha256 != sha256:
        raise DataError(
            f"the latents {name!r} of {config.data.dataset_dir} were made by {described.codec}, "
            f"whose weights are not those of config.model.codec.location={wanted.location}: name "
            "that codec, or encode again under another name"
        )
    weights = {**frozen.weights, "codec": sha256}
    return dataclasses.replace(frozen, codec=codec, weights=weights)


def _with_encoder(frozen: Frozen, config: Config, info: DatasetInfo) -> Frozen:
    wanted = config.model.encoder
    if wanted.name == "learned":
        return frozen
    described = info.features.get(run_dataset.features_name(config))
    if described is not None:
        _check_same_encoder(config, described)
        return dataclasses.replace(
            frozen,
            features=FeatureShape(described.dim, tuple(described.grid)),
            weights={
                **frozen.weights,
                "encoder": _encoder_digest(described.sha256, described.preprocessing),
            },
        )
    with _naming("model.encoder.location"):
        encoder, params = load_encoder(wanted.location, wanted.dtype)
    features = FeatureShape(encoder.dim, encoder.grid)
    _check_cache(config, features)
    return dataclasses.replace(
        frozen,
        encoder=encoder,
        encoder_params=params,
        features=features,
        weights={
            **frozen.weights,
            "encoder": _encoder_digest(
                encoder.checkpoint.sha256(), encoder.preprocessing.to_dict()
            ),
        },
    )


@contextlib.contextmanager
def _naming(setting: str) -> Iterator[None]:
    """Puts the name of a setting before the errors in the block."""
    try:
        yield
    except DataError as error:
        raise DataError(f"config.{setting}: {error}") from error


def _encoder_digest(sha256: str, preprocessing: Mapping[str, Any]) -> str:
    """One digest of an encoder's weights, given by their digest, and of its preprocessing."""
    text = json.dumps([sha256, preprocessing], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_same_encoder(config: Config, described: FeaturesInfo) -> None:
    """Raises DataError where stored features were made by another encoder than the run's.

    The weights are compared where the location is a local folder, and otherwise its name.
    """
    location = config.model.encoder.location
    if Path(location).is_dir():
        with _naming("model.encoder.location"):
            checkpoint = open_checkpoint(location)
            preprocessing = read_preprocessing(checkpoint.directory).to_dict()
        same = described.sha256 == checkpoint.sha256()
        same &= described.preprocessing == preprocessing
    else:
        # Features that were made with a relative path recorded only that; paths are absolute now.
        tail = Path(location).is_absolute() and location.endswith(f"/{described.encoder}")
        same = tail or described.encoder == location
    if not same:
        name = run_dataset.features_name(config)
        raise DataError(
            f"the features {name!r} of {config.data.dataset_dir} were made by {described.encoder}, "
            f"which is not config.model.encoder.location={location}: name that encoder, or encode "
            "again under another name"
        )


def _check_cache(config: Config, features: FeatureShape) -> None:
    """Raises ConfigError where the cache cannot hold the features of one batch."""
    width = jnp.dtype(config.model.encoder.dtype).itemsize
    tokens = features.grid[0] * features.grid[1] if config.model.use_context else 0
    images = num_supports(config.data.shots) + (config.train.alignment > 0)
    supports = config.data.batch_size * images
    needed = supports * (1 + tokens) * features.dim * width / 1e6
    if 0 < config.features.cache_mb < needed:
        raise ConfigError(
            f"config.features.cache_mb={config.features.cache_mb:g} holds less than one batch, "
            f"{needed:.0f} MB of features: give more, or 0 for no cache"
        )
