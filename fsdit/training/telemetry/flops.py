"""Floating-point operations that a computation asks for, counted in its jaxpr.

Matrix products and convolutions count, a multiply-add as two; a scan's body as often as it
runs. XLA's own count takes a loop's body once, and adds what rematerialisation repeats.

A train step is three forward passes: the backward pass multiplies with both the transposed
input and the transposed weight (PaLM, arXiv 2204.02311, appendix B). These are the model
FLOPs of the utilisation (MFU) there: what is computed twice to save memory is not useful.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jaxtyping import PyTree

from fsdit.config import Config
from fsdit.models.spec import ModelSpec
from fsdit.training.step import example_losses


def of_step(spec: ModelSpec, config: Config, params: PyTree, batch: PyTree) -> int:
    """Model FLOPs of a train step on a batch. Arguments may be shapes; nothing is computed."""

    def losses(params: PyTree, batch: PyTree) -> jax.Array:
        dropout = config.train.condition_dropout
        return example_losses(spec, config, params, batch, "train", 0, dropout)[0]

    return 3 * of(losses, params, batch)


def of(function: Callable, *args: PyTree) -> int:
    """FLOPs of a call with arguments like `args`. Raises ValueError as `of_jaxpr` does."""
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), args)
    return of_jaxpr(jax.make_jaxpr(function)(*shapes).jaxpr)


def of_jaxpr(jaxpr: core.Jaxpr) -> int:
    """Raises ValueError where a product stands in a loop of unknown length or in a kernel."""
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


# Calls of kernels that hide their products: a count without them would be wrong silently.
_KERNELS = frozenset(("ffi_call", "pallas_call", "pure_callback", "io_callback"))


def _jaxprs(params: dict[str, Any]) -> list[core.Jaxpr]:
    """Those of the functions that an equation calls."""
    found = []
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = item.jaxpr if isinstance(item, core.ClosedJaxpr) else item
            found += [item] if isinstance(item, core.Jaxpr) else []
    return found


def _of_dot(equation: core.JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _of_convolution(equation: core.JaxprEqn) -> int:
    out_channels = equation.params["dimension_numbers"].rhs_spec[0]
    kernel = equation.invars[1].aval.shape
    each = math.prod(size for axis, size in enumerate(kernel) if axis != out_channels)
    return 2 * math.prod(equation.outvars[0].aval.shape) * each


def _of_attention(equation: core.JaxprEqn) -> int:
    """cuDNN's, of query (B, T, heads, D), key (B, S, heads, D) and value."""
    query, key, value = (variable.aval.shape for variable in equation.invars[:3])
    return 2 * math.prod(query[:-1]) * key[1] * (query[-1] + value[-1])
