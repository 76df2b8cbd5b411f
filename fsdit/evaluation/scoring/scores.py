"""Scores of image sets: a mean over classes, or another statistic, with its interval."""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Int, Shaped

from fsdit.evaluation.figures.uncertainty import bootstrap_interval, exact_interval
from fsdit.evaluation.metrics import METRICS
from fsdit.evaluation.results import Score

# Metric -> image set -> score.
Scores = dict[str, dict[str, Score]]
# Metric -> one value an episode, of the samples.
ByEpisode = dict[str, Float[np.ndarray, "N"]]


def score(
    values: Shaped[np.ndarray, "E *V"], *, share: bool, statistic: Callable | None = None
) -> Score:
    """The mean over E independent groups, or another statistic of them, with a 95 % interval.

    The groups are classes: samples of one class resemble one another, so they say less about
    new classes than their number suggests. A single group has no interval.

    share: whether the value is a share of images. Where all groups have the same share, as for 0
    of n, a bootstrap has no width: a share then has the exact interval of E trials, and another
    value has none. statistic: as `bootstrap_interval` takes it.
    """
    value = float(np.mean(values) if statistic is None else statistic(values[None])[0])
    if len(values) < 2:
        return Score(value)
    options = {} if statistic is None else {"statistic": statistic}
    low, high = bootstrap_interval(values, **options)
    if low == high:
        return Score(value, *exact_interval(value, len(values))) if share else Score(value)
    return Score(value, float(low), float(high))


def score_episodes(
    values: Mapping[str, Mapping[str, Float[np.ndarray, "N"]]], class_id: Int[np.ndarray, "N"]
) -> tuple[Scores, ByEpisode]:
    """From metric -> image set -> one value an episode: the scores, and the samples' values.

    class_id: of each episode; every class has as many episodes.
    """
    scores = {
        metric: {
            name: score(class_means(each, class_id), share=METRICS[metric].share)
            for name, each in sets.items()
        }
        for metric, sets in values.items()
    }
    return scores, {metric: sets["samples"] for metric, sets in values.items()}


def class_means(
    values: Shaped[np.ndarray, "N"], class_id: Int[np.ndarray, "N"]
) -> Float[np.ndarray, "E"]:
    """The mean of the values of each of the E classes, in the order of the classes' ids."""
    _, place, counts = np.unique(class_id, return_inverse=True, return_counts=True)
    return np.bincount(place, values) / counts
