"""Frozen support encoders: published vision towers with their preprocessing.

encoder, params = load_encoder("google/siglip2-base-patch16-224", dtype="bfloat16")
pooled, tokens = jax.jit(encoder)(params, supports)
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from fsdit.errors import DataError
from fsdit.models.pretrained import dinov2, siglip
from fsdit.models.pretrained.preprocessing import Preprocessing, read_preprocessing
from fsdit.models.pretrained.stored.checkpoint import Checkpoint, open_checkpoint
from fsdit.models.pretrained.stored.weights import Mapped, load_params

TowerConfig = siglip.SiglipConfig | dinov2.Dinov2Config


@dataclass(frozen=True)
class _Architecture:
    """How a tower is built and where its parameters lie in a checkpoint."""

    read_config: Callable[[Checkpoint, tuple[int, int]], TowerConfig]
    mapping: Callable[[Checkpoint, TowerConfig], Mapped]
    ignored: tuple[str, ...]


_SIGLIP = _Architecture(siglip.read_config, siglip.mapping, siglip.IGNORED)
_DINOV2 = _Architecture(dinov2.read_config, dinov2.mapping, dinov2.IGNORED)
# By config.json's model_type. SigLIP 2 of a fixed resolution calls itself "siglip".
_ARCHITECTURES = {
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2,
}


@dataclass(frozen=True, eq=False)  # compared by identity, so that it can be hashed
class FrozenEncoder:
    """A frozen tower with its preprocessing; its parameters are a nested dict beside it.

    dim: width of pooled and tokens. grid: rows and columns of the tokens. graph: structure of
    the tower, without parameters.
    """

    checkpoint: Checkpoint
    preprocessing: Preprocessing
    dim: int
    grid: tuple[int, int]
    graph: nnx.GraphDef

    def tower(self, params: dict) -> nnx.Module:
        """The tower with these parameters.

        It maps prepared images (B, h, w, 3) to pooled (B, D) and tokens (B, T, D).
        """
        return nnx.merge(self.graph, nnx.State(params))

    def __call__(
        self, params: dict, supports: UInt8[Array, "B K H W C"]
    ) -> tuple[Float[Array, "B K D"], Float[Array, "B K T D"]]:
        """Encodes images of any size, RGB or greyscale. The outputs have the tower's dtype."""
        b, k = supports.shape[:2]
        images = self.preprocessing(supports.reshape(b * k, *supports.shape[2:]))
        pooled, tokens = self.tower(params)(images)
        return pooled.reshape(b, k, -1), tokens.reshape(b, k, *tokens.shape[1:])


def load_encoder(location: str, dtype: str = "float32") -> tuple[FrozenEncoder, dict]:
    """Loads the encoder at a local directory or a hub id, and its parameters.

    The parameters are float32 NumPy arrays; the caller puts them on devices.
    dtype: type of the tower's matmuls and outputs, "float32" or "bfloat16".

    Errors:
        DataError: files missing or damaged, another architecture, an image size that the
            tower cannot take, a tensor that is missing, left over or misshapen.
    """
    checkpoint = open_checkpoint(location)
    kind = checkpoint.require("model_type", *_ARCHITECTURES)
    architecture = _ARCHITECTURES[kind]
    preprocessing = read_preprocessing(checkpoint.directory)
    config = architecture.read_config(checkpoint, preprocessing.output_size)
    _check_sizes(checkpoint, config)
    checkpoint.check_layers(config.num_hidden_layers)
    encoder, template = abstract_encoder(checkpoint, config, preprocessing, dtype)
    mapping = architecture.mapping(checkpoint, config)
    return encoder, load_params(checkpoint, template, mapping, architecture.ignored)


def abstract_encoder(
    checkpoint: Checkpoint, config: TowerConfig, preprocessing: Preprocessing, dtype: str
) -> tuple[FrozenEncoder, dict]:
    """Returns an encoder of these sizes, and the shapes and types of its parameters."""
    tower = siglip.SiglipTower if isinstance(config, siglip.SiglipConfig) else dinov2.Dinov2Tower
    abstract = nnx.eval_shape(
        lambda: tower(config, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(params=0))
    )
    height, width = (side // config.patch_size for side in preprocessing.output_size)
    graph = nnx.graphdef(abstract)
    encoder = FrozenEncoder(checkpoint, preprocessing, config.hidden_size, (height, width), graph)
    return encoder, nnx.to_pure_dict(nnx.state(abstract))


def _check_sizes(checkpoint: Checkpoint, config: TowerConfig) -> None:
    where = checkpoint.config_file
    if config.num_channels != 3:
        raise DataError(f"{where}: num_channels is {config.num_channels}; the images have 3")
    if config.hidden_size % config.num_attention_heads:
        raise DataError(
            f"{where}: num_attention_heads={config.num_attention_heads} does not divide "
            f"hidden_size={config.hidden_size}"
        )
    if config.patch_size > config.image_size:
        raise DataError(
            f"{where}: patch_size={config.patch_size} is larger than image_size={config.image_size}"
        )
