"""Attention in the fast memory of a TPU's core, by a kernel in Pallas.

The heads lie side by side in rows of D numbers, as the linear layers make them. Those that share
128 lanes, two heads of width 64, are computed together: their queries, keys and values Q, K and V
(128 columns) are multiplied as they lie. With E_h, which is 1 in the columns of head h and
0 in the others, and * element by element, the logits of head h are

    (1)  S_h = (Q * E_h) K^T

and the equations of `fsdit.models.attention.plain` become

    (2)  P_h = softmax of the rows of S_h
    (3)  O = sum_h (P_h V) * E_h
    (4)  dV = sum_h P_h^T (dO * E_h)
    (5)  dS_h = P_h * (dP_h - row sums of P_h * dP_h),    dP_h = (dO * E_h) V^T
    (6)  dQ = sum_h dS_h (K * E_h),    dK = sum_h dS_h^T (Q * E_h)

A matrix unit has 128 rows and columns, so that multiplying with zeros costs what a head of width
64 would cost alone, and no columns have to be moved. S_h, P_h and dS_h stay in the core's memory.
The backward pass computes P_h again from Q and K, so that only Q, K and V are kept. It has
the transposes of S_h, P_h and dS_h, so that only one of its products has to transpose a matrix.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from fsdit.models.attention.plain import KEPT

LANES = 128  # columns of a matrix unit, and numbers in a row of a core's registers

MEMORY = 2**26  # bytes of a core's memory that the kernel may use: half of that of v5e and v6e


def attend_packed(
    query: Float[Array, "B H N d"],
    key: Float[Array, "B H M d"],
    value: Float[Array, "B H M d"],
    interpret: bool = False,
) -> Float[Array, "B H N d"]:
    """`attend` on TPUs; d divides 128, and H d is a multiple of 128.

    Softmax is in float32, and so are sums of products. interpret: computes on any device, slowly.
    """
    width = query.shape[-1]
    rows = [checkpoint_name(_joined(x), KEPT) for x in (query, key, value)]
    return _split(checkpoint_name(_attend(*rows, width, interpret), KEPT), width)


def _joined(heads: Float[Array, "B H N d"]) -> Float[Array, "B N D"]:
    return heads.swapaxes(1, 2).reshape(heads.shape[0], heads.shape[2], -1)


def _split(rows: Float[Array, "B N D"], width: int) -> Float[Array, "B H N d"]:
    return rows.reshape(*rows.shape[:2], -1, width).swapaxes(1, 2)


def memory(queries: int, keys: int, dim: int) -> int:
    """Bytes of a core's memory that the backward pass of an example needs at most.

    It has float32 arrays of queries x keys, and bfloat16 rows of `dim` numbers, held twice: those
    of the next example are read, and those of the last one written, meanwhile.
    """
    queries, keys = (math.ceil(count / LANES) * LANES for count in (queries, keys))
    return 6 * 4 * queries * keys + 2 * 2 * dim * (3 * queries + 4 * keys)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _attend(query: Array, key: Array, value: Array, width: int, interpret: bool) -> Array:
    """Equations (1) to (3) on rows (B, N, D), (B, M, D) and (B, M, D), heads of `width`."""
    return _forward(query, key, value, width, interpret)[0]


def _forward(
    query: Array, key: Array, value: Array, width: int, interpret: bool
) -> tuple[Array, tuple[Array, ...]]:
    rows = (query, key, value)
    (mixed,) = _call(_forward_kernel, rows, (query,), width, interpret, products=2)
    return mixed, rows


def _backward(
    width: int, interpret: bool, rows: tuple[Array, ...], gradient: Array
) -> tuple[Array, ...]:
    """Gradients by query, key and value; `gradient` is dO."""
    inputs = (*rows, gradient)
    return tuple(_call(_backward_kernel, inputs, rows, width, interpret, products=5))


_attend.defvjp(_forward, _backward)


def _call(
    kernel: Callable,
    inputs: Sequence[Array],
    outputs: Sequence[Array],
    width: int,
    interpret: bool,
    products: int,
) -> Sequence[Array]:
    """Runs a kernel once for each example.

    outputs: arrays of the shapes and types of the results. products: number of products of
    queries x keys x width that the kernel computes for each head.
    """
    queries, keys = inputs[0].shape[1], inputs[1].shape[1]
    batch, _, dim = inputs[0].shape
    cost = pl.CostEstimate(
        flops=products * 2 * batch * queries * keys * dim,
        bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*inputs, *outputs)),
        transcendentals=batch * queries * keys * dim // width,
    )

    def block(array: Array) -> pl.BlockSpec:
        return pl.BlockSpec((1, *array.shape[1:]), lambda b: (b, 0, 0))

    return pl.pallas_call(
        functools.partial(kernel, width),
        grid=(batch,),
        in_specs=[block(x) for x in inputs],
        out_specs=[block(x) for x in outputs],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs],
        cost_estimate=cost,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",),
            vmem_limit_bytes=max(2**24, memory(queries, keys, dim)),
        ),
        interpret=interpret,
    )(*inputs)


def _groups(rows) -> Iterator[tuple[int, slice, slice]]:
    """Indices of the columns, of a block (1, N, D), that are computed together.

    More of them in one program give the core more to do while it waits for a result.
    """
    for first in range(0, rows.shape[-1], LANES):
        yield 0, slice(None), slice(first, first + LANES)


def _heads(width: int) -> list[Array]:
    """E_h of each head that shares the lanes, as (1, 128) booleans."""
    head = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1) // width
    return [head == h for h in range(LANES // width)]


def _product(a: Array, b: Array, axes: tuple[int, int]) -> Array:
    """The sum over axis axes[0] of matrix a and axis axes[1] of matrix b, in float32."""
    contracted = ((axes[0],), (axes[1],))
    return jax.lax.dot_general(a, b, (contracted, ((), ())), preferred_element_type=jnp.float32)


def _forward_kernel(width: int, query_ref, key_ref, value_ref, mixed_ref) -> None:
    for at in _groups(query_ref):
        query, key, value = query_ref[at], key_ref[at], value_ref[at]
        mixed = jnp.zeros(query.shape, jnp.float32)
        for own in _heads(width):
            logits = _product(jnp.where(own, query, 0), key, (1, 1))  # (1)
            weights = jnp.exp(logits - logits.max(1, keepdims=True))
            total = weights.sum(1, keepdims=True)
            found = _product(weights.astype(value.dtype), value, (1, 0)) / total
            mixed = jnp.where(own, found, mixed)  # (3)
        mixed_ref[at] = mixed.astype(mixed_ref.dtype)


def _backward_kernel(
    width: int, query_ref, key_ref, value_ref, gradient_ref, d_query_ref, d_key_ref, d_value_ref
) -> None:
    for at in _groups(query_ref):
        query, key, value, gradient = (r[at] for r in (query_ref, key_ref, value_ref, gradient_ref))
        d_query = jnp.zeros(query.shape, jnp.float32)
        d_key, d_value = jnp.zeros(key.shape, jnp.float32), jnp.zeros(key.shape, jnp.float32)
        for own in _heads(width):
            own_query, own_gradient = jnp.where(own, query, 0), jnp.where(own, gradient, 0)
            logits = _product(key, own_query, (1, 1))  # the transpose of (1): keys x queries
            weights = jnp.exp(logits - logits.max(0, keepdims=True))
            p = weights / weights.sum(0, keepdims=True)
            d_value += _product(p.astype(value.dtype), own_gradient, (1, 0))  # (4)
            d_p = _product(value, own_gradient, (1, 1))
            d_logits = p * (d_p - (p * d_p).sum(0, keepdims=True))  # (5)
            d_logits = d_logits.astype(query.dtype)
            d_key += _product(d_logits, own_query, (1, 0))  # (6)
            d_query += _product(d_logits, jnp.where(own, key, 0), (0, 0))
        d_query_ref[at] = d_query.astype(d_query_ref.dtype)
        d_key_ref[at] = d_key.astype(d_key_ref.dtype)
        d_value_ref[at] = d_value.astype(d_value_ref.dtype)
