"""A small projection of the DiT's tokens, which only training uses.

A convolution of 3 x 3 over the grid of tokens, as iREPA has in place of REPA's MLP (Singh et
al., arXiv 2512.10794).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key


def init(key: Key[Array, ""], dim: int, width: int) -> dict[str, Array]:
    """Makes the parameters of a projection from tokens of width D to tokens of width E."""
    kernel = nnx.initializers.xavier_uniform()(key, (3, 3, dim, width))
    return {"kernel": kernel, "bias": jnp.zeros((width,))}


def project(
    params: dict[str, Array], tokens: Float[Array, "B N D"], grid: tuple[int, int]
) -> Float[Array, "B N E"]:
    """The projected tokens, in float32. grid: rows and columns of the N tokens, row by row."""
    b, n, d = tokens.shape
    found = jax.lax.conv_general_dilated(
        tokens.reshape(b, *grid, d),
        params["kernel"].astype(tokens.dtype),
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return found.reshape(b, n, -1).astype(jnp.float32) + params["bias"]
