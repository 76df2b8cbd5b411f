"""Data whose flow is known: N(MEAN, STD^2), and a mixture of Gaussians in the plane.

A component k of the data is N(m_k, s_k^2 I). Its x_t is N(t m_k, V_k I) with
V_k = (1 - t)^2 + t^2 s_k^2, and

    E[x | x_t, k] = m_k + t s_k^2 / V_k (x_t - t m_k)
    E[e | x_t, k] = (1 - t) / V_k (x_t - t m_k)

The flow's velocity E[x - e | x_t] is the difference of the two, averaged over k with the
probability of k given x_t.
"""

import jax.numpy as jnp
import numpy as np

MEAN, STD = 1.5, 0.4

MEANS = np.array([[-1.5, -0.5], [1.0, 1.5], [1.2, -1.2]])
STDS = np.array([0.5, 0.35, 0.6])
WEIGHTS = np.array([0.5, 0.3, 0.2])


def gaussian_field(x, t):
    """Velocity for data ~ N(MEAN, STD^2); its flow maps noise e to MEAN + STD e."""
    slope = (t * STD**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * STD**2)
    return MEAN + slope * (x - t * MEAN)


def mixture_field(x, t, xp=jnp):
    """Velocity (B, 2) of the mixture at x (B, 2); xp: the array library, NumPy for float64."""
    variance = (1 - t) ** 2 + t**2 * STDS**2
    offset = x[:, None] - t * MEANS
    log_odds = (
        np.log(WEIGHTS) - xp.log(variance) - xp.sum(offset**2, axis=-1) / (2 * variance)
    )  # (B, 3)
    odds = xp.exp(log_odds - log_odds.max(axis=1, keepdims=True))
    odds = odds / odds.sum(axis=1, keepdims=True)
    velocity = MEANS + ((t * STDS**2 - (1 - t)) / variance)[:, None] * offset
    return xp.sum(odds[..., None] * velocity, axis=1)


def mixture_samples(count, seed, weights=WEIGHTS):
    random = np.random.default_rng(seed)
    which = random.choice(3, count, p=weights)
    return MEANS[which] + STDS[which, None] * random.normal(size=(count, 2))
