"""AutoencoderKL: the frozen VAE of Stable Diffusion, SD3 and FLUX, as a latent codec.

The encoder gives each image a normal posterior (Rombach et al., arXiv 2112.10752); the flow
works on samples of it, shifted and scaled as diffusers' pipelines do:

    (1) z = mean + exp(log_variance / 2) * noise,    noise ~ N(0, 1)
    (2) latents = (z - shift_factor) * scaling_factor

The network itself is `autoencoder_network`.
"""

import math
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from jaxtyping import Array, Float, Key, PyTree, UInt8

from fsdit.errors import ConfigError, DataError, multiples_near
from fsdit.models.codec import scale_pixels, unscale_pixels
from fsdit.models.pretrained.autoencoder_network import (
    Autoencoder,
    AutoencoderConfig,
    abstract_network,
)
from fsdit.models.pretrained.stored import weights
from fsdit.models.pretrained.stored.checkpoint import open_checkpoint

_FLOAT32 = jnp.dtype("float32")


@flax.struct.dataclass
class AutoencoderKL:
    """A LatentCodec: a pytree whose leaves are the parameters, a nested dict.

    dtype: the type that convolutions compute in. max_batch: images that are encoded or decoded
    at once, over all devices; a larger batch is done in parts, one after another. None: all at
    once.
    """

    params: dict
    config: AutoencoderConfig = flax.struct.field(pytree_node=False)
    dtype: str = flax.struct.field(pytree_node=False, default="float32")
    max_batch: int | None = flax.struct.field(pytree_node=False, default=None)

    @property
    def network(self) -> Autoencoder:
        """The network with these parameters."""
        return nnx.merge(abstract_network(self.config, self.dtype)[0], nnx.State(self.params))

    def latent_shape(self, image_size: int, channels: int) -> tuple[int, int, int]:
        """Returns (h, w, c) of the latents of square images.

        Errors:
            ConfigError: the autoencoder cannot take such images.
        """
        self._check(image_size, image_size, channels)
        side = image_size // self.config.downsampling
        return (side, side, self.config.latent_channels)

    def moments(
        self, images: UInt8[Array, "B H W C"]
    ) -> tuple[Float[Array, "B h w c"], Float[Array, "B h w c"]]:
        """Returns mean and log-variance of each image's posterior, before equation (2).

        Errors:
            ConfigError: the autoencoder cannot take such images.
        """
        self._check(*images.shape[1:])
        return _in_parts(lambda i: self.network.encode(scale_pixels(i)), images, self.max_batch)

    def sample(
        self,
        moments: tuple[Float[Array, "B h w c"], Float[Array, "B h w c"]],
        keys: Key[Array, "B"],
    ) -> Float[Array, "B h w c"]:
        """Samples latents by equations (1) and (2), one key an example. Uses no parameters."""
        mean, log_variance = (part.astype(_FLOAT32) for part in moments)
        noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
        shift, scale = self._shift_and_scale
        return (mean + jnp.exp(log_variance / 2) * noise - shift) * scale

    def decode(self, latents: Float[Array, "B h w c"]) -> UInt8[Array, "B H W C"]:
        """Undoes equation (2) and decodes z."""
        shift, scale = self._shift_and_scale

        def part(latents: Array) -> Array:
            return unscale_pixels(self.network.decode(latents.astype(_FLOAT32) / scale + shift))

        return _in_parts(part, latents, self.max_batch)

    @property
    def _shift_and_scale(self) -> tuple[float, float]:
        shift, scale = self.config.shift_factor, self.config.scaling_factor
        return (0.0 if shift is None else shift, 1.0 if scale is None else scale)

    def _check(self, height: int, width: int, channels: int) -> None:
        if channels != self.config.in_channels:
            raise ConfigError(
                f"the autoencoder takes images of {self.config.in_channels} channels, these have "
                f"{channels}; convert the dataset with --channels={self.config.in_channels}"
            )
        factor = self.config.downsampling
        if height % factor or width % factor:
            raise ConfigError(
                f"the autoencoder takes images whose sides are multiples of {factor}, these are "
                f"{height} x {width}; convert the dataset with another --image_size: "
                f"{multiples_near(height, factor)}"
            )


