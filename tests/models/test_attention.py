import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from fsdit.models.attention import KERNELS, attend, attend_by_jax, attend_packed
from tests.conftest import PLATFORM

SHAPES = [(2, 3, 5, 7, 8), (1, 1, 1, 4, 2), (2, 2, 6, 6, 4)]  # B, heads, N, M, d


def draw(b, h, n, m, d):
    rng = np.random.default_rng(0)
    shapes = ((b, h, n, d), (b, h, m, d), (b, h, m, d), (b, h, n, d))
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_pytorch(shape):
    query, key, value, probe = (jnp.asarray(x) for x in draw(*shape))
    inputs = [torch.tensor(np.asarray(x), requires_grad=True) for x in (query, key, value)]
    expected = torch.nn.functional.scaled_dot_product_attention(*inputs, scale=1.0)
    (expected * torch.tensor(np.asarray(probe))).sum().backward()

    mixed, pull = jax.vjp(attend, query, key, value)
    np.testing.assert_allclose(mixed, expected.detach(), atol=1e-5)
    for gradient, tensor in zip(pull(probe), inputs, strict=True):
        np.testing.assert_allclose(gradient, tensor.grad, atol=2e-5)


def test_large_scores_do_not_overflow():
    query, key, value, _ = draw(*SHAPES[0])
    mixed = attend(jnp.asarray(300 * query), jnp.asarray(300 * key), jnp.asarray(value))
    nearest = np.einsum("bhnd,bhmd->bhnm", query, key).argmax(-1)[..., None]
    np.testing.assert_allclose(mixed, np.take_along_axis(value, nearest, axis=2), atol=1e-5)


def test_bfloat16_is_close_to_float32_and_keeps_no_float32_scores():
    query, key, value, probe = (jnp.asarray(x) for x in draw(2, 3, 40, 50, 8))
    low = [x.astype(jnp.bfloat16) for x in (query, key, value)]
    mixed, pull = jax.vjp(attend, *low)
    exact, pull_exact = jax.vjp(attend, query, key, value)
    assert mixed.dtype == jnp.bfloat16
    np.testing.assert_allclose(mixed.astype(jnp.float32), exact, atol=0.03)
    pairs = zip(pull(probe.astype(jnp.bfloat16)), pull_exact(probe), strict=True)
    for gradient, expected in pairs:
        np.testing.assert_allclose(gradient.astype(jnp.float32), expected, atol=0.1)
    kept = [x for x in jax.tree.leaves(pull) if x.dtype == jnp.float32]
    assert kept and max(x.size for x in kept) < 2 * 3 * 40 * 50


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_jax(shape):
    """cuDNN's kernel is reached through the same function, with the same axes and scale."""
    query, key, value, probe = (jnp.asarray(x) for x in draw(*shape))
    by_jax = functools.partial(attend_by_jax, implementation="xla")
    (mixed, pull), (expected, pull_expected) = (
        jax.vjp(kernel, query, key, value) for kernel in (attend, by_jax)
    )
    np.testing.assert_allclose(mixed, expected, atol=1e-5)
    for gradient, other in zip(pull(probe), pull_expected(probe), strict=True):
        np.testing.assert_allclose(gradient, other, atol=2e-5)


@pytest.mark.skipif(PLATFORM != "cuda", reason="cuDNN needs an NVIDIA GPU")
@pytest.mark.parametrize("shape", [(2, 3, 196, 196, 64), (2, 3, 196, 64, 64), (1, 2, 36, 80, 72)])
def test_cudnn_is_as_near_to_float32_as_the_plain_kernel(shape):
    query, key, value, probe = (jnp.asarray(x) for x in draw(*shape))
    arrays = [query * shape[-1] ** -0.5, key, value, probe]
    mixed, pull = jax.vjp(attend, *arrays[:3])
    exact = [mixed, *pull(probe)]
    errors = {}
    for name, kernel in ((name, KERNELS[name]) for name in ("plain", "cudnn")):
        low = [x.astype(jnp.bfloat16) for x in arrays]
        mixed, pull = jax.vjp(kernel, *low[:3])
        found = [x.astype(jnp.float32) for x in (mixed, *pull(low[3]))]
        pairs = zip(found, exact, strict=True)
        errors[name] = [float(jnp.linalg.norm(f - e) / jnp.linalg.norm(e)) for f, e in pairs]
    assert max(errors["cudnn"]) < 0.02
    assert max(errors["cudnn"]) < 2 * max(errors["plain"])


def test_the_kernels_of_the_setting_are_the_plain_one_jaxs_with_cudnn_and_the_packed_one():
    kernels = {"plain": attend, "cudnn": attend_by_jax, "packed": attend_packed}
    assert kernels == KERNELS
    arrays = [jax.ShapeDtypeStruct((2, 3, 8, 16), jnp.bfloat16)] * 3
    text = str(jax.make_jaxpr(functools.partial(attend_by_jax, implementation="xla"))(*arrays))
    assert "cudnn" not in text and "dot_general" in text
