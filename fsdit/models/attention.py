"""Scaled dot-product attention, forward and backward.

softmax(q k^T / sqrt(d)) v (Vaswani et al., arXiv 1706.03762). Scores and softmax are float32;
the backward pass gets the probabilities in the type of the values, and nothing in float32 of
their size. As in FlashAttention (Dao et al., arXiv 2205.14135) the sums are divided out after
the product with the values. Products have their batch axes in front: XLA multiplies these
fastest, on CPUs above all.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

# Names what matmuls and reductions give, for policies of rematerialization: the rest is
# elementwise and costs little to compute again.
KEPT = "kept"


def _product(subscripts: str, a: Array, b: Array) -> Array:
    return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)


@jax.custom_vjp
def attend(
    query: Float[Array, "B H N d"], key: Float[Array, "B H M d"], value: Float[Array, "B H M e"]
) -> Float[Array, "B H N e"]:
    """softmax(query key^T) value; the caller has scaled the query. Softmax in float32."""
    return _forward(query, key, value)[0]


def _forward(query: Array, key: Array, value: Array) -> tuple[Array, tuple[Array, ...]]:
    logits = _product("bhnd,bhmd->bhnm", query, key)
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    inverse = 1 / weights.sum(-1, keepdims=True)
    weights, inverse = (checkpoint_name(x, KEPT) for x in (weights.astype(value.dtype), inverse))
    mixed = _product("bhnm,bhme->bhne", weights, value) * inverse
    mixed = checkpoint_name(mixed.astype(value.dtype), KEPT)
    return mixed, (query, key, value, weights, inverse, mixed)


def _backward(residuals: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
    query, key, value, weights, inverse, mixed = residuals
    # Of the unnormalized weights: the sums go to the gradient, which is smaller.
    gradient = gradient.astype(jnp.float32) * inverse
    slope = (gradient * mixed).sum(-1, keepdims=True)
    gradient = gradient.astype(value.dtype)
    d_value = _product("bhnm,bhne->bhme", weights, gradient)
    d_logits = weights * (_product("bhne,bhme->bhnm", gradient, value) - slope)
    d_logits = d_logits.astype(query.dtype)
    d_query = _product("bhnm,bhmd->bhnd", d_logits, key)
    d_key = _product("bhnm,bhnd->bhmd", d_logits, query)
    return d_query.astype(query.dtype), d_key.astype(key.dtype), d_value.astype(value.dtype)


attend.defvjp(_forward, _backward)
