"""Latent codecs: images -> what the flow works on, and back.

A codec is frozen and runs outside the model. Pixels are the identity codec.
"""

from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8


@runtime_checkable
class LatentCodec(Protocol):
    """encode may draw from a posterior with one key an example; decode is deterministic."""

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


class PixelCodec:
    """The identity: latents are pixels in [-1, 1]."""

    def latent_shape(self, image_size: int, channels: int) -> tuple[int, int, int]:
        return (image_size, image_size, channels)

    def encode(
        self, images: UInt8[Array, "B H W C"], keys: Key[Array, "B"]
    ) -> Float[Array, "B H W C"]:
        del keys
        return scale_pixels(images)

    def decode(self, latents: Float[Array, "B H W C"]) -> UInt8[Array, "B H W C"]:
        return jnp.round(jnp.clip(latents + 1.0, 0, 2) * 127.5).astype(jnp.uint8)
