import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from fsdit.config import SamplingConfig
from fsdit.flow.sampler import solve
from tests.flow.closed_form import (
    MEAN,
    STD,
    gaussian_field,
    mixture_field,
)
from tests.flow.solving import DETERMINISTIC, NOISE, keys, normal, run

pytestmark = pytest.mark.medium
LARGE = pytest.mark.large


@pytest.mark.parametrize(
    "level",
    [
        pytest.param(0.0, marks=LARGE),
        pytest.param(0.5, marks=LARGE),
        1.0,
        pytest.param(2.0, marks=LARGE),
    ],
)
def test_the_sde_reaches_the_moments_of_a_gaussian_at_any_noise_level(level):
    noise = normal(40_000, 1)
    drawn = run(gaussian_field, noise, "sde", 400, noise_level=level)
    assert drawn.mean() == pytest.approx(MEAN, abs=0.008)
    assert drawn.std() == pytest.approx(STD, rel=0.02)


@pytest.mark.large
def test_the_sde_is_of_weak_order_one():
    noise = normal(400_000, 1)
    errors = [run(gaussian_field, noise, "sde", n).var() - STD**2 for n in (20, 40)]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.25)


def spread_from(start, level):
    """Return mean and deviation of the SDE at t = 1 from one start, by the moments' equations.

    The drift is linear here, so mean and variance obey m' = drift(m), v' = 2 slope v + g^2.
    """

    def drift(x, t):
        g2 = 2 * level * t * (1 - t)
        score = -(x - t * MEAN) / ((1 - t) ** 2 + t**2 * STD**2)
        return gaussian_field(x, t) + g2 / 2 * score

    def moments(t, y):
        slope = drift(1.0, t) - drift(0.0, t)
        return [drift(y[0], t), 2 * slope * y[1] + 2 * level * t * (1 - t)]

    mean, variance = solve_ivp(moments, (0, 1), [start, 0.0], rtol=1e-9, atol=1e-9).y[:, -1]
    return mean, np.sqrt(variance)


@pytest.mark.parametrize(
    ("start", "level"),
    [
        (-2.0, 0.3),
        pytest.param(1.0, 1.0, marks=LARGE),
        pytest.param(-2.0, 1.0, marks=LARGE),
        pytest.param(1.0, 0.3, marks=LARGE),
    ],
)
def test_from_one_start_the_sde_has_the_moments_of_its_equation(start, level):
    mean, std = spread_from(start, level)
    drawn = run(gaussian_field, jnp.full((25_000, 1), start), "sde", 400, noise_level=level)
    assert std > 0.1
    assert drawn.mean() == pytest.approx(mean, abs=0.01)
    assert drawn.std() == pytest.approx(std, rel=0.02)


def test_an_sde_without_noise_is_euler():
    flat = run(gaussian_field, NOISE, "sde", 5, noise_level=0.0)
    np.testing.assert_allclose(flat, run(gaussian_field, NOISE, "euler", 5), rtol=1e-6)


def test_the_last_step_of_the_sde_adds_no_noise():
    """A velocity that points at one place brings every row there."""
    drawn = run(lambda x, t: (0.5 - x) / (1 - t), normal(1000, 1), "sde", 10)
    np.testing.assert_allclose(drawn, 0.5, atol=1e-6)


def test_a_row_of_the_sde_does_not_depend_on_its_place_in_the_batch():
    noise, config = jnp.asarray(normal(8, 2)), SamplingConfig(solver="sde", num_steps=6)
    draw = jax.jit(lambda noise, keys: solve(mixture_field, noise, config, keys))
    whole = draw(noise, keys(8))
    order = np.array([3, 0, 7, 1, 6, 2, 5, 4])
    np.testing.assert_array_equal(draw(noise[order], keys(8)[order]), whole[order])
    np.testing.assert_allclose(draw(noise[5:], keys(3, first=5)), whole[5:], atol=1e-6)
    np.testing.assert_array_equal(draw(noise, keys(8)), whole)


def test_the_noise_of_the_sde_follows_key_and_step():
    same = jnp.zeros((4, 2))
    rows = run(mixture_field, same, "sde", 6)
    assert len({row.tobytes() for row in rows}) == 4
    assert not np.any(rows == run(mixture_field, same, "sde", 6, seed=1))


def test_the_noise_of_one_step_is_independent_of_that_of_the_next():
    """With noise e, the velocity t e cancels the drift of the score: variances of steps add up."""
    drawn = run(lambda x, t: t * x / (1 + t**2), jnp.zeros((50_000, 1)), "sde", 4)
    t = np.array([0.25, 0.5])
    variance = np.sum(2 * t * (1 - t) / 4)
    last = 1 + 0.75 / (1 + 0.75**2) / 4  # factor of the last step, which is an Euler step
    assert drawn.std() == pytest.approx(last * np.sqrt(variance), rel=0.02)


def test_the_sde_without_keys_is_refused():
    with pytest.raises(ValueError, match="key for each example"):
        solve(gaussian_field, NOISE, SamplingConfig(solver="sde"))


@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_a_deterministic_solver_ignores_keys(solver):
    config = SamplingConfig(solver=solver, num_steps=3)
    with_keys = solve(gaussian_field, NOISE, config, keys(3))
    np.testing.assert_array_equal(with_keys, solve(gaussian_field, NOISE, config))
