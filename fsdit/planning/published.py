"""Frozen networks without their weights, by published sizes or from a local directory.

Their parameters are shapes, so that planning needs neither files nor access to a hub.
"""

from pathlib import Path

import jax

from fsdit.config import CodecConfig, Config, EncoderConfig
from fsdit.data.layout import DatasetInfo
from fsdit.errors import ConfigError
from fsdit.features.frozen import Frozen
from fsdit.models.codec import LatentCodec, PixelCodec
from fsdit.models.encoder import FeatureShape
from fsdit.models.pretrained import autoencoder_kl
from fsdit.models.pretrained.autoencoder_kl import AutoencoderKL
from fsdit.models.pretrained.autoencoder_network import AutoencoderConfig
from fsdit.models.pretrained.dinov2 import Dinov2Config
from fsdit.models.pretrained.encoder import (
    FrozenEncoder,
    TowerConfig,
    abstract_encoder,
    load_encoder,
)
from fsdit.models.pretrained.preprocessing import Preprocessing, Rectangle, ShortestEdge
from fsdit.models.pretrained.siglip import SiglipConfig
from fsdit.models.pretrained.stored.checkpoint import Checkpoint
from fsdit.models.spec import ModelSpec

_SIGLIP = Preprocessing(Rectangle(224, 224), None, "bilinear", 1 / 255, (0.5,) * 3, (0.5,) * 3)
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_DINOV2 = Preprocessing(ShortestEdge(256), Rectangle(224, 224), "bicubic", 1 / 255, *_IMAGENET)


def _dinov2(width: int, depth: int, heads: int) -> TowerConfig:
    return Dinov2Config(
        patch_size=14,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        image_size=518,
        num_register_tokens=0,
    )


# Hub id -> sizes, copied from its config.json and preprocessor_config.json.
ENCODERS: dict[str, tuple[TowerConfig, Preprocessing]] = {
    "google/siglip2-base-patch16-224": (SiglipConfig(), _SIGLIP),
    "facebook/dinov2-small": (_dinov2(384, 12, 6), _DINOV2),
    "facebook/dinov2-base": (_dinov2(768, 12, 12), _DINOV2),
    "facebook/dinov2-large": (_dinov2(1024, 24, 16), _DINOV2),
}
_SD_VAE = AutoencoderConfig(
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
)
CODECS = {"stabilityai/sd-vae-ft-ema": _SD_VAE, "stabilityai/sd-vae-ft-mse": _SD_VAE}


def abstract_networks(config: Config, info: DatasetInfo) -> tuple[ModelSpec, Frozen]:
    """The networks of `open_networks`, with shapes as the parameters of frozen ones.

    The encoder is included even where the run reads its stored outputs. Raises ConfigError for
    networks that are neither known here nor in a directory, DataError for a damaged directory.
    """
    codec = _codec(config.model.codec)
    encoder, params = _encoder(config.model.encoder)
    features = FeatureShape(encoder.dim, encoder.grid) if encoder else None
    spec = ModelSpec(config.model, info.image_size, info.channels, codec, features)
    return spec, Frozen(codec, encoder, params, features)


def _encoder(wanted: EncoderConfig) -> tuple[FrozenEncoder | None, dict]:
    if wanted.name == "learned":
        return None, {}
    if Path(wanted.location).is_dir():
        encoder, params = load_encoder(wanted.location, wanted.dtype)
        return encoder, jax.eval_shape(lambda: params)
    if wanted.location not in ENCODERS:
        raise _unknown("encoder", wanted.location, ENCODERS)
    checkpoint = Checkpoint(Path(wanted.location), {}, {})
    return abstract_encoder(checkpoint, *ENCODERS[wanted.location], wanted.dtype)


def _codec(wanted: CodecConfig) -> LatentCodec:
    if wanted.name == "pixels":
        return PixelCodec()
    options = {"dtype": wanted.dtype, "max_batch": wanted.max_batch}
    if Path(wanted.location).is_dir():
        codec = autoencoder_kl.load(wanted.location, wanted.subfolder, **options)
        return jax.eval_shape(lambda: codec)
    if wanted.location not in CODECS or wanted.subfolder:
        raise _unknown("codec", wanted.location, CODECS)
    sizes = CODECS[wanted.location]
    return AutoencoderKL(autoencoder_kl.abstract_params(sizes), sizes, **options)


def _unknown(network: str, location: str, known: dict) -> ConfigError:
    return ConfigError(
        f"config.model.{network}.location={location} is no directory, and its sizes are not "
        f"known here; name a directory, or one of {', '.join(known)}"
    )
