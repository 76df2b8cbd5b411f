import jax.numpy as jnp
import numpy as np
import pytest

from fsdit.models.multihead import angles, rotate

GRID = (3, 4)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def everywhere(vector):
    """One vector (d,) at every patch, rotated: (N, d)."""
    patches = jnp.broadcast_to(vector, (1, 1, GRID[0] * GRID[1], vector.size))
    return rotate(patches, GRID)[0, 0]


def test_logits_depend_on_relative_places_only():
    query, key = everywhere(normal(16)), everywhere(normal(16, seed=1))
    logits = np.asarray(query @ key.T).reshape(*GRID, *GRID)
    np.testing.assert_allclose(logits[1:, :, 1:, :], logits[:-1, :, :-1, :], atol=1e-4)
    np.testing.assert_allclose(logits[:, 1:, :, 1:], logits[:, :-1, :, :-1], atol=1e-4)
    by_difference = {
        tuple(np.subtract(at, to)): round(float(logits[at + to]), 3)
        for at in np.ndindex(*GRID)
        for to in np.ndindex(*GRID)
    }
    assert len(by_difference) == len(set(by_difference.values())) == 5 * 7


def test_rows_turn_half_of_the_pairs_and_columns_the_other():
    turned = everywhere(jnp.ones(8)).reshape(*GRID, 2, 2, 2)  # rows, columns, (a, b), axis, pair
    by_row, by_column = turned[:, :, :, 0], turned[:, :, :, 1]
    np.testing.assert_array_equal(by_row, np.broadcast_to(by_row[:, :1], by_row.shape))
    np.testing.assert_array_equal(by_column, np.broadcast_to(by_column[:1], by_column.shape))
    np.testing.assert_array_equal(by_row[:3, 0], by_column[0, :3])
    assert np.unique(angles(GRID, 8)[:, 0]).size == 3 and np.unique(angles(GRID, 8)[:, 2]).size == 4


def test_lengths_stay_and_tokens_before_the_patches_are_not_turned():
    x = normal(2, 3, 2 + 12, 8)
    turned = rotate(x, GRID)
    np.testing.assert_array_equal(turned[:, :, :3], x[:, :, :3])  # two tokens, and place (0, 0)
    assert (np.abs(turned - x)[:, :, 3:].max(-1) > 1e-3).all()
    np.testing.assert_allclose(
        jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5
    )


def test_patches_that_are_named_are_rotated_by_their_own_places():
    x, patches = normal(2, 3, 1 + 4, 8), np.array([[2, 0, 11, 7], [5, 6, 1, 3]])
    turned = rotate(x, GRID, jnp.asarray(patches))
    np.testing.assert_array_equal(turned[:, :, 0], x[:, :, 0])
    for example, kept in enumerate(patches):
        at_home = np.zeros((1, 3, 12, 8), np.float32)
        at_home[0][:, kept] = x[example, :, 1:]
        expected = np.asarray(rotate(jnp.asarray(at_home), GRID))[0][:, kept]
        np.testing.assert_allclose(turned[example, :, 1:], expected, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_angles_are_those_of_float64_in_every_type(dtype):
    grid, x = (1, 60), jnp.ones((1, 1, 60, 8), dtype)
    places = np.arange(60)[:, None] * 100.0 ** -(np.arange(2) / 2)
    expected = np.cos(places) - np.sin(places)
    turned = rotate(x, grid)
    assert turned.dtype == dtype
    np.testing.assert_allclose(
        turned[0, 0, :, 2:4].astype(jnp.float32), expected, atol={"float32": 1e-6}.get(dtype, 0.01)
    )
