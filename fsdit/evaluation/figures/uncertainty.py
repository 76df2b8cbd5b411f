"""Uncertainty of a metric: the bootstrap over episodes."""

from collections.abc import Callable
from functools import partial

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Shaped

_mean = partial(np.mean, axis=0)


def bootstrap_interval(
    values: Shaped[np.ndarray, "E *V"],
    statistic: Callable[[np.ndarray], ArrayLike] = _mean,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Float[np.ndarray, "2 *S"]:
    """Lower and upper end of the percentile bootstrap interval (Efron & Tibshirani 1993).

    Complete episodes are resampled with replacement, because samples of the same supports are
    not independent. A statistic that no single episode has, such as an FD, takes the episodes'
    indices as values and looks up their samples itself.

    values: one row an episode. statistic: (E, *V) -> (*S), by default the mean over episodes.
    level: probability that the interval should contain the true value.
    """
    rng = np.random.default_rng(seed)
    count = len(values)
    found = [statistic(values[rng.integers(count, size=count)]) for _ in range(resamples)]
    return np.quantile(found, [(1 - level) / 2, (1 + level) / 2], axis=0)
