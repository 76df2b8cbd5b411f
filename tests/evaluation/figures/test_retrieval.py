import numpy as np
import pytest
from sklearn.metrics import pairwise_distances, top_k_accuracy_score

from fsdit.evaluation.figures.retrieval import (
    class_distances,
    image_digest,
    in_nearest_classes,
    lookalikes,
    same_as_first,
)
from tests.evaluation.synthetic import blurred, features, flattened, pictures


def images(count, seed, levels=256):
    return np.random.default_rng(seed).integers(0, levels, (count, 4, 5, 1), np.uint8)


def nearest_is_right(queries, pool, right, pool_classes, left_out, k=1, tile=None):
    """Top-k retrieval; left_out (N, K, ...) holds images that may or may not be in the pool."""
    ids = same_as_first(map(image_digest, [*pool, *left_out.reshape(-1, *pool.shape[1:])]))
    squared = class_distances(
        queries,
        pool,
        pool_classes,
        right.shape[1],
        left_out=ids[len(pool) :].reshape(left_out.shape[:2]),
        ids=ids[: len(pool)],
        tile=tile,
    )
    return in_nearest_classes(squared, right, k)


def brute_force(queries, query_classes, pool, pool_classes, left_out, k):
    """The definition of the metric, one comparison at a time."""
    results = []
    for query, wanted, supports in zip(queries, query_classes, left_out, strict=True):
        nearest = {}
        for image, found in zip(pool, pool_classes.tolist(), strict=True):
            if any((image == support).all() for support in supports):
                continue
            pairs = zip(query.ravel().tolist(), image.ravel().tolist(), strict=True)
            distance = sum((x - y) ** 2 for x, y in pairs)
            nearest[found] = min(distance, nearest.get(found, distance))
        wrong_first = sorted(nearest.items(), key=lambda item: (item[1], item[0] != wanted))
        results.append(wanted in [found for found, _ in wrong_first[:k]])
    return results


@pytest.mark.parametrize("tile", [7, None])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("levels", [256, 2])
def test_retrieval_equals_brute_force(levels, k, tile):
    # Two grey levels make ties and pixel-equal twins common.
    rng = np.random.default_rng(2)
    pool, queries = images(40, 0, levels)[:, :2, :2], images(60, 1, levels)[:, :2, :2]
    pool_classes, query_classes = rng.integers(0, 6, 40), rng.integers(0, 6, 60)
    left_out = pool[rng.integers(0, 40, (60, 3))]
    expected = brute_force(queries, query_classes, pool, pool_classes, left_out, k)
    assert 0 < sum(expected) < 60
    right = np.eye(6, dtype=bool)[query_classes]
    found = nearest_is_right(queries, pool, right, pool_classes, left_out, k, tile)
    assert found.tolist() == expected


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("tile", [11, None])
def test_retrieval_in_features_equals_scikit_learn(k, tile):
    rng = np.random.default_rng(0)
    pool, queries = (rng.normal(size=(n, 20)).astype(np.float32) for n in (80, 50))
    pool_classes, classes = np.arange(80) % 8, rng.integers(0, 8, 50)
    squared = class_distances(queries, pool, pool_classes, 8, tile=tile)
    distances = pairwise_distances(queries.astype(float), pool.astype(float))
    nearest = np.stack([distances[:, pool_classes == c].min(1) for c in range(8)], axis=1)
    np.testing.assert_allclose(np.sqrt(squared), nearest, rtol=1e-10)
    expected = top_k_accuracy_score(classes, -nearest, k=k)
    right = in_nearest_classes(squared, np.eye(8, dtype=bool)[classes], k)
    assert 0 < expected < 1
    assert right.mean() == pytest.approx(expected)


def test_top_k_counts_classes_not_images():
    pool, classes = flat(11, 12, 13, 20), np.array([0, 0, 0, 1])
    squared = class_distances(flat(10), pool, classes, 3)
    assert squared.tolist() == [[1, 100, np.inf]]
    wanted = np.eye(3, dtype=bool)[[1]]
    assert not in_nearest_classes(squared, wanted, 1)
    assert in_nearest_classes(squared, wanted, 2)


def test_a_class_without_an_image_to_find_is_not_right():
    squared = class_distances(flat(10), flat(10), np.array([0]), 2, left_out=np.array([[0]]))
    assert np.isinf(squared).all()
    assert not in_nearest_classes(squared, np.ones((1, 2), bool), 2)


def test_identical_images_share_the_index_of_the_first():
    assert same_as_first(map(image_digest, flat(5, 7, 5, 5, 7, 1))).tolist() == [0, 1, 0, 0, 1, 5]


def test_lookalikes_are_classes_that_share_an_image():
    pool, classes = flat(1, 2, 2, 3, 3, 4), np.array([0, 0, 1, 1, 2, 3])
    alike = lookalikes(same_as_first(map(image_digest, pool)), classes, 4)
    expected = np.eye(4, dtype=bool)
    expected[[0, 1, 1, 2], [1, 0, 2, 1]] = True
    np.testing.assert_array_equal(alike, expected)


def flat(*values):
    """Images of one pixel."""
    return np.array(values, np.uint8).reshape(-1, 1)


def retrieve(query, pool, pool_classes, left_out):
    """Whether `query`, of class 0, finds its class."""
    (right,) = nearest_is_right(
        flat(query),
        flat(*pool),
        np.array([[True, False, False]]),
        np.array(pool_classes),
        flat(*left_out)[None],
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
    wanted = np.array([[True, False]]).repeat(2, 0)
    right = nearest_is_right(flat(10, 10), pool, wanted, classes, flat(10, 20)[:, None])
    assert right.tolist() == [False, True]


@pytest.mark.parametrize("classes", [[0, 1], [1, 0]])
def test_one_image_of_the_right_class_among_equally_near_ones_is_enough(classes):
    assert retrieve(10, [8, 12], classes, left_out=[99])
    assert not retrieve(10, [8, 12], [1, 2], left_out=[99])


def top(samples, supports, pool, k=1):
    """Share of samples (classes, each, ...) that find their class; the pool holds the supports."""
    classes, each = pool.shape[:2]
    left_out = each * np.arange(classes)[:, None] + np.arange(supports)
    squared = class_distances(
        flattened(samples),
        flattened(pool),
        np.repeat(np.arange(classes), each),
        classes,
        left_out=left_out.repeat(samples.shape[1], 0),
    )
    right = np.eye(classes, dtype=bool).repeat(samples.shape[1], 0)
    return in_nearest_classes(squared, right, k).mean()


def test_retrieval_falls_with_swapped_classes_and_rises_with_k():
    pool, samples = pictures(10, 8, seed=0), pictures(10, 4, seed=1)
    swapped = np.roll(samples, 1, axis=0)
    assert top(features(samples), 2, features(pool)) > 0.9
    assert top(features(swapped), 2, features(pool)) < 0.1
    shares = [top(features(swapped), 2, features(pool), k) for k in (1, 3, 5, 10)]
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_retrieval_falls_with_blur():
    pool, samples = pictures(10, 8, seed=0), pictures(10, 4, seed=1)
    shares = [top(features(blurred(samples, s)), 2, features(pool)) for s in (0, 2, 8)]
    assert shares[0] > shares[1] > shares[2]


def test_copying_supports_is_no_better_than_a_real_image():
    pool = pictures(10, 8, seed=0)
    copies = top(features(pool[:, :2]), 2, features(pool))
    assert copies == pytest.approx(
        top(features(pictures(10, 8, seed=1)), 2, features(pool)), abs=0.1
    )
