"""Uncertainty of a metric: the bootstrap over classes, and an exact interval for shares."""

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

    Complete rows are resampled with replacement. A row is what is independent of the others: a
    class or an episode, and not one of its samples.

    values: E rows. statistic: R resamples (R, E, *V) -> (R, *S), by default the mean over rows.
    level: probability that the interval should contain the true value.
    """
    rng = np.random.default_rng(seed)
    blocks = [min(_RESAMPLES, resamples - first) for first in range(0, resamples, _RESAMPLES)]
    drawn = (rng.integers(len(values), size=(block, len(values))) for block in blocks)
    found = np.concatenate([statistic(values[rows]) for rows in drawn])
    return np.quantile(found, [(1 - level) / 2, (1 + level) / 2], axis=0)


def exact_interval(share: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """The interval of Clopper and Pearson (Biometrika 26, 1934) for a share of `count` trials.

    Its ends are quantiles of beta distributions. It contains the true share at least as often as
    `level` says, also where no trial or every trial is a success and a bootstrap has no width: for
    0 of n it reaches from 0 to 1 - ((1 - level) / 2)^(1 / n).
    """
    from scipy.special import betaincinv  # slow to import

    hits, tail = share * count, (1 - level) / 2
    misses = count - hits
    low = 0.0 if hits <= 0 else float(betaincinv(hits, misses + 1, tail))
    high = 1.0 if misses <= 0 else float(betaincinv(hits + 1, misses, 1 - tail))
    return low, high
