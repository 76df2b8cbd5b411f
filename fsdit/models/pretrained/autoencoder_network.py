"""The network of AutoencoderKL: encoder, decoder, and the configuration that gives their sizes.

A port of diffusers (models/autoencoders/autoencoder_kl.py and vae.py there; Rombach et al.,
arXiv 2112.10752). Attributes bear the names of the tensors in published checkpoints, except
those in `autoencoder_kl._RENAMED`. All arrays are NHWC. Parameters are float32; convolutions
run in `dtype`; norms, softmax and the posterior are float32.
"""

import dataclasses
import functools
import itertools
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from jaxtyping import Array, Float

from fsdit.config.bounds import Depth, Width, real
from fsdit.models import layers

_FLOAT32 = jnp.dtype("float32")
_EPSILON = 1e-6  # added to the variance by each norm
_LOG_VARIANCE = (-30.0, 20.0)  # diffusers clamps the log-variance to this range


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """The fields of config.json that matter here.

    A field that the file leaves out has diffusers' default. latents_mean, latents_std: only
    None is taken, because nothing here applies them.
    """

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
        """Pixels along one side of the square that one latent stands for."""
        return 2 ** (len(self.block_out_channels) - 1)


class _Builder:
    """Makes the layers of one network: 3 x 3 convolutions in `dtype`, group norms in float32."""

    def __init__(self, config: AutoencoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config, self.dtype, self.rngs = config, dtype, rngs

    def conv(self, inputs: int, outputs: int, **options) -> nnx.Conv:
        options = {"padding": 1, "dtype": self.dtype, "rngs": self.rngs} | options
        return nnx.Conv(inputs, outputs, (3, 3), **options)

    def linear(self, inputs: int, outputs: int, dtype: jnp.dtype | None = None) -> layers.Linear:
        """Makes a dense layer over channels: in diffusers, some are 1 x 1 convolutions."""
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
    """shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))))))."""

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
    """x + out(softmax(q k^T / sqrt(C)) v): one head, over all H W places of the normed input."""

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
    """Residual block, attention (where the configuration has it), residual block."""

    def __init__(self, make: _Builder, width: int):
        self.resnets = nnx.List([_Resnet(make, width, width) for _ in range(2)])
        attend = make.config.mid_block_add_attention
        self.attentions = nnx.List([_Attention(make, width)] if attend else [])

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class _Stage(nnx.Module):
    """Residual blocks, then a change of size.

    resize: "half" (a convolution of stride 2), "double" (each pixel four times, then a
    convolution) or "none".
    """

    def __init__(self, make: _Builder, depth: int, inputs: int, outputs: int, resize: str):
        widths = [inputs] + [outputs] * depth
        self.resnets = nnx.List([_Resnet(make, a, b) for a, b in itertools.pairwise(widths)])
        # diffusers pads below and to the right only.
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
    """(B, 2 H, 2 W, C): each pixel becomes a square of two by two."""
    b, h, w, c = x.shape
    wide = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))
    return wide.reshape(b, 2 * h, 2 * w, c)


class _Encoder(nnx.Module):
    """Pixels (B, H, W, C) -> mean beside log-variance (B, h, w, 2 c), before quant_conv."""

    def __init__(self, make: _Builder):
        widths, depth = make.config.block_out_channels, make.config.layers_per_block
        self.conv_in = make.conv(make.config.in_channels, widths[0])
        self.down_blocks = nnx.List(
            [
                _Stage(make, depth, widths[max(i - 1, 0)], width, "half")
                for i, width in enumerate(widths[:-1])
            ]
            + [_Stage(make, depth, widths[-2:][0], widths[-1], "none")]
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
    """Latents z (B, h, w, c), after post_quant_conv -> pixels (B, H, W, C)."""

    def __init__(self, make: _Builder):
        widths, depth = make.config.block_out_channels[::-1], make.config.layers_per_block + 1
        self.conv_in = make.conv(make.config.latent_channels, widths[0])
        self.mid_block = _MidBlock(make, widths[0])
        self.up_blocks = nnx.List(
            [
                _Stage(make, depth, widths[max(i - 1, 0)], width, "double")
                for i, width in enumerate(widths[:-1])
            ]
            + [_Stage(make, depth, widths[-2:][0], widths[-1], "none")]
        )
        self.conv_norm_out = make.norm(widths[-1])
        self.conv_out = make.conv(widths[-1], make.config.out_channels)

    def __call__(self, z: Float[Array, "B h w c"]) -> Float[Array, "B H W C"]:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(x)))


class Autoencoder(nnx.Module):
    """The network as published: its pixels are in [-1, 1], its latents z are not scaled."""

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
        """Returns mean and log-variance of the posterior q(z | pixels), in float32."""
        moments = self.encoder(pixels).astype(_FLOAT32)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, *_LOG_VARIANCE)

    def decode(self, z: Float[Array, "B h w c"]) -> Float[Array, "B H W C"]:
        """Returns the pixels of z in float32; they lie about in [-1, 1] and are not clipped."""
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        return self.decoder(z).astype(_FLOAT32)


@functools.cache
def abstract_network(config: AutoencoderConfig, dtype: str) -> tuple[nnx.GraphDef, nnx.State]:
    """(graph, shapes of the parameters) of an `Autoencoder`; nothing is computed."""
    return nnx.split(
        nnx.eval_shape(lambda: Autoencoder(config, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0)))
    )
