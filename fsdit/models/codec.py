"""Latent codecs: images -> what the flow works on, and back.

A codec is frozen and runs outside the model. Pixels are the identity codec.
"""

from typing import Protocol, runtime_checkable

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8


@runtime_checkable
class LatentCodec(Protocol):
    """encode may draw from a posterior with one key an example; decode is deterministic.

    A codec is a pytree whose leaves are its parameters. Code that is compiled takes it as
    an argument, so that parameters are placed and sharded like any other, and are no
    constants of the program: `jax.jit(lambda codec, x: codec.decode(x))`.
    """

    def latent_shape(self, image_size: int, channels: int) -> tuple[int, int, int]:
        """(h, w, c) of the latents of square images."""
        ...

    def encode(
        self, images: UInt8[Array, "B H W C"], keys: Key[Array, "B"]
    ) -> Float[Array, "B h w c"]: ...

    def decode(self, latents: Float[Array, "B h w c"]) -> UInt8[Array, "B H W C"]: ...


def scale_pixels(images: UInt8[Array, "*S H W C"]) -> Float[Array, "*S H W C"]:
    """uint8 -> float32 in [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def unscale_pixels(pixels: Float[Array, "*S H W C"]) -> UInt8[Array, "*S H W C"]:
    """Inverse of `scale_pixels`; what lies outside [-1, 1] is clipped."""
    return jnp.round(jnp.clip(pixels + 1.0, 0, 2) * 127.5).astype(jnp.uint8)


@flax.struct.dataclass
class PixelCodec:
    """The identity: latents are pixels in [-1, 1]. It has no parameters."""

    def latent_shape(self, image_size: int, channels: int) -> tuple[int, int, int]:
        return (image_size, image_size, channels)

    def encode(
        self, images: UInt8[Array, "B H W C"], keys: Key[Array, "B"]
    ) -> Float[Array, "B H W C"]:
        del keys
        return scale_pixels(images)

    def decode(self, latents: Float[Array, "B H W C"]) -> UInt8[Array, "B H W C"]:
        return unscale_pixels(latents)
