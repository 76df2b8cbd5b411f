import numpy as np
import pytest
from scipy.spatial.distance import cdist

from fsdit.evaluation.metrics import lookalikes, nearest_is_right, squared_distances


def images(count, seed, levels=256):
    return np.random.default_rng(seed).integers(0, levels, (count, 4, 5, 1), np.uint8)


@pytest.mark.parametrize("shape", [(6,), (3, 2)])
def test_squared_distances_are_euclidean_over_flattened_rows(shape):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, *shape)), rng.normal(size=(4, *shape))
    expected = cdist(a.reshape(7, -1), b.reshape(4, -1), "sqeuclidean")
    np.testing.assert_allclose(squared_distances(a, b), expected, atol=1e-12)


def test_squared_distances_of_uint8_images_are_exact_and_do_not_overflow():
    a, b = images(20, 0), images(30, 1)
    a[0], b[0] = 0, 255
    expected = np.square(a[:, None].astype(int) - b[None].astype(int)).sum((2, 3, 4))
    np.testing.assert_array_equal(squared_distances(a, b), expected)
    assert expected[0, 0] == 255**2 * 20
    np.testing.assert_array_equal(np.diag(squared_distances(a, a)), 0)


def brute_force(queries, query_classes, pool, pool_classes, left_out):
    """The definition of the metric, one comparison at a time."""
    results = []
    for query, wanted, supports in zip(queries, query_classes, left_out, strict=True):
        best, right = None, False
        for image, found in zip(pool, pool_classes, strict=True):
            if any((image == support).all() for support in supports):
                continue
            pairs = zip(query.ravel().tolist(), image.ravel().tolist(), strict=True)
            distance = sum((x - y) ** 2 for x, y in pairs)
            if best is None or distance < best:
                best, right = distance, found == wanted
            elif distance == best:
                right = right or found == wanted
        results.append(bool(right))
    return results


@pytest.mark.parametrize("levels", [256, 2])
def test_retrieval_equals_brute_force(levels):
    # Two grey levels make ties and pixel-equal twins common.
    rng = np.random.default_rng(2)
    pool, queries = images(40, 0, levels)[:, :2, :2], images(60, 1, levels)[:, :2, :2]
    pool_classes, query_classes = rng.integers(0, 4, 40), rng.integers(0, 4, 60)
    left_out = pool[rng.integers(0, 40, (60, 3))]
    expected = brute_force(queries, query_classes, pool, pool_classes, left_out)
    assert 0 < sum(expected) < 60
    right = query_classes[:, None] == pool_classes[None]
    assert nearest_is_right(queries, pool, right, left_out).tolist() == expected


def test_lookalikes_are_classes_that_share_an_image():
    pool, classes = flat(1, 2, 2, 3, 3, 4), np.array([0, 0, 1, 1, 2, 3])
    alike = lookalikes(pool, classes, 4)
    expected = np.eye(4, dtype=bool)
    expected[[0, 1, 1, 2], [1, 0, 2, 1]] = True
    np.testing.assert_array_equal(alike, expected)


def flat(*values):
    """Images of one pixel."""
    return np.array(values, np.uint8).reshape(-1, 1)


def retrieve(query, pool, pool_classes, left_out):
    """Whether `query`, of class 0, finds its class."""
    (right,) = nearest_is_right(
        flat(query), flat(*pool), np.array(pool_classes)[None] == 0, flat(*left_out)[None]
    )
    return bool(right)


def test_the_nearest_image_decides():
    assert retrieve(10, [12, 20], [0, 1], left_out=[99])
    assert not retrieve(10, [20, 12], [0, 1], left_out=[99])


def test_a_left_out_support_is_never_found():
    assert retrieve(10, [10, 20], [0, 1], left_out=[99])
    assert not retrieve(10, [10, 20], [0, 1], left_out=[10])


@pytest.mark.parametrize("twin_class", [0, 1])
def test_a_twin_of_a_left_out_support_is_never_found_whatever_its_class(twin_class):
    pool, classes = [10, 10, 12, 90], [0, twin_class, 0, 1]
    assert retrieve(10, pool, classes, left_out=[10])
    assert not retrieve(10, pool, [0, twin_class, 1, 0], left_out=[10])


def test_supports_are_left_out_of_their_own_query_only():
    pool, classes = flat(10, 20), np.array([0, 1])
    right = nearest_is_right(
        flat(10, 10), pool, classes[None].repeat(2, 0) == 0, flat(10, 20)[:, None]
    )
    assert right.tolist() == [False, True]


@pytest.mark.parametrize("classes", [[0, 1], [1, 0]])
def test_of_equally_near_images_one_of_the_right_class_is_enough(classes):
    assert retrieve(10, [8, 12], classes, left_out=[99])
    assert not retrieve(10, [8, 12], [1, 2], left_out=[99])


def test_the_inputs_are_not_changed():
    pool, queries = images(5, 0), images(3, 1)
    before = pool.copy(), queries.copy()
    nearest_is_right(queries, pool, np.ones((3, 5), bool), pool[None, :2].repeat(3, 0))
    np.testing.assert_array_equal(pool, before[0])
    np.testing.assert_array_equal(queries, before[1])
