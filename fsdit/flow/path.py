"""The probability path. The time convention is stated here and nowhere else.

t = 0 is noise, t = 1 is data. With noise e ~ N(0, I) and data x,

    x_t = (1 - t) e + t x                (1)  linear path
    u   = d x_t / d t = x - e            (2)  velocity, the network's target
    d log p_t(x_t) / d x_t = -E[e | x_t] / (1 - t)
                                         (3)  score of the marginal, by Tweedie's formula
    e   = x_t - t u                      (4)  noise, from (1) and (2)
    t   = sigmoid(m + s n), n ~ N(0, 1)  (5)  logit-normal training time

Linear (rectified) path and its velocity: Lipman et al., arXiv 2210.02747; Liu et
al., arXiv 2209.03003. Logit-normal times: Esser et al., arXiv 2403.03206, section 3.1.
"""

import jax
from jaxtyping import Array, Float, Key

from fsdit.config import FlowConfig


def _expand(t: Float[Array, "B"], like: Array) -> Array:
    """t (B, 1, ..., 1) with as many axes as `like`."""
    return t.reshape(t.shape + (1,) * (like.ndim - t.ndim))


def interpolate(
    noise: Float[Array, "B *D"], data: Float[Array, "B *D"], t: Float[Array, "B"]
) -> Float[Array, "B *D"]:
    """x_t, equation 1."""
    s = _expand(t, data)
    return (1 - s) * noise + s * data


def velocity(noise: Float[Array, "B *D"], data: Float[Array, "B *D"]) -> Float[Array, "B *D"]:
    """u, equation 2."""
    return data - noise


def noise_from_velocity(
    x_t: Float[Array, "B *D"], u: Float[Array, "B *D"], t: Float[Array, "B"]
) -> Float[Array, "B *D"]:
    """e, equation 4. With the mean velocity at x_t for u, this is the mean noise E[e | x_t]."""
    return x_t - _expand(t, x_t) * u


def sample_time(config: FlowConfig, keys: Key[Array, "B"]) -> Float[Array, "B"]:
    """One training time in (0, 1) for each key: uniform, or by equation 5."""
    if config.time == "uniform":
        return jax.vmap(jax.random.uniform)(keys)
    normal = jax.vmap(jax.random.normal)(keys)
    return jax.nn.sigmoid(config.logit_mean + config.logit_std * normal)


def sample_noise(keys: Key[Array, "B"], shape: tuple[int, ...]) -> Float[Array, "B *D"]:
    """Standard normal noise of `shape` for each key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
