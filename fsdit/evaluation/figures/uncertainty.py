"""Uncertainty of a metric: the bootstrap over episodes."""

from collections.abc import Callable
from functools import partial

import numpy as np
from jaxtyping import Float, Shaped

# Resamples held in memory at a time.
_RESAMPLES = 100

_mean = partial(np.mean, axis=1)


def bootstrap_interval(
    values: Shaped[np.ndarray, "E *V"],
    statistic: Callable[[np.ndarray], np.ndarray] = _mean,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Float[np.ndarray, "2 *S"]:
    """Lower and upper end of the percentile bootstrap interval (Efron & Tibshirani 1993).

    Complete episodes are resampled with replacement, because samples of the same supports are
    not independent.

    values: one row an episode. statistic: R resamples (R, E, *V) -> (R, *S), by default the mean
    over episodes. level: probability that the interval should contain the true value.
    """
    rng = np.random.default_rng(seed)
    blocks = [min(_RESAMPLES, resamples - first) for first in range(0, resamples, _RESAMPLES)]
    drawn = (rng.integers(len(values), size=(block, len(values))) for block in blocks)
    found = np.concatenate([statistic(values[rows]) for rows in drawn])
    return np.quantile(found, [(1 - level) / 2, (1 + level) / 2], axis=0)
