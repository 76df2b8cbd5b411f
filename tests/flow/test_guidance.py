import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsdit.config import SamplingConfig
from fsdit.flow.sampler import (
    autoguided_field,
    guided_field,
    mean_velocity,
    schedule_times,
    solve,
)
from tests.flow.solving import NOISE, SCHEDULES, SOLVERS, run

pytestmark = pytest.mark.medium


class Recorder:
    """A velocity that records the sizes of the batches it is called with."""

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
    """With velocity 1 for the condition and 0 for the null, a guided step counts three times."""
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


def test_outside_the_interval_the_batch_is_not_doubled():
    calls = []

    def velocity(x, t, condition):
        jax.debug.callback(lambda t: calls.append((x.shape[0], float(t))), t[0])
        return condition["c"] - x

    guided = field(velocity, guidance_scale=2.0, guidance_interval=(0.3, 0.6))
    solve(guided, NOISE, SamplingConfig(num_steps=10)).block_until_ready()
    jax.effects_barrier()
    found = sorted((round(t, 1), rows) for rows, t in calls)
    assert [t for t, _ in found] == [step / 10 for step in range(10)]
    assert [t for t, rows in found if rows == 6] == [0.3, 0.4, 0.5, 0.6]


def test_what_is_prepared_is_prepared_once_for_all_steps():
    prepared = []

    def prepare(*conditions):
        prepared.append([each["c"].shape for each in conditions])
        return {"c": 2 * jnp.concatenate([each["c"] for each in conditions])}

    twice, null = ({"c": 2 * c["c"]} for c in (CONDITION, NULL))
    config = SamplingConfig(guidance_scale=2.0, guidance_interval=(0.3, 0.6), num_steps=10)
    given = solve(guided_field(Recorder(), twice, null, config), NOISE, config)
    found = solve(guided_field(Recorder(), CONDITION, NULL, config, prepare), NOISE, config)
    np.testing.assert_array_equal(found, given)
    assert prepared == [[(3, 3), (3, 3)], [(3, 3)]]


def test_without_guidance_the_batch_is_not_doubled_and_no_null_is_needed():
    velocity = Recorder()
    guided_field(velocity, CONDITION, None, SamplingConfig(guidance_scale=1.0))(
        NOISE, jnp.float32(0.5)
    )
    assert velocity.batches == [(3, 3, 3)]


def model_field(x, t):
    return plain(x, t, CONDITION)


def guide_field(x, t):
    return 0.5 * x - t


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_guide_that_is_the_model_and_a_scale_of_1_are_plain_sampling(solver):
    unguided = run(model_field, NOISE, solver, 5)
    settings = SamplingConfig(guidance_scale=3.0)
    own = autoguided_field(model_field, model_field, settings)
    np.testing.assert_allclose(run(own, NOISE, solver, 5), unguided, rtol=1e-5, atol=1e-6)

    def never(x, t):
        raise AssertionError("the guide is evaluated")

    off = autoguided_field(model_field, never, SamplingConfig(guidance_scale=1.0))
    np.testing.assert_array_equal(run(off, NOISE, solver, 5), unguided)


@pytest.mark.parametrize("scale", [0.0, 0.5, 4.0])
@pytest.mark.parametrize(("t", "acts"), [(0.1, False), (0.25, True), (0.75, True), (0.9, False)])
def test_autoguidance_moves_from_the_guide_past_the_model_within_the_interval(scale, t, acts):
    config = SamplingConfig(guidance_scale=scale, guidance_interval=(0.25, 0.75))
    found = autoguided_field(model_field, guide_field, config)(NOISE, jnp.float32(t))
    noise = np.asarray(NOISE, np.float64)
    model = np.arange(9.0).reshape(3, 3) * (1 + t) - 0.3 * noise
    guide = 0.5 * noise - t
    expected = guide + (scale if acts else 1.0) * (model - guide)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_contrastive_network_is_guided_as_the_flow_that_it_was_trained_on():
    """u is a flow with mean velocity m, v what contrastive training with weight l makes of it."""
    weight, m = 0.2, jnp.array([0.5, -1.0, 2.0])

    def u(x, t, condition):
        return m - x + t[:, None] * condition["c"]

    def v(x, t, condition):
        return (u(x, t, condition) - weight * m) / (1 - weight)

    noise = jax.random.normal(jax.random.key(0), (2, 3))
    null = {"c": jnp.full((4, 3), -1.0)}
    mean = mean_velocity(v, null, noise)
    np.testing.assert_allclose(mean, m, rtol=1e-5)

    config = SamplingConfig(guidance_scale=3.0, contrastive=weight)
    corrected = guided_field(v, CONDITION, NULL, config, mean=mean)
    t = jnp.float32(0.5)
    expected = field(u, guidance_scale=3.0)(NOISE, t)
    np.testing.assert_allclose(corrected(NOISE, t), expected, rtol=1e-5)
    assert np.abs(field(v, guidance_scale=3.0)(NOISE, t) - expected).max() > 0.1
