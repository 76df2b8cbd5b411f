import jax
import numpy as np
import pytest
import torch
from prdc import compute_prdc
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from fsdit.errors import DataError
from fsdit.evaluation.figures.distributions import (
    frechet_distance,
    gaussian_distance,
    kernel_distance,
)
from fsdit.evaluation.figures.neighbourhoods import density_coverage, precision_recall
from fsdit.parallel import sharding
from tests.evaluation.originals import fidelity
from tests.evaluation.synthetic import blurred, features, flattened, pictures

pytestmark = pytest.mark.medium


def normal(*shape, seed=0, mean=0.0):
    return (mean + np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def local_mesh_of_one():
    return sharding.local_mesh(jax.devices()[:1])


def two_sets(real=80, samples=60, dim=12):
    """Return two overlapping sets of features that differ in mean and spread."""
    return normal(real, dim), 0.8 * normal(samples, dim, seed=1, mean=0.3)


@pytest.mark.parametrize("dim", [1, 12, 60])
def test_frechet_distance_equals_torch_fidelity(dim):
    fid = fidelity("fid")
    real, samples = (x.astype(np.float64) for x in two_sets(dim=dim))
    statistics = [
        {"mu": x.mean(0), "sigma": np.atleast_2d(np.cov(x, rowvar=False))} for x in (real, samples)
    ]
    expected = fid.fid_statistics_to_metric(*statistics, verbose=False)
    # The root of a singular product of covariances (dim 60) costs it digits.
    tolerance = 1e-7 if dim == 60 else 1e-9
    assert frechet_distance(real, samples) == pytest.approx(*expected.values(), rel=tolerance)


def test_frechet_distance_equals_the_root_of_a_matrix_in_scipy():
    real, samples = two_sets()
    covariances = [np.cov(x.astype(float), rowvar=False) for x in (real, samples)]
    expected = np.square(real.mean(0, dtype=float) - samples.mean(0, dtype=float)).sum()
    expected += np.trace(sum(covariances) - 2 * sqrtm(covariances[0] @ covariances[1]).real)
    assert frechet_distance(real, samples) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_gaussians_on_axes_has_a_closed_form():
    real = np.array([[1.0, 0], [-1, 0], [0, 2], [0, -2]]) * np.sqrt(1.5)  # covariance diag(1, 4)
    samples = 3 * real[:, ::-1] + [0, 5]  # diag(36, 9), moved by 5
    assert frechet_distance(real, samples) == pytest.approx(25 + (1 - 6) ** 2 + (2 - 3) ** 2)


def test_frechet_distance_of_a_set_to_itself_is_zero_with_fewer_images_than_dimensions():
    real = normal(20, 200)
    assert abs(frechet_distance(real, real[::-1])) < 1e-10
    assert frechet_distance(real, normal(20, 200, seed=1)) > 100


def test_kernel_distance_equals_torch_fidelity():
    kid = fidelity("kid")
    real, samples = (x.astype(np.float64) for x in two_sets(60, 60))
    options = {"kid_subsets": 1, "kid_subset_size": 60, "rng_seed": 0, "verbose": False}
    # The one subset holds all images, so that only their order is random.
    expected = kid.kid_features_to_metric(torch.tensor(real), torch.tensor(samples), **options)
    found = kernel_distance(real, samples, subsets=2).value
    assert found == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-9)


def unbiased(kernel, real, samples):
    within = [kernel(x)[~np.eye(len(x), dtype=bool)].mean() for x in (real, samples)]
    return sum(within) - 2 * kernel(real, samples).mean()


def cubic(x, y=None):
    return polynomial_kernel(x, y, degree=3, gamma=1 / x.shape[1], coef0=1)


@pytest.mark.parametrize("tile", [5, 13, None])
def test_kernel_distance_equals_scikit_learn_kernels_for_any_tile(tile):
    real, samples = two_sets()
    expected = unbiased(cubic, real.astype(float), samples.astype(float))
    found = kernel_distance(real, samples, subsets=2, tile=tile)
    assert found.value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("tile", [5, 13, None])
