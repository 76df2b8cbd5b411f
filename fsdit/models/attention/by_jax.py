"""Attention by JAX's own function, for cuDNN's kernel."""

from typing import Literal

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from fsdit.models.attention.plain import KEPT


def attend_by_jax(
    query: Float[Array, "B H N d"],
    key: Float[Array, "B H M d"],
    value: Float[Array, "B H M d"],
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "B H N d"]:
    """`attend` by `jax.nn.dot_product_attention`, which takes arrays (B, N, H, d).

    "cudnn": bfloat16 on NVIDIA GPUs, d a multiple of 8. "xla": anywhere, to compare with.
    """
    swapped = (x.swapaxes(1, 2) for x in (query, key, value))
    mixed = jax.nn.dot_product_attention(*swapped, scale=1.0, implementation=implementation)
    return checkpoint_name(mixed.swapaxes(1, 2), KEPT)
