import numpy as np
import pytest
from scipy.spatial.distance import cdist

from tests.flow.closed_form import (
    mixture_field,
    mixture_samples,
)
from tests.flow.solving import SCHEDULES, SOLVERS, normal, run

pytestmark = pytest.mark.medium


def energy_p_value(a, b, permutations=300):
    """Two-sample permutation test by the energy distance (Szekely and Rizzo); equal sizes."""
    pooled = np.concatenate([a, b])
    distance = cdist(pooled, pooled)
    sign = np.repeat([1.0, -1.0], len(a))
    random = np.random.default_rng(0)
    signs = np.stack([sign, *(random.permutation(sign) for _ in range(permutations))])
    energy = -np.einsum("pi,pi->p", signs @ distance, signs)
    return np.mean(energy >= energy[0])


def draw_mixture(solver, steps, **settings):
    return run(mixture_field, normal(2000, 2, seed=2), solver, steps, **settings)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_samples_are_distributed_as_the_data(solver, schedule):
    drawn = draw_mixture(solver, 100, schedule=schedule)
    assert energy_p_value(drawn, mixture_samples(2000, seed=3)) > 0.01


def test_the_two_sample_test_detects_wrong_samples():
    data = mixture_samples(2000, seed=3)
    weights = np.array([0.4, 0.4, 0.2])
    for wrong in (
        draw_mixture("euler", 4),
        draw_mixture("sde", 4),
        mixture_samples(2000, seed=4, weights=weights),
        mixture_samples(2000, seed=4) + np.array([0.15, 0]),
    ):
        assert energy_p_value(wrong, data) < 0.01