def test_gaussian_distance_equals_scikit_learn_kernels_for_any_tile(tile):
    real, samples = two_sets()
    units = [normalize(x.astype(float)) for x in (real, samples)]
    expected = 1000 * unbiased(lambda x, y=None: rbf_kernel(x, y, gamma=1 / 200), *units)
    found = gaussian_distance(real, samples, subsets=2, tile=tile)
    assert found.value == pytest.approx(expected, rel=1e-9)


def test_gaussian_distance_is_the_biased_estimate_less_its_diagonal_terms():
    real, samples = two_sets()
    x, y = (normalize(x.astype(float)) for x in (real, samples))
    k = {
        name: rbf_kernel(a, b, gamma=1 / 200)
        for name, a, b in (("xx", x, x), ("yy", y, y), ("xy", x, y))
    }
    biased = 1000 * (k["xx"].mean() + k["yy"].mean() - 2 * k["xy"].mean())
    inside = [k[name][~np.eye(n, dtype=bool)].mean() for name, n in (("xx", 80), ("yy", 60))]
    added = 1000 * ((1 - inside[0]) / 80 + (1 - inside[1]) / 60)
    assert gaussian_distance(real, samples).value == pytest.approx(biased - added, rel=1e-6)


@pytest.mark.parametrize(
    "distance", [kernel_distance, pytest.param(gaussian_distance, marks=pytest.mark.large)]
)
def test_kernel_distances_are_unbiased_and_their_standard_errors_right(distance):
    """Over many pairs of one distribution the mean is zero and nine in ten lie within 2 errors."""
    alone = local_mesh_of_one()

    def estimates(times, rows, **options):
        for i in range(times):
            pair = normal(rows, 4, seed=2 * i), normal(rows, 4, seed=2 * i + 1, **options)
            found = distance(*pair, subsets=5, seed=i, mesh=alone)
            yield found.value, found.standard_error

    values, errors = np.transpose([*estimates(40, rows=30)])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(40)
    assert values.min() < 0 < values.max()
    assert (np.abs(values) < 2 * errors).mean() > 0.9
    values, errors = np.transpose([*estimates(30, rows=150, mean=0.5)])
    assert 0.7 * values.std() < errors.mean() < 2 * values.std()


@pytest.mark.parametrize("distance", [kernel_distance, gaussian_distance])
def test_the_seed_moves_the_standard_error_only(distance):
    first, same, other = (distance(*two_sets(), seed=seed) for seed in (0, 0, 1))
    assert first == same
    assert first.value == other.value
    assert first.standard_error != other.standard_error


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("save_cpu_ram", [False, True])
def test_precision_and_recall_equal_torch_fidelity(k, save_cpu_ram):
    prc = fidelity("prc")
    real, samples = two_sets()
    options = {"prc_neighborhood": k, "prc_batch_size": 17, "save_cpu_ram": save_cpu_ram}
    tensors = (torch.tensor(x, dtype=torch.float64) for x in (samples, real))
    expected = prc.prc_features_to_metric(*tensors, **options, verbose=False)
    found = precision_recall(real, samples, k)
    assert 0.1 < expected["recall"] < expected["precision"] < 1
    assert found.precision.mean() == pytest.approx(expected["precision"], abs=1e-6)
    assert found.recall.mean() == pytest.approx(expected["recall"], abs=1e-6)


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("tile", [pytest.param(5, marks=pytest.mark.large), 13, None])
def test_density_and_coverage_equal_their_authors_for_any_tile(k, tile):
    real, samples = (x.astype(np.float64) for x in two_sets())
    expected = compute_prdc(real, samples, k)
    both = (
        density_coverage(real, samples, k, tile=tile),
        precision_recall(real, samples, k, tile=tile),
    )
    found = {name: value.mean() for x in both for name, value in vars(x).items()}
    assert found == pytest.approx(expected, rel=1e-12)


def test_balls_reach_to_the_kth_neighbour_of_scikit_learn():
    real, samples = two_sets()
    model = NearestNeighbors(n_neighbors=4, algorithm="brute").fit(real)
    radii = model.kneighbors(real)[0][:, -1]
    inside = cdist(samples, real) <= radii
    np.testing.assert_array_equal(precision_recall(real, samples, 3).precision, inside.any(1))
    np.testing.assert_allclose(density_coverage(real, samples, 3).density, inside.sum(1) / 3)


