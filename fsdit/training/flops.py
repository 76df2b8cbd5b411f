"""Model FLOPs: the floating-point operations of a computation, counted in its jaxpr.

Matrix products and convolutions are counted; a multiply-add is two operations:

    product of (..., m, k) and (..., k, n)     2 x batch x m x n x k              (1)
    convolution                                2 x elements of the output
                                                 x elements of the kernel
                                                 / output channels                (2)
    attention of (B, T, H, D) and (B, S, H, D) 2 x B x T x H x S x (D + D_value)  (3)

The body of a scan counts as often as it runs, and a branch as the most expensive one. (XLA's
own count takes a loop's body once, and adds what rematerialisation repeats.)

A train step counts as three forward passes (4): for y = x W, the backward pass computes two
products of the same size, dL/dx = dL/dy W^T and dL/dW = x^T dL/dy. These are the model FLOPs
by which PaLM defines the utilisation MFU (arXiv 2204.02311, appendix B): what is computed
again to save memory does not count.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jaxtyping import PyTree

from fsdit.config import Config
from fsdit.models.spec import ModelSpec
from fsdit.training.objective import objective, with_negatives


def of_step(spec: ModelSpec, config: Config, params: PyTree, batch: PyTree) -> int:
    """Model FLOPs of a train step on a batch, equation 4.

    Arguments may be arrays or shapes; nothing is computed. Raises ValueError as `of_jaxpr` does.
    """

    def losses(params: PyTree, batch: PyTree) -> jax.Array:
        return objective(spec, config, params, with_negatives(config, batch), 0).total

    return 3 * of(losses, params, batch)


def of(function: Callable, *args: PyTree) -> int:
    """FLOPs of a call with arguments of the shapes of `args`. Raises ValueError as `of_jaxpr`."""
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), args)
    return of_jaxpr(jax.make_jaxpr(function)(*shapes).jaxpr)


def of_jaxpr(jaxpr: core.Jaxpr) -> int:
    """FLOPs of a jaxpr.

    Raises ValueError for a product in a loop of unknown length, and for a kernel that hides
    its products.
    """
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _of_dot(equation)
    if name == "conv_general_dilated":
        return _of_convolution(equation)
    if name.startswith("dot_product_attention_fwd"):
        return _of_attention(equation)
    if name in _KERNELS:
        raise ValueError(f"the products inside of {name} cannot be seen")
    inner = [of_jaxpr(jaxpr) for jaxpr in _jaxprs(params)]
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "cond":
        return max(inner)
    if any(inner) and name == "while":
        raise ValueError("a product stands in a while loop, whose length is not known")
    return sum(inner)


# Primitives whose products cannot be seen: ignoring them would make the count wrong in silence.
_KERNELS = frozenset(("ffi_call", "pallas_call", "pure_callback", "io_callback"))


def _jaxprs(params: dict[str, Any]) -> list[core.Jaxpr]:
    """The jaxprs of the functions that an equation calls, found in its parameters."""
    found = []
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = item.jaxpr if isinstance(item, core.ClosedJaxpr) else item
            if isinstance(item, core.Jaxpr):
                found.append(item)
    return found


def _of_dot(equation: core.JaxprEqn) -> int:
    """Equation 1: the output has batch x m x n elements, each a sum of k products."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _of_convolution(equation: core.JaxprEqn) -> int:
    """Equation 2: an element of the output is a sum over the kernel of its output channel."""
    out_channels = equation.params["dimension_numbers"].rhs_spec[0]
    kernel = equation.invars[1].aval.shape
    each = math.prod(size for axis, size in enumerate(kernel) if axis != out_channels)
    return 2 * math.prod(equation.outvars[0].aval.shape) * each


def _of_attention(equation: core.JaxprEqn) -> int:
    """Equation 3, for cuDNN's kernel: query (B, T, heads, D), key (B, S, heads, D) and value."""
    query, key, value = (variable.aval.shape for variable in equation.invars[:3])
    return 2 * math.prod(query[:-1]) * key[1] * (query[-1] + value[-1])
