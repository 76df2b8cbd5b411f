"""AutoencoderKL: the frozen VAE of Stable Diffusion, SD3 and FLUX, as a latent codec.

The network is that of diffusers (models/autoencoders/autoencoder_kl.py and vae.py there;
Rombach et al., arXiv 2112.10752), and its attributes bear the names of the tensors in the
published checkpoints. All arrays are NHWC.

    posterior of an image    z ~ N(mean, exp(log_variance))
    latents of the flow      (z - shift_factor) * scaling_factor

Parameters are float32; convolutions run in `dtype`; norms, softmax and the posterior in
float32.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Annotated, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from flax import nnx, traverse_util
from jaxtyping import Array, Float, Key, PyTree, UInt8

from fsdit.config.bounds import Depth, Width, real
from fsdit.errors import ConfigError, DataError, multiples_near
from fsdit.models import layers
from fsdit.models.codec import scale_pixels, unscale_pixels
from fsdit.models.pretrained.stored import weights

_FLOAT32 = jnp.dtype("float32")
_EPSILON = 1e-6
_LOG_VARIANCE = (-30.0, 20.0)  # the original clamps to these


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """What config.json says; the defaults are diffusers', for files that leave fields out."""

    in_channels: Width = 3
    out_channels: Width = 3
    down_block_types: tuple[Literal["DownEncoderBlock2D"], ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[Literal["UpDecoderBlock2D"], ...] = ("UpDecoderBlock2D",)
    block_out_channels: Annotated[tuple[Width, ...], pydantic.Field(max_length=12)] = (64,)
    layers_per_block: Depth = 1
    act_fn: Literal["silu", "swish"] = "silu"
    latent_channels: Width = 4
    norm_num_groups: Width = 32
    scaling_factor: Annotated[float, real(1e-6, 1e6)] | None = 0.18215
    shift_factor: Annotated[float, real(-1e6, 1e6)] | None = None
    latents_mean: None = None
    latents_std: None = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    @property
    def downsampling(self) -> int:
        """Side of the square of pixels that one latent stands for."""
        return 2 ** (len(self.block_out_channels) - 1)


class _Builder:
    """Makes the layers of one network: convolutions in `dtype`, norms in float32."""

    def __init__(self, config: AutoencoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config, self.dtype, self.rngs = config, dtype, rngs

    def conv(self, inputs: int, outputs: int, **options) -> nnx.Conv:
        options = {"padding": 1, "dtype": self.dtype, "rngs": self.rngs} | options
        return nnx.Conv(inputs, outputs, (3, 3), **options)

    def linear(self, inputs: int, outputs: int, dtype: jnp.dtype | None = None) -> layers.Linear:
        """Over channels: what the original has as a 1 x 1 convolution, too."""
        return layers.Linear(inputs, outputs, dtype=dtype or self.dtype, rngs=self.rngs)

    def norm(self, width: int) -> nnx.GroupNorm:
        return nnx.GroupNorm(
            width,
            self.config.norm_num_groups,
            epsilon=_EPSILON,
            use_fast_variance=False,
            dtype=_FLOAT32,
            rngs=self.rngs,
        )


class _Resnet(nnx.Module):
    def __init__(self, make: _Builder, inputs: int, outputs: int):
        self.norm1 = make.norm(inputs)
        self.conv1 = make.conv(inputs, outputs)
        self.norm2 = make.norm(outputs)
        self.conv2 = make.conv(outputs, outputs)
        self.conv_shortcut = make.linear(inputs, outputs) if inputs != outputs else None

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        h = self.conv1(nnx.silu(self.norm1(x)))
        h = self.conv2(nnx.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class _Attention(nnx.Module):
    """Self-attention over all places, one head."""

    def __init__(self, make: _Builder, width: int):
        self.dtype = make.dtype
        self.group_norm = make.norm(width)
        self.to_q, self.to_k, self.to_v, self.to_out = (make.linear(width, width) for _ in range(4))

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        b, h, w, c = x.shape
        normed = self.group_norm(x).astype(self.dtype)
        query, key, value = (
            project(normed).reshape(b, h * w, 1, c) for project in (self.to_q, self.to_k, self.to_v)
        )
        mixed = jax.nn.dot_product_attention(query, key, value)
        return x + self.to_out(mixed.reshape(b, h, w, c))


class _MidBlock(nnx.Module):
    def __init__(self, make: _Builder, width: int):
        self.resnets = nnx.List([_Resnet(make, width, width) for _ in range(2)])
        attend = make.config.mid_block_add_attention
        self.attentions = nnx.List([_Attention(make, width)] if attend else [])

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class _Block(nnx.Module):
    """Residual blocks, then a change of size: half, double or none."""

    def __init__(self, make: _Builder, depth: int, inputs: int, outputs: int, resize: str):
        widths = [inputs] + [outputs] * depth
        self.resnets = nnx.List([_Resnet(make, a, b) for a, b in itertools.pairwise(widths)])
        # The original pads below and to the right only.
        half = {"strides": 2, "padding": ((0, 1), (0, 1))}
        self.downsample = make.conv(outputs, outputs, **half) if resize == "half" else None
        self.upsample = make.conv(outputs, outputs) if resize == "double" else None

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        for resnet in self.resnets:
            x = resnet(x)
        if self.downsample is not None:
            return self.downsample(x)
        return x if self.upsample is None else self.upsample(_nearest_double(x))


def _nearest_double(x: Float[Array, "B H W C"]) -> Float[Array, "B _ _ C"]:
    b, h, w, c = x.shape
    wide = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))
    return wide.reshape(b, 2 * h, 2 * w, c)


class _Encoder(nnx.Module):
    def __init__(self, make: _Builder):
        widths, depth = make.config.block_out_channels, make.config.layers_per_block
        self.conv_in = make.conv(make.config.in_channels, widths[0])
        self.down_blocks = nnx.List(
            [
                _Block(make, depth, widths[max(i - 1, 0)], width, "half")
                for i, width in enumerate(widths[:-1])
            ]
            + [_Block(make, depth, widths[-2:][0], widths[-1], "none")]
        )
        self.mid_block = _MidBlock(make, widths[-1])
        self.conv_norm_out = make.norm(widths[-1])
        self.conv_out = make.conv(widths[-1], 2 * make.config.latent_channels)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w _"]:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(x)))


class _Decoder(nnx.Module):
    def __init__(self, make: _Builder):
        widths, depth = make.config.block_out_channels[::-1], make.config.layers_per_block + 1
        self.conv_in = make.conv(make.config.latent_channels, widths[0])
        self.mid_block = _MidBlock(make, widths[0])
        self.up_blocks = nnx.List(
            [
                _Block(make, depth, widths[max(i - 1, 0)], width, "double")
                for i, width in enumerate(widths[:-1])
            ]
            + [_Block(make, depth, widths[-2:][0], widths[-1], "none")]
        )
        self.conv_norm_out = make.norm(widths[-1])
        self.conv_out = make.conv(widths[-1], make.config.out_channels)

    def __call__(self, z: Float[Array, "B h w c"]) -> Float[Array, "B H W C"]:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(x)))


