import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from fsdit.config import FlowConfig
from fsdit.flow import path
from fsdit.randomness import example_keys, stream_key

SHAPES = [(5,), (5, 3), (5, 4, 4, 2)]


def pair(shape, seed=0):
    rng = np.random.default_rng(seed)
    return (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))


def times():
    return jnp.linspace(0.05, 0.95, 5)


def keys(count):
    return example_keys(stream_key(0, "time"), jnp.arange(count, dtype=jnp.uint32))


@pytest.mark.parametrize("shape", SHAPES)
def test_time_0_is_noise_and_time_1_is_data(shape):
    noise, data = pair(shape)
    np.testing.assert_array_equal(path.interpolate(noise, data, jnp.zeros(5)), noise)
    np.testing.assert_array_equal(path.interpolate(noise, data, jnp.ones(5)), data)


def test_each_example_has_its_own_time():
    noise, data = pair((5, 3))
    t = times()
    expected = np.stack([(1 - s) * e + s * x for s, e, x in zip(t, noise, data, strict=True)])
    np.testing.assert_allclose(path.interpolate(noise, data, t), expected, rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_velocity_is_the_derivative_of_the_path_in_time(shape):
    noise, data = pair(shape)
    h = 0.01
    ahead, behind = (path.interpolate(noise, data, times() + s) for s in (h, -h))
    np.testing.assert_allclose(
        path.velocity(noise, data), (ahead - behind) / (2 * h), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("shape", SHAPES)
@given(seed=st.integers(0, 2**16), t=st.lists(st.floats(0, 1, width=32), min_size=5, max_size=5))
def test_the_noise_is_recovered_from_a_point_and_its_velocity(shape, seed, t):
    noise, data = pair(shape, seed)
    t = jnp.array(t, jnp.float32)
    x_t, u = path.interpolate(noise, data, t), path.velocity(noise, data)
    np.testing.assert_allclose(path.noise_from_velocity(x_t, u, t), noise, atol=1e-5)


def significance(config, distribution):
    t = np.asarray(path.sample_time(config, keys(20_000)))
    assert t.dtype == np.float32
    assert ((t >= 0) & (t <= 1)).all()
    return scipy.stats.kstest(
        distribution(t), "norm" if config.time == "logit_normal" else "uniform"
    )


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 0.6)])
def test_logit_normal_times_have_a_normal_logit(mean, std):
    config = FlowConfig(time="logit_normal", logit_mean=mean, logit_std=std)
    test = significance(config, lambda t: (scipy.special.logit(t) - mean) / std)
    assert test.pvalue > 0.01


def test_uniform_times_are_uniform():
    assert significance(FlowConfig(time="uniform"), lambda t: t).pvalue > 0.01


def test_a_wrong_distribution_would_be_noticed():
    t = np.asarray(path.sample_time(FlowConfig(time="logit_normal"), keys(20_000)))
    assert scipy.stats.kstest(t, "uniform").pvalue < 1e-6


@pytest.mark.parametrize("time", ["logit_normal", "uniform"])
def test_the_time_of_an_example_does_not_depend_on_its_batch(time):
    config = FlowConfig(time=time)
    whole = path.sample_time(config, keys(8))
    np.testing.assert_array_equal(path.sample_time(config, keys(8)[5:]), whole[5:])


def test_noise_is_standard_normal_and_follows_its_key():
    whole = np.asarray(path.sample_noise(keys(200), (10, 10)))
    assert whole.shape == (200, 10, 10)
    assert scipy.stats.kstest(whole.ravel(), "norm").pvalue > 0.01
    np.testing.assert_array_equal(path.sample_noise(keys(200)[7:9], (10, 10)), whole[7:9])


def test_the_path_works_under_jit():
    noise, data = pair((5, 3))
    np.testing.assert_allclose(
        jax.jit(path.interpolate)(noise, data, times()),
        path.interpolate(noise, data, times()),
        rtol=1e-6,
    )
