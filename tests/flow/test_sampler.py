import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.spatial.distance import cdist

from fsdit.config import SamplingConfig
from fsdit.flow.sampler import guided_field, schedule_times, solve
from fsdit.randomness import example_keys, stream_key
from tests.flow.closed_form import (
    MEAN,
    STD,
    gaussian_field,
    mixture_field,
    mixture_samples,
)

pytestmark = pytest.mark.medium

NOISE = jnp.linspace(-2, 2, 9).reshape(3, 3)
SOLVERS = ["euler", "heun", "ab2", "sde"]
DETERMINISTIC = SOLVERS[:3]
SCHEDULES = ["uniform", "shifted"]


def keys(count, seed=0, first=0):
    return example_keys(stream_key(seed, "sde"), jnp.arange(first, first + count, dtype=jnp.uint32))


def run(field, noise, solver, num_steps, seed=0, **settings):
    """Compiled; in the sde, row i has key i."""
    config = SamplingConfig(solver=solver, num_steps=num_steps, **settings)
    compiled = jax.jit(lambda noise, keys: solve(field, noise, config, keys))
    return np.asarray(compiled(noise, keys(len(noise), seed)))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# Known answers


def test_the_mixture_field_is_the_mean_velocity_at_a_place():
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
    """Where the mixture's flow carries the noise, integrated by SciPy in float64."""
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


# Distributions


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
def test_drawings_are_distributed_as_the_data(solver, schedule):
    drawn = draw_mixture(solver, 100, schedule=schedule)
    assert energy_p_value(drawn, mixture_samples(2000, seed=3)) > 0.01


def test_the_two_sample_test_tells_wrong_drawings():
    data = mixture_samples(2000, seed=3)
    weights = np.array([0.4, 0.4, 0.2])
    for wrong in (
        draw_mixture("euler", 4),
        draw_mixture("sde", 4),
        mixture_samples(2000, seed=4, weights=weights),
        mixture_samples(2000, seed=4) + np.array([0.15, 0]),
    ):
        assert energy_p_value(wrong, data) < 0.01


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0, 2.0])
def test_the_sde_reaches_the_moments_of_a_gaussian_at_any_noise_level(level):
    noise = normal(100_000, 1)
    drawn = run(gaussian_field, noise, "sde", 400, noise_level=level)
    assert drawn.mean() == pytest.approx(MEAN, abs=0.008)
    assert drawn.std() == pytest.approx(STD, rel=0.02)


def test_the_sde_is_of_weak_order_one():
    noise = normal(400_000, 1)
    errors = [run(gaussian_field, noise, "sde", n).var() - STD**2 for n in (20, 40)]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.25)


