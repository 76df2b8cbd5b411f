"""Scaled dot-product attention that keeps no scores for its backward pass.

softmax(q k^T / sqrt(d)) v (Vaswani et al., arXiv 1706.03762), softmax in float32, with the
rewriting of FlashAttention (Dao et al., arXiv 2205.14135): sums are divided out after the
product with the values, and the backward pass computes the probabilities again from the
logarithm of the sums. What is kept grows with the number of tokens, not with its square.
Products have their batch axes in front: XLA multiplies these fastest, on CPUs above all.
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
    top = logits.max(-1, keepdims=True)
    weights = jnp.exp(logits - top)
    total = weights.sum(-1, keepdims=True)
    mixed = _product("bhnm,bhme->bhne", weights.astype(value.dtype), value) / total
    mixed = checkpoint_name(mixed.astype(value.dtype), KEPT)
    log_total = checkpoint_name(top + jnp.log(total), KEPT)
    return mixed, (query, key, value, mixed, log_total)


def _backward(residuals: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
    query, key, value, mixed, log_total = residuals
    p = jnp.exp(_product("bhnd,bhmd->bhnm", query, key) - log_total).astype(value.dtype)
    d_value = _product("bhnm,bhne->bhme", p, gradient)
    slope = (gradient.astype(jnp.float32) * mixed).sum(-1, keepdims=True)
    d_logits = p * (_product("bhne,bhme->bhnm", gradient, value) - slope)
    d_logits = d_logits.astype(query.dtype)
    d_query = _product("bhnm,bhmd->bhnd", d_logits, key)
    d_key = _product("bhnm,bhnd->bhmd", d_logits, query)
    return d_query.astype(query.dtype), d_key.astype(key.dtype), d_value.astype(value.dtype)


attend.defvjp(_forward, _backward)
