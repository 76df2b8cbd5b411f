"""Scores of image sets: a mean over episodes, or another statistic, with its interval."""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Shaped

from fsdit.evaluation.figures.uncertainty import bootstrap_interval
from fsdit.evaluation.results import Score

# Metric -> image set -> score.
Scores = dict[str, dict[str, Score]]
# Metric -> one value an episode, of the samples.
ByEpisode = dict[str, Float[np.ndarray, "N"]]


def score(values: Shaped[np.ndarray, "E *V"], statistic: Callable | None = None) -> Score:
    """The mean over episodes, or another statistic of the E rows, with its 95 % interval.

    statistic: as `bootstrap_interval` takes it. A single episode has no interval, because it
    says nothing about others.
    """
    value = float(np.mean(values) if statistic is None else statistic(values[None])[0])
    if len(values) < 2:
        return Score(value)
    options = {} if statistic is None else {"statistic": statistic}
    low, high = bootstrap_interval(values, **options)
    return Score(value, float(low), float(high))


def score_episodes(
    values: Mapping[str, Mapping[str, Float[np.ndarray, "N"]]],
) -> tuple[Scores, ByEpisode]:
    """From metric -> image set -> one value an episode: the scores, and the samples' values."""
    scores = {
        metric: {name: score(each) for name, each in sets.items()}
        for metric, sets in values.items()
    }
    return scores, {metric: sets["samples"] for metric, sets in values.items()}