def spread_from(start, level):
    """Mean and deviation at t = 1 of the SDE from one start, by the equations of its moments.

    The drift is linear here: its mean and variance obey m' = drift(m), v' = 2 slope v + g^2.
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


@pytest.mark.parametrize("level", [0.3, 1.0])
@pytest.mark.parametrize("start", [-2.0, 1.0])
def test_from_one_start_the_sde_spreads_as_its_equation_says(start, level):
    mean, std = spread_from(start, level)
    drawn = run(gaussian_field, jnp.full((50_000, 1), start), "sde", 400, noise_level=level)
    assert std > 0.1
    assert drawn.mean() == pytest.approx(mean, abs=0.01)
    assert drawn.std() == pytest.approx(std, rel=0.02)


def test_an_sde_without_noise_is_euler():
    flat = run(gaussian_field, NOISE, "sde", 5, noise_level=0.0)
    np.testing.assert_allclose(flat, run(gaussian_field, NOISE, "euler", 5), rtol=1e-6)


def test_the_last_step_of_the_sde_adds_no_noise():
    """A velocity that points at one place brings all of them there."""
    drawn = run(lambda x, t: (0.5 - x) / (1 - t), normal(1000, 1), "sde", 10)
    np.testing.assert_allclose(drawn, 0.5, atol=1e-6)


# Keys


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
    """v = t e, so nothing but the noise moves x: the variances of the steps add up."""
    drawn = run(lambda x, t: t * x / (1 + t**2), jnp.zeros((50_000, 1)), "sde", 4)
    t = np.array([0.25, 0.5])
    variance = np.sum(2 * t * (1 - t) / 4)
    last = 1 + 0.75 / (1 + 0.75**2) / 4  # Euler
    assert drawn.std() == pytest.approx(last * np.sqrt(variance), rel=0.02)


def test_the_sde_without_keys_is_refused():
    with pytest.raises(ValueError, match="key for each example"):
        solve(gaussian_field, NOISE, SamplingConfig(solver="sde"))


@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_a_deterministic_solver_does_not_look_at_keys(solver):
    config = SamplingConfig(solver=solver, num_steps=3)
    with_keys = solve(gaussian_field, NOISE, config, keys(3))
    np.testing.assert_array_equal(with_keys, solve(gaussian_field, NOISE, config))


# Times


def test_the_shifted_schedule_is_that_of_stable_diffusion_3():
    config = SamplingConfig(num_steps=10, schedule="shifted", shift=3.0)
    sigma = np.linspace(1, 0, 11)  # theirs: 1 is noise
    shifted = 3 * sigma / (1 + 2 * sigma)
    np.testing.assert_allclose(schedule_times(config), 1 - shifted, atol=1e-12)


@pytest.mark.parametrize("shift", [0.3, 1.0, 2.0, 12.0])
@pytest.mark.parametrize("num_steps", [1, 7, 50])
def test_times_go_from_0_to_1_exactly_and_always_on(shift, num_steps):
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
def test_the_solver_asks_at_these_times(solver, schedule):
    times = schedule_times(SamplingConfig(num_steps=4, schedule=schedule))
    expected = np.repeat(times, 2)[1:-1] if solver == "heun" else times[:-1]
    np.testing.assert_allclose(times_asked(solver, schedule=schedule), expected, atol=1e-7)


def test_the_state_stays_float32():
    drawn = run(lambda x, t: x, NOISE.astype(jnp.float16), "euler", 2)
    assert drawn.dtype == np.float32


# Guidance


class Recorder:
    """A velocity that keeps the batches it was called with."""

    def __init__(self):
        self.batches = []

    def __call__(self, x, t, condition):
        self.batches.append((x.shape[0], t.shape[0], condition["c"].shape[0]))
        return condition["c"] * (1 + t[:, None]) - 0.3 * x


CONDITION = {"c": jnp.arange(9.0).reshape(3, 3)}
NULL = {"c": jnp.full((3, 3), -1.0)}


def field(velocity=None, **settings):
    config = SamplingConfig(**settings)
    return guided_field(velocity or Recorder(), CONDITION, NULL, config)


def plain(x, t, condition):
    return Recorder()(x, jnp.full(x.shape[:1], t), condition)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_guidance_of_scale_1_is_plain_sampling_bitwise(solver, schedule):
    guided = run(field(guidance_scale=1.0), NOISE, solver, 5, schedule=schedule)
    unguided = run(lambda x, t: plain(x, t, CONDITION), NOISE, solver, 5, schedule=schedule)
    np.testing.assert_array_equal(guided, unguided)
    stronger = run(field(guidance_scale=1.5), NOISE, solver, 5, schedule=schedule)
    assert np.abs(stronger - unguided).max() > 0.1


@pytest.mark.parametrize("scale", [0.0, 1.5, 4.0])
def test_guidance_moves_from_the_null_past_the_condition(scale):
    t = jnp.float32(0.5)
    conditional, null = plain(NOISE, t, CONDITION), plain(NOISE, t, NULL)
    np.testing.assert_allclose(
        field(guidance_scale=scale)(NOISE, t), null + scale * (conditional - null), rtol=1e-5
    )


@pytest.mark.parametrize(("t", "acts"), [(0.1, False), (0.25, True), (0.75, True), (0.9, False)])
def test_outside_the_guidance_interval_the_velocity_is_conditional(t, acts):
    guided = field(guidance_scale=3.0, guidance_interval=(0.25, 0.75))(NOISE, jnp.float32(t))
    conditional = plain(NOISE, jnp.float32(t), CONDITION)
    assert np.allclose(guided, conditional, atol=1e-5) != acts


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_guidance_interval_is_in_times_on_any_schedule(schedule):
    """Velocity 1 with the condition, 0 without: each step adds its size, guided ones thrice."""
    low, high = 0.31, 0.72
    settings = {"guidance_scale": 3.0, "guidance_interval": (low, high)}
    one, zero = {"c": jnp.ones((3, 3))}, {"c": jnp.zeros((3, 3))}
    config = SamplingConfig(**settings, schedule=schedule, num_steps=20)
    guided = guided_field(lambda x, t, c: c["c"], one, zero, config)
    times = schedule_times(config)
    scale = np.where((low <= times[:-1]) & (times[:-1] <= high), 3.0, 1.0)
    expected = NOISE + np.sum(scale * np.diff(times))
    np.testing.assert_allclose(solve(guided, NOISE, config), expected, rtol=1e-5)


def test_guidance_makes_one_call_an_evaluation_with_a_doubled_batch():
    velocity = Recorder()
    field(velocity, guidance_scale=2.0)(NOISE, jnp.float32(0.5))
    assert velocity.batches == [(6, 6, 6)]


def test_without_guidance_the_batch_is_not_doubled_and_no_null_is_needed():
    velocity = Recorder()
    guided_field(velocity, CONDITION, None, SamplingConfig(guidance_scale=1.0))(
        NOISE, jnp.float32(0.5)
    )
    assert velocity.batches == [(3, 3, 3)]
