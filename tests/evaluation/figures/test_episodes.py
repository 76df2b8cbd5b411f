"""Metrics of episodes: variety, copying, few-shot accuracy, and their intervals."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import pdist
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from threadpoolctl import threadpool_info, threadpool_limits

from fsdit.errors import DataError
from fsdit.evaluation.figures.classifier import classified_right
from fsdit.evaluation.figures.copying import near_copies, near_copy_threshold, nearest_support
from fsdit.evaluation.figures.distances import episode_distances, k_nearest
from fsdit.evaluation.figures.distributions import frechet_distance
from fsdit.evaluation.figures.uncertainty import bootstrap_interval, exact_interval
from fsdit.evaluation.figures.variety import mean_pairwise
from tests.evaluation.synthetic import blurred, features, flattened, pictures


def variety(images):
    return mean_pairwise(episode_distances(images, images))


def test_variety_is_the_mean_distance_of_different_samples():
    samples = np.random.default_rng(0).normal(size=(6, 5, 3, 2)).astype(np.float32)
    expected = [pdist(episode.reshape(5, -1).astype(float)).mean() for episode in samples]
    np.testing.assert_allclose(variety(samples), expected, rtol=1e-10)


def test_variety_does_not_depend_on_the_number_of_samples():
    images = pictures(4, 200, seed=0)
    few, many = (variety(images.reshape(-1, n, 16, 16, 1)).mean() for n in (2, 50))
    assert few == pytest.approx(many, rel=0.03)


def test_variety_falls_with_blur_and_is_zero_for_equal_samples():
    samples = pictures(5, 6, seed=0)
    spread = [variety(blurred(samples, sigma)).mean() for sigma in (0, 1, 3)]
    assert spread[0] > spread[1] > spread[2] > 0
    assert not variety(samples[:, :1].repeat(6, 1)).any()
    fewer_modes = variety(samples[:, [0, 0, 0, 1, 1, 1]])
    assert (fewer_modes < variety(samples)).all()


def to_supports(images, supports):
    return nearest_support(episode_distances(images, supports))


@pytest.mark.medium
def test_the_nearest_support_equals_scikit_learn():
    images, supports = features(pictures(4, 7, seed=1)), features(pictures(4, 3, seed=0))
    for found, queries, pool in zip(to_supports(images, supports), images, supports, strict=True):
        model = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(pool.astype(float))
        expected = model.kneighbors(queries.astype(float))[0][:, 0]
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_the_threshold_makes_a_known_share_of_real_images_near_copies():
    real = np.random.default_rng(0).permutation(1000) / 10
    assert near_copy_threshold(real, 0.05) == 4.9
    assert near_copies(real, near_copy_threshold(real, 0.05)).mean() == 0.05
    tied = np.repeat([0.0, 1.0], [200, 800])
    assert near_copy_threshold(tied, 0.05) == 0
    assert near_copies(tied, 0.0).mean() == 0.2


@pytest.mark.parametrize("encode", [lambda x: x, features], ids=["pixels", "features"])
def test_copies_are_near_copies_and_new_pictures_are_not(encode):
    supports, real = encode(pictures(10, 5, seed=0)), encode(pictures(10, 30, seed=1))
    threshold = near_copy_threshold(to_supports(real, supports))

    def share(images):
        return near_copies(to_supports(encode(images), supports), threshold).mean()

    copied = np.random.default_rng(0).integers(5, size=20)
    exact = pictures(10, 5, seed=0)[:, copied]
    half = exact.copy()
    half[:, 10:] = pictures(10, 10, seed=3)
    assert not to_supports(encode(exact), supports).any()
    assert share(exact) == 1
    assert share(half) == pytest.approx(0.53, abs=0.06)
    assert share(pictures(10, 30, seed=2)) == pytest.approx(0.05, abs=0.05)
    assert share(np.roll(exact, 1, axis=0)) == 0  # copies of another class's supports


@pytest.mark.parametrize("encode", [lambda x: x, features], ids=["pixels", "features"])
def test_the_nearest_training_image_of_a_copy_is_its_original(encode):
    training = flattened(pictures(6, 20, seed=0))
    chosen = np.random.default_rng(1).permutation(120)[:30]
    found = k_nearest(encode(training[chosen]), encode(training), 1)
    np.testing.assert_array_equal(found.index[:, 0], chosen)
    assert not found.squared_distance.any()
    new = k_nearest(encode(flattened(pictures(6, 5, seed=1))), encode(training), 1)
    assert (new.squared_distance > 0).all()


def test_the_classifier_is_logistic_regression_on_unit_features():
    train, test = (flattened(features(pictures(12, n, seed=n))) for n in (2, 30))
    classes, wanted = np.repeat(np.arange(12), 2), np.repeat(np.arange(12), 30)
    model = make_pipeline(Normalizer(), LogisticRegression(C=25 / 2, max_iter=1000))
    expected = model.fit(train, classes).predict(test) == wanted
    assert 0.5 < expected.mean() < 1
    np.testing.assert_array_equal(classified_right(train, classes, test, wanted), expected)
    lengths = np.random.default_rng(0).uniform(0.5, 20, (len(train), 1)).astype(np.float32)
    again = classified_right(train * lengths, classes, test, wanted)
    np.testing.assert_array_equal(again, expected)


def rows_of_classes(classes, each, width, noise, seed=0):
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    rows = centres.repeat(each, 0) + noise * random.normal(size=(classes * each, width))
    return rows.astype(np.float32), np.arange(classes).repeat(each)


@pytest.mark.parametrize(
    ("classes", "each", "width", "copies", "noise"),
    [
        (5, 1, 768, 1, 3.0),  # far fewer rows than features
        (5, 5, 3072, 1, 12.0),
        (20, 5, 576, 1, 3.0),
        (5, 2, 100, 10, 3.0),  # as many rows as features, of rank 10
        (5, 40, 200, 1, 3.0),  # as many rows as features
        (5, 60, 100, 1, 3.0),  # more rows than features
        (2, 1, 3, 1, 0.4),
    ],
)
def test_decisions_equal_scikit_learn_on_all_features(classes, each, width, copies, noise):
    train, wanted = rows_of_classes(classes, each, width, noise=noise)
    train, wanted = train.repeat(copies, 0), wanted.repeat(copies)
    test, test_classes = rows_of_classes(classes, 200, width, noise=noise, seed=1)
    model = make_pipeline(Normalizer(), LogisticRegression(C=25 / each / copies, max_iter=1000))
    with threadpool_limits(1, user_api="blas"):  # more threads may take half a minute
        expected = model.fit(train, wanted).predict(test) == test_classes
    assert 1 / classes < expected.mean() < 1
    np.testing.assert_array_equal(classified_right(train, wanted, test, test_classes), expected)


def use_classifier():
    train, classes = rows_of_classes(3, 2, 50, noise=1.0)
    classified_right(train, classes, train, classes)


def use_frechet_distance():
    frechet_distance(*(rows_of_classes(3, 4, 50, 1.0, seed)[0] for seed in (0, 1)))


@pytest.mark.parametrize("use", [use_classifier, use_frechet_distance])
def test_linear_algebra_has_one_blas_thread(use, monkeypatch):
    """More threads are a hundred times slower where another program has the cores."""
    seen, decompose = [], np.linalg.qr

    def qr(*args, **options):
        seen.append(blas_threads())
        return decompose(*args, **options)

    monkeypatch.setattr(np.linalg, "qr", qr)
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        use()
        assert blas_threads() == before
    assert 2 in before and seen and all(set(threads) == {1} for threads in seen)


def blas_threads():
    return [each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"]


def accuracies(samples):
    """Return the accuracies of training on supports, on samples, and on both; one-shot."""
    supports, samples = features(pictures(10, 1, seed=0)), features(samples)
    test = flattened(features(pictures(10, 30, seed=1)))

    def accuracy(*sets):
        train = np.concatenate(sets, axis=1)
        classes = np.repeat(np.arange(10), train.shape[1])
        return classified_right(
            flattened(train), classes, test, np.repeat(np.arange(10), 30)
        ).mean()

    return SimpleNamespace(
        supports=accuracy(supports), samples=accuracy(samples), both=accuracy(supports, samples)
    )


def test_faithful_varied_samples_help_a_classifier_and_others_do_not():
    good = accuracies(pictures(10, 20, seed=2))
    assert good.samples > good.supports + 0.05
    assert good.both > good.supports + 0.05
    copies = accuracies(pictures(10, 1, seed=0).repeat(20, 1))
    assert copies.both == pytest.approx(good.supports, abs=0.01)
    collapsed = accuracies(pictures(10, 20, seed=2)[:, :1].repeat(20, 1))
    assert collapsed.samples < good.samples
    swapped = accuracies(np.roll(pictures(10, 20, seed=2), 1, axis=0))
    assert swapped.samples < 0.1 < swapped.supports == good.supports
    assert swapped.both < good.supports
    blurry = [accuracies(blurred(pictures(10, 20, seed=2), s)).samples for s in (0, 2, 8)]
    assert blurry[0] > blurry[1] > blurry[2]


def test_one_class_alone_is_refused():
    with pytest.raises(DataError, match="two classes or more"):
        rows, classes = flattened(features(pictures(1, 3, seed=0))), np.zeros(3, int)
        classified_right(rows, classes, rows, classes)


def test_the_interval_equals_scipys_percentile_bootstrap():
    values = np.random.default_rng(0).gamma(2, size=60)
    found = bootstrap_interval(values, resamples=2000)
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=2000, rng=np.random.default_rng(1)
    )
    assert found == pytest.approx(tuple(expected.confidence_interval), rel=0.02)
    assert found[0] < values.mean() < found[1]


def test_the_interval_contains_the_true_mean_as_often_as_its_level_says():
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        low, high = bootstrap_interval(rng.normal(3, 1, 40), level=0.9, resamples=300, seed=seed)
        held += low < 3 < high
    assert 0.83 < held / 200 < 0.95


def test_the_interval_is_a_function_of_values_and_seed_and_narrows_with_episodes():
    values = np.random.default_rng(0).normal(size=400)
    first, same, other = (bootstrap_interval(values, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert (first != other).all()
    widths = [np.diff(bootstrap_interval(values[:n])) for n in (25, 100, 400)]
    assert widths[0] > 1.5 * widths[1] > 2.25 * widths[2]


def test_complete_episodes_are_resampled():
    """Ten equal samples of an episode are one observation, not ten."""
    episodes = np.random.default_rng(0).normal(size=(50, 1)).repeat(10, 1)

    def mean(resamples):
        return resamples.mean((1, 2))

    clustered = np.diff(bootstrap_interval(episodes, mean))
    alone = np.diff(bootstrap_interval(episodes[:, :1], mean))
    scattered = np.diff(bootstrap_interval(episodes.reshape(-1, 1), mean))
    assert clustered == pytest.approx(alone, rel=1e-12)
    assert clustered == pytest.approx(np.sqrt(10) * scattered, rel=0.2)


def test_any_statistic_of_episodes_has_an_interval():
    samples = np.random.default_rng(0).normal(size=(40, 3))
    low, high = bootstrap_interval(samples)
    assert low.shape == (3,)
    assert (low < samples.mean(0)).all() and (samples.mean(0) < high).all()
    by_number = bootstrap_interval(np.arange(40), lambda chosen: samples[chosen].mean(1))
    np.testing.assert_array_equal(by_number, (low, high))


@pytest.mark.parametrize("count", [1, 2, 129])
@pytest.mark.parametrize("level", [0.95, 0.5])
def test_the_exact_interval_equals_scipys(count, level):
    for hits in {0, 1, count // 2, count}:
        expected = stats.binomtest(hits, count).proportion_ci(level, "exact")
        assert exact_interval(hits / count, count, level) == pytest.approx(tuple(expected))
    assert exact_interval(0.0, count)[1] == pytest.approx(1 - 0.025 ** (1 / count))
