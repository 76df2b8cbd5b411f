"""A block and its variants, compared with PyTorch in values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from fsdit.config import ModelConfig
from fsdit.models.attention import KERNELS, attend_by_jax
from fsdit.models.block import DiTBlock, Modulation, modulation_width, products
from tests.models import block_original
from tests.models.variants import ALL, each_variant

pytestmark = pytest.mark.medium

# Twelve patches are many queries for two heads of width 8 (`is_few`); a class token is few.
BATCH, GRID, TOKENS, HEADS, DIM = 2, (3, 4), 5, 2, 16


def make(settings, dtype="float32", **changes):
    """(block, its parameters moved away from their start so that no gate is zero)."""
    config = ModelConfig(
        **{"hidden_size": DIM, "num_heads": HEADS, "dtype": dtype} | settings | changes
    )
    block = DiTBlock(config, GRID, rngs=nnx.Rngs(0), dtype=jnp.dtype(dtype))
    rng = np.random.default_rng(0)

    def moved(p):
        return p + jnp.asarray(0.3 * rng.normal(size=p.shape), jnp.float32)

    graph, state = nnx.split(block)
    return graph, state, jax.tree.map(moved, state)


def inputs(settings):
    """x, vector and context of a block; the vector of a single modulation is its result."""
    rng = np.random.default_rng(1)
    patches = GRID[0] * GRID[1] + (settings.get("cross_attention") == "cls")
    width = DIM
    if settings.get("modulation") == "single":
        width = modulation_width(ModelConfig(**{"hidden_size": DIM} | settings))
    shapes = (BATCH, patches, DIM), (BATCH, width), (BATCH, TOKENS, DIM), (BATCH, patches, DIM)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def call(graph, parameters, x, vector, context):
    block = nnx.merge(graph, parameters)
    return block(x, modulated(block, vector), context, False)[0]


def modulated(block, vector):
    """The modulation of one block, as a stack of one."""
    graph, parameters = nnx.split(block.modulation)
    stack = nnx.merge(graph, jax.tree.map(lambda p: p[None], parameters))
    more = (products,) if isinstance(block.modulation, Modulation) else ()
    return stack.of_all(vector, *more)[0]


def as_tensors(tree):
    """Nested parameters as float64 tensors, with their leaves in JAX's order."""
    leaves, shape = jax.tree.flatten(tree)
    tensors = [torch.tensor(np.asarray(a, np.float64), requires_grad=True) for a in leaves]
    return shape.unflatten(tensors), tensors


CASES = [
    *each_variant(),
    pytest.param(ALL, id="all"),
    pytest.param(ALL | {"cross_attention": "cls"}, id="all, cls"),
    pytest.param({}, id="none", marks=pytest.mark.large),
    pytest.param({"cross_attention": "cls"}, id="none, cls", marks=pytest.mark.large),
    pytest.param(ALL | {"cross_attention": "none"}, id="all, no context", marks=pytest.mark.large),
]


@pytest.mark.parametrize("settings", CASES)
def test_values_and_gradients_are_those_of_pytorch(settings):
    settings = {"cross_attention": "patches"} | settings
    graph, _, parameters = make(settings)
    *arguments, probe = inputs(settings)
    pure = nnx.to_pure_dict(parameters)

    @jax.jit
    def evaluate(pure, x, vector, context):
        state = nnx.State(pure)
        y, pull = jax.vjp(functools.partial(call, graph), state, x, vector, context)
        return y, pull(probe)

    y, (d_parameters, *d_arguments) = evaluate(pure, *arguments)
    theirs, leaves = as_tensors(pure)
    tensors = [torch.tensor(np.asarray(a, np.float64), requires_grad=True) for a in arguments]
    expected = block_original.block(theirs, *tensors, settings, GRID, HEADS)
    np.testing.assert_allclose(y, expected.detach(), rtol=1e-4, atol=1e-4)
    (expected * torch.tensor(np.asarray(probe, np.float64))).sum().backward()
    found = jax.tree.leaves(nnx.to_pure_dict(d_parameters))
    if settings["cross_attention"] == "none":
        tensors, d_arguments = tensors[:2], d_arguments[:2]
    for gradient, tensor in zip((*found, *d_arguments), (*leaves, *tensors), strict=True):
        np.testing.assert_allclose(gradient, tensor.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("settings", [*each_variant(), pytest.param(ALL, id="all")])
def test_a_new_block_is_the_identity(settings):
    graph, new, moved = make(settings)
    x, vector, context, _ = inputs(settings)
    if settings.get("modulation") == "single":
        vector = jnp.zeros_like(vector)  # of a new modulation, which is zero as well
    compiled = jax.jit(functools.partial(call, graph))
    np.testing.assert_array_equal(compiled(new, x, vector, context), x)
    assert np.abs(compiled(moved, x, vector, context) - x).max() > 0.1


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, {"attention/qkv", "mlp/up", "mlp/down", "modulation"}),
        (ALL, {"attention/qkv", "mlp/gate", "mlp/up", "mlp/down"}),
    ],
    ids=["none", "all"],
)
def test_the_names_of_parameters_are_those_of_checkpoints(settings, names):
    names = names | {"attention/out", *(f"cross/{n}" for n in ("query", "key", "value", "out"))}
    names = {f"{name}/{part}" for name in names for part in ("kernel", "bias")}
    if settings:
        names |= {f"{a}/{p}_scale" for a in ("attention", "cross") for p in ("query", "key")}
        names |= {"modulation/offset"}
    _, parameters, _ = make(settings)
    paths, _ = zip(*jax.tree.leaves_with_path(nnx.to_pure_dict(parameters)), strict=True)
    assert {"/".join(key.key for key in path) for path in paths} == names


def test_bfloat16_is_near_float32():
    found = {}
    for dtype in ("float32", "bfloat16"):
        graph, _, parameters = make(ALL, dtype)
        x, vector, context, _ = inputs(ALL)
        x, context = x.astype(dtype), context.astype(dtype)
        found[dtype] = jax.jit(functools.partial(call, graph))(parameters, x, vector, context)
        assert found[dtype].dtype == dtype
    difference = np.abs(found["bfloat16"].astype(jnp.float32) - found["float32"])
    assert 0 < difference.max() < 0.1 * np.abs(found["float32"]).max()


@pytest.mark.large
@pytest.mark.parametrize("cross", ["patches", "cls"])
def test_another_kernel_computes_the_same(monkeypatch, cross):
    """JAX's own attention stands for cuDNN's, with the same axes and scale."""
    called = []

    def kernel(query, key, value):
        called.append(query.shape[2])
        return attend_by_jax(query, key, value, implementation="xla")

    monkeypatch.setitem(KERNELS, "cudnn", kernel)
    settings = ALL | {"cross_attention": cross}
    *arguments, _ = inputs(settings)
    found = [call(*make(settings, attention=name)[::2], *arguments) for name in ("plain", "cudnn")]
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)
    # The one class token is no work for another kernel, which also may not take one query.
    assert called == {"patches": [12, 12], "cls": [13]}[cross]