class Autoencoder(nnx.Module):
    """The network as published: pixels in [-1, 1] and unscaled z."""

    def __init__(self, config: AutoencoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        make, width = _Builder(config, dtype, rngs), config.latent_channels
        self.encoder = _Encoder(make)
        self.decoder = _Decoder(make)
        quant, post_quant = config.use_quant_conv, config.use_post_quant_conv
        self.quant_conv = make.linear(2 * width, 2 * width, _FLOAT32) if quant else None
        self.post_quant_conv = make.linear(width, width, _FLOAT32) if post_quant else None

    def encode(
        self, pixels: Float[Array, "B H W C"]
    ) -> tuple[Float[Array, "B h w c"], Float[Array, "B h w c"]]:
        """(mean, log-variance) of the posterior, float32."""
        moments = self.encoder(pixels).astype(_FLOAT32)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, *_LOG_VARIANCE)

    def decode(self, z: Float[Array, "B h w c"]) -> Float[Array, "B H W C"]:
        """Pixels, about [-1, 1], float32."""
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        return self.decoder(z).astype(_FLOAT32)


@functools.cache
def _abstract(config: AutoencoderConfig, dtype: str) -> tuple[nnx.GraphDef, nnx.State]:
    """Structure and shapes; nothing is computed."""
    return nnx.split(
        nnx.eval_shape(lambda: Autoencoder(config, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0)))
    )