def _in_parts(function: Callable[[Array], PyTree], batch: Array, limit: int | None) -> PyTree:
    """Applies `function` to the rows of `batch`, at most `limit` of them at once (None: all).

    Part m holds rows m, m + parts, m + 2 parts, ... A batch is sharded over devices in
    contiguous blocks, so each part has rows of every device, and none has to move.
    """
    rows = batch.shape[0]
    parts = math.ceil(rows / (limit or max(rows, 1)))
    if parts <= 1:
        return function(batch)
    parts = next(n for n in range(parts, rows + 1) if rows % n == 0)
    split = batch.reshape(rows // parts, parts, *batch.shape[1:]).swapaxes(0, 1)
    done = jax.lax.map(function, split)
    return jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(rows, *a.shape[2:]), done)


def init(config: AutoencoderConfig, seed: int, **options) -> AutoencoderKL:
    """Returns an autoencoder with random kernels, a pure function of the seed, in NumPy.

    options: those of `load`.
    """
    random = np.random.default_rng(seed)  # compiles nothing, unlike JAX's initializers

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if leaf.ndim == 1:
            return np.full(leaf.shape, 1 if path[-1].key == "scale" else 0, leaf.dtype)
        deviation = leaf.dtype.type(math.prod(leaf.shape[:-1]) ** -0.5)
        return random.standard_normal(leaf.shape, leaf.dtype) * deviation

    return AutoencoderKL(jax.tree.map_with_path(draw, abstract_params(config)), config, **options)


def load(location: str, subfolder: str = "", **options) -> AutoencoderKL:
    """Loads the autoencoder at a directory in the hub's layout or a hub id; parameters in NumPy.

    subfolder: "vae" in the checkpoint of a complete pipeline. options: `dtype` and `max_batch`
    of AutoencoderKL.

    Errors:
        DataError: no such checkpoint, another architecture, or a tensor missing, left over
            or misshapen.
    """
    checkpoint = open_checkpoint(location, subfolder)
    checkpoint.require("_class_name", "AutoencoderKL")
    config = checkpoint.parse(AutoencoderConfig)
    if reason := _inconsistent(config):
        raise DataError(f"{checkpoint.config_file}: {reason}")
    checkpoint.check_layers(len(config.block_out_channels) * config.layers_per_block)
    template = abstract_params(config)
    sources = mapping(config, any(".query." in name for name in checkpoint.files))
    return AutoencoderKL(weights.load_params(checkpoint, template, sources), config, **options)


def _inconsistent(config: AutoencoderConfig) -> str | None:
    """Returns why no network can have this configuration, or None."""
    widths = config.block_out_channels
    if not len(widths) == len(config.down_block_types) == len(config.up_block_types) > 0:
        return "block_out_channels, down_block_types and up_block_types differ in length"
    if any(width % config.norm_num_groups for width in widths):
        return f"norm_num_groups={config.norm_num_groups} does not divide {list(widths)}"
    if config.in_channels != config.out_channels:
        return f"in_channels={config.in_channels} but out_channels={config.out_channels}"
    return None


# Part of a parameter's path here -> its name in diffusers.
_RENAMED = {
    "downsample": "downsamplers.0.conv",
    "upsample": "upsamplers.0.conv",
    "to_out": "to_out.0",
    "kernel": "weight",
    "scale": "weight",
}
# The attention's tensors before diffusers 0.16, as in the published SD VAEs.
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out": "proj_attn"}


def mapping(config: AutoencoderConfig, old_attention: bool = False) -> weights.Mapped:
    """Returns the tensor that each parameter is read from.

    old_attention: whether the attention's tensors have the names of before diffusers 0.16.
    """
    renamed = _RENAMED | (_OLD_ATTENTION if old_attention else {})
    transforms = {1: np.asarray, 2: _linear_kernel, 4: weights.conv_kernel}  # by number of axes
    sources = {}
    for path, leaf in traverse_util.flatten_dict(abstract_params(config)).items():
        name = ".".join(renamed.get(part, str(part)) for part in path)
        sources["/".join(map(str, path))] = weights.Source((name,), transforms[leaf.ndim])
    return sources


def abstract_params(config: AutoencoderConfig) -> dict:
    """Returns shapes and types of the parameters; nothing is computed."""
    return nnx.to_pure_dict(abstract_network(config, "float32")[1])


def _linear_kernel(tensor: np.ndarray) -> np.ndarray:
    """(out, in), or (out, in, 1, 1) of a 1 x 1 convolution -> (in, out)."""
    return tensor.reshape(tensor.shape[:2]).T
