"""The packed kernel of attention, interpreted on the CPU, against the plain one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsdit import checks
from fsdit.models.attention import attend, attend_packed, packed

# B, heads, N, M, d: numbers of tokens that fill no tile, and heads that share lanes or do not.
SHAPES = [
    (2, 2, 35, 35, 64),
    pytest.param((1, 2, 196, 200, 64), marks=pytest.mark.medium),
    (2, 4, 5, 21, 64),
    (1, 8, 12, 7, 32),
    (1, 1, 9, 16, 128),
]


def arrays_of(b, h, n, m, d):
    """Scaled queries, keys, values and a gradient of the result."""
    rng = np.random.default_rng(0)
    shapes = ((b, h, n, d), (b, h, m, d), (b, h, m, d), (b, h, n, d))
    query, *others = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    return [2 * d**-0.5 * query, *others]


@functools.partial(jax.jit, static_argnums=0)
def values_and_gradients(kernel, query, key, value, probe):
    mixed, pull = jax.vjp(kernel, query, key, value)
    return mixed, *pull(probe)


INTERPRETED = functools.partial(attend_packed, interpret=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_the_plain_kernel(shape):
    arrays = arrays_of(*shape)
    expected = values_and_gradients(attend, *arrays)
    for found, exact in zip(values_and_gradients(INTERPRETED, *arrays), expected, strict=True):
        np.testing.assert_allclose(found, exact, atol=2e-5)


def test_bfloat16_is_as_near_to_float32_as_the_plain_kernel():
    arrays = arrays_of(1, 2, 35, 100, 64)
    exact = values_and_gradients(attend, *arrays)
    low = [x.astype(jnp.bfloat16) for x in arrays]

    def errors(kernel):
        found = values_and_gradients(kernel, *low)
        assert {x.dtype for x in found} == {jnp.dtype(jnp.bfloat16)}
        pairs = zip(found, exact, strict=True)
        return [float(jnp.linalg.norm(f - e) / jnp.linalg.norm(e)) for f, e in pairs]

    packed_errors, plain_errors = errors(INTERPRETED), errors(attend)
    assert max(packed_errors) < 0.02
    np.testing.assert_array_less(packed_errors, 1.2 * np.array(plain_errors))


def test_large_logits_do_not_overflow():
    query, key, value, _ = arrays_of(1, 2, 5, 7, 64)
    mixed = INTERPRETED(3000 * query, key, value)
    nearest = jnp.einsum("bhnd,bhmd->bhnm", query, key).argmax(-1)[..., None]
    np.testing.assert_allclose(mixed, jnp.take_along_axis(value, nearest, axis=2), atol=1e-5)


def test_the_backward_pass_keeps_queries_keys_and_values_only():
    arrays = arrays_of(1, 2, 40, 50, 64)
    _, pull = jax.vjp(INTERPRETED, *arrays[:3])
    assert sum(x.size for x in jax.tree.leaves(pull)) == sum(x.size for x in arrays[:3])


def test_the_memory_of_the_recipes_fits_and_that_of_many_tokens_does_not():
    for queries, keys in ((196, 196), (196, 64), (196, 980), (1024, 1024)):
        assert packed.memory(queries, keys, 1024) < packed.MEMORY
    assert packed.memory(1024, 8 * 1024, 768) > packed.MEMORY


def test_the_check_of_a_configuration_knows_the_lanes():
    assert checks.PACKED_COLUMNS == packed.LANES
