"""Scaled dot-product attention that keeps no N x M array for its backward pass.

For queries Q (N, d), keys K (M, d) and values V (M, e) of one head (Vaswani et al., arXiv
1706.03762, equation 1; the caller has divided Q by sqrt(d)):

    S = Q K^T                                   logits
    (1)  L_i = log sum_j exp(S_ij)              computed as m_i + log sum_j exp(S_ij - m_i)
                                                with m_i = max_j S_ij
    (2)  P_ij = exp(S_ij - L_i)                 the softmax of each row of S
    (3)  O = P V

With dO, the gradient of the loss by O, the gradients are those of FlashAttention (Dao et al.,
arXiv 2205.14135, appendix B.2):

    (4)  dV = P^T dO
    (5)  D_i = sum_k dO_ik O_ik                 equals sum_j P_ij (dO V^T)_ij
    (6)  dS_ij = P_ij ((dO V^T)_ij - D_i)
    (7)  dQ = dS K
    (8)  dK = dS^T Q

The forward pass keeps Q, K, V, O and L, and the backward pass computes P again by (2), so what
is kept grows with N + M instead of N M. Softmax is in float32. Products have their batch axes in
front, because XLA multiplies these fastest, on CPUs above all.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

# Name of the results of matmuls and reductions, for policies of rematerialization: all else is
# elementwise and costs little to compute again.
KEPT = "kept"


def _product(subscripts: str, a: Array, b: Array) -> Array:
    return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)


@jax.custom_vjp
def attend(
    query: Float[Array, "B H N d"], key: Float[Array, "B H M d"], value: Float[Array, "B H M e"]
) -> Float[Array, "B H N e"]:
    """softmax(query key^T) value, equations (1) to (3); the caller has scaled the query."""
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
    """Gradients by query, key and value; `gradient` is dO."""
    query, key, value, mixed, log_total = residuals
    p = jnp.exp(_product("bhnd,bhmd->bhnm", query, key) - log_total).astype(value.dtype)  # (2)
    d_value = _product("bhnm,bhne->bhme", p, gradient)  # (4)
    row_sum = (gradient.astype(jnp.float32) * mixed).sum(-1, keepdims=True)  # (5)
    d_logits = p * (_product("bhne,bhme->bhnm", gradient, value) - row_sum)  # (6)
    d_logits = d_logits.astype(query.dtype)
    d_query = _product("bhnm,bhmd->bhnd", d_logits, key)  # (7)
    d_key = _product("bhnm,bhnd->bhmd", d_logits, query)  # (8)
    return d_query.astype(query.dtype), d_key.astype(key.dtype), d_value.astype(value.dtype)


attend.defvjp(_forward, _backward)