@flax.struct.dataclass
class AutoencoderKL:
    """A LatentCodec: a pytree whose leaves are the parameters, a nested dict.

    dtype: of the convolutions. max_batch: images that are in work at once, over the whole
    mesh; a larger batch is done in parts, one after another. None: all.
    """

    params: dict
    config: AutoencoderConfig = flax.struct.field(pytree_node=False)
    dtype: str = flax.struct.field(pytree_node=False, default="float32")
    max_batch: int | None = flax.struct.field(pytree_node=False, default=None)

    @property
    def network(self) -> Autoencoder:
        return nnx.merge(_abstract(self.config, self.dtype)[0], nnx.State(self.params))

    def latent_shape(self, image_size: int, channels: int) -> tuple[int, int, int]:
        """(h, w, c) of the latents of square images.

        Errors:
            ConfigError: the autoencoder cannot take such images.
        """
        self._check(image_size, image_size, channels)
        side = image_size // self.config.downsampling
        return (side, side, self.config.latent_channels)

    def moments(
        self, images: UInt8[Array, "B H W C"]
    ) -> tuple[Float[Array, "B h w c"], Float[Array, "B h w c"]]:
        """(mean, log-variance) of each image's posterior, unscaled: what is worth storing.

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
        """Latents drawn from posteriors. Needs no parameters."""
        mean, log_variance = (part.astype(_FLOAT32) for part in moments)
        noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
        shift, scale = self._shift_and_scale
        return (mean + jnp.exp(log_variance / 2) * noise - shift) * scale

    def decode(self, latents: Float[Array, "B h w c"]) -> UInt8[Array, "B H W C"]:
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
    """`function` over the rows of `batch`, at most `limit` of them at once.

    Part m takes rows m, m + parts, ...: each device works on its own rows.
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
    """Random kernels, a pure function of the seed; parameters in NumPy.

    options: as of `load`.
    """
    random = np.random.default_rng(seed)  # compiles nothing, unlike JAX's initializers

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if leaf.ndim == 1:
            return np.full(leaf.shape, 1 if path[-1].key == "scale" else 0, leaf.dtype)
        deviation = leaf.dtype.type(math.prod(leaf.shape[:-1]) ** -0.5)
        return random.standard_normal(leaf.shape, leaf.dtype) * deviation

    return AutoencoderKL(jax.tree.map_with_path(draw, abstract_params(config)), config, **options)


def load(location: str, subfolder: str = "", **options) -> AutoencoderKL:
    """The autoencoder of a directory in the hub's layout or of a hub id; parameters in NumPy.

    subfolder: "vae" in the checkpoint of a whole pipeline. options: `dtype` and `max_batch`
    of AutoencoderKL.

    Errors:
        DataError: no such checkpoint, another architecture, or a tensor missing, left over
            or misshapen.
    """
    checkpoint = weights.open_checkpoint(location, subfolder)
    checkpoint.require("_class_name", "AutoencoderKL")
    config = checkpoint.parse(AutoencoderConfig)
    if reason := _inconsistent(config):
        raise DataError(f"{checkpoint.config_file}: {reason}")
    checkpoint.check_layers(len(config.block_out_channels) * config.layers_per_block)
    template = abstract_params(config)
    sources = mapping(config, any(".query." in name for name in checkpoint.files))
    return AutoencoderKL(weights.load_params(checkpoint, template, sources), config, **options)


def _inconsistent(config: AutoencoderConfig) -> str | None:
    """Why no network has this configuration, if so."""
    widths = config.block_out_channels
    if not len(widths) == len(config.down_block_types) == len(config.up_block_types) > 0:
        return "block_out_channels, down_block_types and up_block_types differ in length"
    if any(width % config.norm_num_groups for width in widths):
        return f"norm_num_groups={config.norm_num_groups} does not divide {list(widths)}"
    if config.in_channels != config.out_channels:
        return f"in_channels={config.in_channels} but out_channels={config.out_channels}"
    return None


_RENAMED = {
    "downsample": "downsamplers.0.conv",
    "upsample": "upsamplers.0.conv",
    "to_out": "to_out.0",
    "kernel": "weight",
    "scale": "weight",
}
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out": "proj_attn"}


def mapping(config: AutoencoderConfig, old_attention: bool = False) -> weights.Mapped:
    """The tensor that each parameter is read from.

    old_attention: the attention's tensors bear their names of before diffusers 0.16, as in
    the published SD VAEs.
    """
    renamed = _RENAMED | (_OLD_ATTENTION if old_attention else {})
    transforms = {1: np.asarray, 2: _linear_kernel, 4: weights.conv_kernel}  # by number of axes
    sources = {}
    for path, leaf in traverse_util.flatten_dict(abstract_params(config)).items():
        name = ".".join(renamed.get(part, str(part)) for part in path)
        sources["/".join(map(str, path))] = weights.Source((name,), transforms[leaf.ndim])
    return sources


def abstract_params(config: AutoencoderConfig) -> dict:
    """Shapes and types of the parameters; nothing is computed."""
    return nnx.to_pure_dict(_abstract(config, "float32")[1])


def _linear_kernel(tensor: np.ndarray) -> np.ndarray:
    """(out, in), or (out, in, 1, 1) where it is a 1 x 1 convolution -> (in, out)."""
    return tensor.reshape(tensor.shape[:2]).T