def test_the_density_of_copies_counts_balls_that_end_at_them():
    # At these sizes, two products of the same rows may be rounded differently.
    real = normal(203, 300)
    copied = np.arange(203)[::-1][:37]
    order = np.argsort(cdist(real, real), axis=1)
    inside = np.zeros((203, 203), bool)
    np.put_along_axis(inside, order[:, :4], True, axis=1)  # itself and three neighbours
    for tile in (50, None):
        found = density_coverage(real, real[copied], 3, tile=tile)
        np.testing.assert_allclose(found.density, inside[:, copied].sum(0) / 3)
        np.testing.assert_array_equal(found.coverage, inside[:, copied].any(1))


def test_balls_around_repeated_images_have_radius_zero():
    real = np.zeros((8, 30)) + normal(1, 30)
    assert precision_recall(real, real[:4], 3).precision.all()
    assert not precision_recall(real, real[:4] + 1e-3, 3).precision.any()


def figures(real, samples):
    """Compute every figure on the features of two sets of pictures (classes, each, ...)."""
    real, samples = (flattened(features(x)) for x in (real, samples))
    rows = precision_recall(real, samples), density_coverage(real, samples)
    return {
        "frechet": frechet_distance(real, samples),
        "kernel": kernel_distance(real, samples).value,
        "gaussian": gaussian_distance(real, samples).value,
        **{name: value.mean() for x in rows for name, value in vars(x).items()},
    }


DISTANCES = ("frechet", "kernel", "gaussian")


@pytest.fixture(scope="module")
def baseline():
    return figures(pictures(8, 25, seed=0), pictures(8, 25, seed=1))


def test_blur_moves_every_figure_the_wrong_way(baseline):
    real, samples = pictures(8, 25, seed=0), pictures(8, 25, seed=1)
    steps = [baseline, *(figures(real, blurred(samples, sigma)) for sigma in (0.5, 1.0, 2.0))]
    for name in DISTANCES:
        values = [step[name] for step in steps]
        assert values == sorted(values), name
        assert values[1] > values[0]
    for name in ("precision", "recall", "density", "coverage"):
        values = [step[name] for step in steps]
        assert values == sorted(values, reverse=True), name
        assert values[0] > 0.8
        assert values[-1] < 0.2


def test_dropped_modes_lower_recall_and_coverage_and_not_precision(baseline):
    found = figures(pictures(8, 25, seed=0), pictures(2, 100, seed=1))
    for name in DISTANCES:
        assert found[name] > 10 * abs(baseline[name]), name
    assert found["precision"] == pytest.approx(baseline["precision"], abs=0.1)
    assert found["density"] == pytest.approx(baseline["density"], abs=0.3)
    assert found["recall"] < 0.4
    assert found["coverage"] < 0.4


def test_swapped_classes_and_copies_do_not_worsen_the_fidelity_to_the_set(baseline):
    """Metrics of retrieval and of copying exist because these figures miss both defects."""
    real, samples = pictures(8, 25, seed=0), pictures(8, 25, seed=1)
    assert figures(real, np.roll(samples, 1, axis=0)) == pytest.approx(baseline, rel=1e-6, abs=1e-6)
    copies = figures(real, real)
    for name in DISTANCES:
        assert copies[name] < baseline[name] + 1e-9, name
    assert copies["precision"] == copies["recall"] == copies["coverage"] == 1


@pytest.mark.parametrize(
    ("figure", "message"),
    [
        (frechet_distance, "2 images or more"),
        (kernel_distance, "20 images or more"),
        (gaussian_distance, "20 images or more"),
        (precision_recall, "4 images or more"),
    ],
)
def test_too_few_images_are_refused_in_one_line(figure, message):
    with pytest.raises(DataError, match=f"{message} .* got 1: evaluate more episodes") as error:
        figure(normal(50, 3), normal(1, 3))
    assert "\n" not in str(error.value)
