"""Latent codecs: images -> what the flow works on, and back.

A codec is frozen and runs outside the model. Pixels are the identity codec.
"""

from typing import Protocol, runtime_checkable

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree, UInt8


@runtime_checkable
class LatentCodec(Protocol):
    """A frozen map of images to moments, of moments to latents by sampling, and back to images.

    A codec is a pytree whose leaves are its parameters. Compiled code that calls `moments` or
    `decode` takes the codec as an argument, so that its parameters are placed and sharded like
    all others, and are no constants of the program: `jax.jit(lambda codec, x: codec.decode(x))`.
    """

    def latent_shape(self, image_size: int, channels: int) -> tuple[int, int, int]:
        """Returns (h, w, c) of the latents of square images."""
        ...

    def moments(self, images: UInt8[Array, "B H W C"]) -> PyTree[Array]:
        """Returns what `sample` needs of each image; this is worth storing."""
        ...

    def sample(self, moments: PyTree[Array], keys: Key[Array, "B"]) -> Float[Array, "B h w c"]:
        """Samples latents with one key for each example. Uses no parameters."""
        ...

    def decode(self, latents: Float[Array, "B h w c"]) -> UInt8[Array, "B H W C"]: ...


def scale_pixels(images: UInt8[Array, "*S H W C"]) -> Float[Array, "*S H W C"]:
    """uint8 -> float32 in [-1, 1]: x / 127.5 - 1."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def unscale_pixels(pixels: Float[Array, "*S H W C"]) -> UInt8[Array, "*S H W C"]:
    """Inverse of `scale_pixels`, rounded; values outside [-1, 1] are clipped."""
    return jnp.round(jnp.clip(pixels + 1.0, 0, 2) * 127.5).astype(jnp.uint8)


@flax.struct.dataclass
class PixelCodec:
    """The identity: latents are pixels in [-1, 1]. It has no parameters."""

    def latent_shape(self, image_size: int, channels: int) -> tuple[int, int, int]:
        return (image_size, image_size, channels)

    def moments(self, images: UInt8[Array, "B H W C"]) -> UInt8[Array, "B H W C"]:
        return images

    def sample(
        self, moments: UInt8[Array, "B H W C"], keys: Key[Array, "B"]
    ) -> Float[Array, "B H W C"]:
        del keys
        return scale_pixels(moments)

    def decode(self, latents: Float[Array, "B H W C"]) -> UInt8[Array, "B H W C"]:
        return unscale_pixels(latents)
