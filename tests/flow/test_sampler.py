import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from fsdit.config import SamplingConfig
from fsdit.flow.sampler import schedule_times
from tests.flow.closed_form import (
    MEAN,
    STD,
    gaussian_field,
    mixture_field,
    mixture_samples,
)
from tests.flow.solving import DETERMINISTIC, NOISE, SCHEDULES, SOLVERS, normal, run

pytestmark = pytest.mark.medium


def test_the_mixture_field_is_the_mean_velocity_at_a_point():
    """The residual (data - noise) - field is uncorrelated with any function of (x_t, t)."""
    data, noise = mixture_samples(200_000, 0), normal(200_000, 2, seed=1)
    for t in (0.0, 0.3, 0.8, 1.0):
        x = (1 - t) * noise + t * data
        residual = data - noise - mixture_field(x, t, np)
        for function in (np.ones_like(x), x, np.sin(3 * x), (x[:, :1] > 0) * x[:, ::-1]):
            product = residual * function
            error = product.std(0) / np.sqrt(len(product))
            assert np.all(np.abs(product.mean(0)) < 4 * error)


def exact_flow(noise):
    """Return where the mixture's flow carries the noise, integrated by SciPy in float64."""
    done = solve_ivp(
        lambda t, x: mixture_field(x.reshape(-1, 2), t, np).ravel(),
        (0, 1),
        np.asarray(noise, float).ravel(),
        method="DOP853",
        rtol=1e-10,
        atol=1e-10,
    )
    return done.y[:, -1].reshape(-1, 2)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("solver", "order", "steps"), [("euler", 1, 128), ("heun", 2, 64), ("ab2", 2, 128)]
)
def test_halving_the_steps_shrinks_the_error_by_the_order(solver, order, steps, schedule):
    noise = normal(64, 2)
    exact = exact_flow(noise)
    errors = [
        np.sqrt(np.mean((run(mixture_field, noise, solver, n, schedule=schedule) - exact) ** 2))
        for n in (steps, 2 * steps)
    ]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(
    ("solver", "steps", "bound"),
    [("euler", 500, 0.01), ("heun", 100, 0.001), ("ab2", 200, 0.001)],
)
def test_the_flow_carries_noise_to_the_data(solver, steps, bound):
    drawn = run(gaussian_field, NOISE, solver, steps)
    assert np.abs(drawn - (MEAN + STD * NOISE)).max() < bound


@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_a_constant_velocity_is_integrated_exactly_in_one_step(solver):
    drawn = run(lambda x, t: jnp.full_like(x, 2.0), NOISE, solver, 1)
    np.testing.assert_array_equal(drawn, NOISE + 2)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_ab2_integrates_a_velocity_linear_in_time_exactly_after_its_euler_step(shift):
    settings = {"schedule": "shifted", "shift": shift}
    drawn = run(lambda x, t: jnp.full_like(x, t), NOISE, "ab2", 7, **settings)
    first = schedule_times(SamplingConfig(num_steps=7, **settings))[1]
    np.testing.assert_allclose(drawn, NOISE + 1 / 2 - first**2 / 2, atol=1e-6)


def test_the_shifted_schedule_is_that_of_stable_diffusion_3():
    config = SamplingConfig(num_steps=10, schedule="shifted", shift=3.0)
    sigma = np.linspace(1, 0, 11)  # noise levels of Stable Diffusion 3: 1 is noise
    shifted = 3 * sigma / (1 + 2 * sigma)
    np.testing.assert_allclose(schedule_times(config), 1 - shifted, atol=1e-12)


@pytest.mark.parametrize("shift", [0.3, 1.0, 2.0, 12.0])
@pytest.mark.parametrize("num_steps", [1, 7, 50])
def test_times_increase_from_exactly_0_to_exactly_1(shift, num_steps):
    times = schedule_times(SamplingConfig(num_steps=num_steps, schedule="shifted", shift=shift))
    assert times.shape == (num_steps + 1,)
    assert (times[0], times[-1]) == (0, 1)
    assert np.all(np.diff(times) > 0)


def test_a_shift_of_1_is_the_uniform_schedule():
    times = schedule_times(SamplingConfig(schedule="shifted", shift=1.0))
    np.testing.assert_allclose(times, schedule_times(SamplingConfig()), atol=1e-15)


def times_asked(solver, **settings):
    asked = []

    def field(x, t):
        jax.debug.callback(lambda t: asked.append(float(t)), t, ordered=True)
        return jnp.ones_like(x)

    jax.block_until_ready(run(field, NOISE, solver, 4, **settings))
    jax.effects_barrier()
    return asked


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_evaluates_the_velocity_at_the_times_of_its_schedule(solver, schedule):
    times = schedule_times(SamplingConfig(num_steps=4, schedule=schedule))
    expected = np.repeat(times, 2)[1:-1] if solver == "heun" else times[:-1]
    np.testing.assert_allclose(times_asked(solver, schedule=schedule), expected, atol=1e-7)


def test_the_state_stays_float32():
    drawn = run(lambda x, t: x, NOISE.astype(jnp.float16), "euler", 2)
    assert drawn.dtype == np.float32
