import jax.numpy as jnp
import numpy as np
import pytest

from fsdit.config import SamplingConfig
from fsdit.flow.sampler import guided_field, solve

MEAN, STD = 1.5, 0.4
NOISE = jnp.linspace(-2, 2, 9).reshape(3, 3)


def gaussian_field(x, t):
    """Exact velocity for data ~ N(MEAN, STD^2); its flow maps noise e to MEAN + STD e."""
    slope = (t * STD**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * STD**2)
    return MEAN + slope * (x - t * MEAN)


def error(solver, num_steps):
    drawn = solve(gaussian_field, NOISE, solver, num_steps)
    return np.abs(np.asarray(drawn) - (MEAN + STD * NOISE)).max()


@pytest.mark.parametrize(("solver", "order", "steps"), [("euler", 1, 64), ("heun", 2, 16)])
def test_halving_the_step_shrinks_the_error_by_the_order_of_the_solver(solver, order, steps):
    errors = [error(solver, n) for n in (steps, 2 * steps)]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(("solver", "steps", "bound"), [("euler", 500, 0.01), ("heun", 100, 0.001)])
def test_the_flow_carries_noise_to_the_data(solver, steps, bound):
    assert error(solver, steps) < bound


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_constant_velocity_is_integrated_exactly_in_one_step(solver):
    drawn = solve(lambda x, t: jnp.full_like(x, 2.0), NOISE, solver, 1)
    np.testing.assert_array_equal(drawn, NOISE + 2)


@pytest.mark.parametrize(
    ("solver", "expected"),
    [("euler", [0, 0.25, 0.5, 0.75]), ("heun", [0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1])],
)
def test_the_solver_asks_at_these_times(solver, expected):
    # A field of 16^(4t) sums to a number whose digits in base 16 count the visits to each time.
    drawn = solve(lambda x, t: jnp.full_like(x, 16.0 ** (4 * t)), jnp.zeros((1, 1)), solver, 4)
    weight = 1 / 4 if solver == "euler" else 1 / 8
    np.testing.assert_allclose(drawn[0, 0], weight * sum(16.0 ** (4 * t) for t in expected))


def test_the_state_stays_float32():
    drawn = solve(lambda x, t: x, NOISE.astype(jnp.float16), "euler", 2)
    assert drawn.dtype == np.float32


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


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_guidance_of_scale_1_is_plain_sampling_bitwise(solver):
    guided = solve(field(guidance_scale=1.0), NOISE, solver, 5)
    unguided = solve(lambda x, t: plain(x, t, CONDITION), NOISE, solver, 5)
    np.testing.assert_array_equal(guided, unguided)


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
