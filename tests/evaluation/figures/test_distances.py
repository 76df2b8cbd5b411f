import socket

import jax
import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from fsdit.config import Config, DataConfig, MeshConfig
from fsdit.evaluation.figures.distances import (
    allowed_distances,
    episode_distances,
    k_nearest,
    reduce_pairs,
    squared_distances,
)
from fsdit.parallel import sharding
from tests.programs import start_program

pytestmark = pytest.mark.medium


def distances(a, b):
    with jax.enable_x64(True):
        return np.asarray(squared_distances(jax.numpy.asarray(a), jax.numpy.asarray(b)))


def images(count, seed, levels=256):
    return np.random.default_rng(seed).integers(0, levels, (count, 4, 5, 1), np.uint8)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def mesh_of(data, fsdp):
    count = data * fsdp
    config = Config(data=DataConfig(batch_size=count), mesh=MeshConfig(data, fsdp))
    return sharding.make_mesh(config, jax.devices()[:count])


@pytest.mark.parametrize("shape", [(6,), (3, 2)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_squared_distances_are_euclidean_over_flattened_rows(shape, dtype):
    a, b = normal(7, *shape).astype(dtype), normal(4, *shape, seed=1).astype(dtype)
    expected = cdist(a.reshape(7, -1), b.reshape(4, -1), "sqeuclidean")
    np.testing.assert_allclose(distances(a, b), expected, atol=1e-12)


def test_squared_distances_of_uint8_images_are_exact_and_do_not_overflow():
    a, b = images(20, 0), images(30, 1)
    a[0], b[0] = 0, 255
    expected = np.square(a[:, None].astype(int) - b[None].astype(int)).sum((2, 3, 4))
    np.testing.assert_array_equal(distances(a, b), expected)
    assert expected[0, 0] == 255**2 * 20
    np.testing.assert_array_equal(np.diag(distances(a, a)), 0)


def test_a_difference_of_one_in_one_pixel_of_a_large_image_counts():
    a = np.full((1, 256, 256, 3), 255, np.uint8)
    b = a.copy()
    b[0, 100, 100, 1] = 254
    assert distances(a, b) == 1
    assert distances(a, 0 * a) == 255**2 * 256 * 256 * 3  # above 2^32


def test_other_whole_numbers_are_exact_and_compare_with_uint8():
    a, b = images(6, 0), images(5, 1)
    found = distances(a.astype(np.int32) - 200, b)
    expected = np.square(a[:, None].astype(int) - 200 - b[None].astype(int)).sum((2, 3, 4))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(distances(a.astype(np.float32) - 200, b), expected, rtol=1e-12)


def test_equal_rows_of_floats_are_at_distance_zero_and_near_ones_are_not():
    a = 1000 + normal(50, 300)
    near = a.copy()
    near[:, 0] += 0.1
    assert not np.diag(distances(a, a)).any()
    np.testing.assert_allclose(np.diag(distances(a, near)), 0.01, rtol=1e-2)


@pytest.mark.parametrize("tile", [1, 7, 16, 1000, None])
def test_k_nearest_equals_scikit_learn_for_any_tile(tile):
    queries, pool = normal(30, 12), normal(41, 12, seed=1)
    found = k_nearest(queries, pool, 5, tile=tile)
    model = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(pool.astype(float))
    expected, index = model.kneighbors(queries.astype(float))
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_allclose(np.sqrt(found.squared_distance), expected, rtol=1e-10)


@pytest.mark.parametrize("mesh", [(1, 1), (8, 1), (4, 2), (1, 3)])
def test_k_nearest_is_the_same_on_any_mesh(mesh):
    queries, pool = images(21, 0, levels=2), images(40, 1, levels=2)
    found, alone = (k_nearest(queries, pool, 4, mesh=m, tile=9) for m in (mesh_of(*mesh), None))
    np.testing.assert_array_equal(found.index, alone.index)
    np.testing.assert_array_equal(found.squared_distance, alone.squared_distance)


def test_processes_share_the_work_and_all_have_the_result():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    processes = [
        start_program("tests.evaluation.figures.shared_distances", address, i, devices=2)
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert all("agreed" in output for output in outputs)


@pytest.mark.parametrize("tile", [1, 5, 64])
def test_the_lower_index_comes_first_among_equally_near_rows(tile):
    queries, pool = images(30, 0, levels=2)[:, :2, :2], images(40, 1, levels=2)[:, :2, :2]
    squared = np.square(queries[:, None].astype(int) - pool[None]).sum((2, 3, 4))
    expected = np.argsort(squared, axis=1, kind="stable")[:, :6]
    found = k_nearest(queries, pool, 6, tile=tile)
    np.testing.assert_array_equal(found.index, expected)
    np.testing.assert_array_equal(found.squared_distance, np.take_along_axis(squared, expected, 1))


@pytest.mark.parametrize("tile", [2, None])
def test_left_out_rows_are_not_found_and_missing_neighbours_have_index_minus_one(tile):
    pool = np.array([[0.0], [1.0], [2.0]])
    left_out = np.array([[0, 2], [1, 1]])
    found = k_nearest(pool[:2], pool, 2, left_out=left_out, tile=tile)
    assert found.index.tolist() == [[1, -1], [0, 2]]
    assert found.squared_distance.tolist() == [[1, np.inf], [1, 1]]


def test_rows_that_share_an_id_are_left_out_together():
    pool = np.array([[0.0], [0.0], [3.0]])
    found = k_nearest(pool[:1], pool, 1, left_out=np.array([[0]]), ids=np.array([0, 0, 1]))
    assert found.index.tolist() == [[2]]


def widest(carry, queries, pool):
    """Return the largest number of pairs that the step has seen at once."""
    pairs = allowed_distances(queries, pool)
    return jax.numpy.maximum(carry, pairs.size)


@pytest.mark.parametrize(("count", "tile"), [(100, 16), (10, 16), (3000, None)])
def test_no_tile_is_larger_than_asked_for(count, tile):
    x = np.zeros((count, 9000), np.uint8)
    rows = {"x": x, "left_out": np.zeros((count, 0), np.int32)}
    seen = reduce_pairs(
        widest, np.zeros(()), rows, {"x": x, "id": np.arange(count)}, mesh_of(1, 1), tile
    )
    assert seen.shape == (count,)
    assert seen.max() == min(count, tile or 2**24 // 9000) ** 2


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("tile", [1, 3, None])
def test_episode_distances_stay_within_their_episode(dtype, tile):
    a, b = (30 * normal(5, 4, 3, 2, seed=1)).astype(dtype), (30 * normal(5, 2, 3, 2)).astype(dtype)
    found = episode_distances(a, b, tile=tile)
    for e in range(5):
        expected = cdist(a[e].reshape(4, -1), b[e].reshape(2, -1))
        np.testing.assert_allclose(found[e], expected, rtol=1e-10)


def test_the_inputs_are_not_changed():
    pool, queries = images(5, 0), images(3, 1)
    before = pool.copy(), queries.copy()
    k_nearest(queries, pool, 2, left_out=np.zeros((3, 1), int))
    np.testing.assert_array_equal(pool, before[0])
    np.testing.assert_array_equal(queries, before[1])
