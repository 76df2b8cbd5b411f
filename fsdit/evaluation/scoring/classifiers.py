"""Scores of use: few-shot classifiers that are trained on samples and tested on real images."""

import numpy as np
from jaxtyping import Float, Int, Shaped

from fsdit.evaluation.comparison import Comparison
from fsdit.evaluation.figures.classifier import classified_right
from fsdit.evaluation.results import Score
from fsdit.evaluation.scoring.scores import Scores, score


def classifier_scores(comparison: Comparison, ways: int) -> Scores:
    """Accuracy of few-shot classifiers, trained on an image set alone and with the supports.

    A task is to classify `ways` classes of one round of episodes. It is tested on all their
    real images except the supports, so the real images themselves have no score. Empty where
    there are fewer than two classes.
    """
    classes = len(np.unique(comparison.class_id))
    ways = min(ways, classes)
    if ways < 2:
        return {}
    rounds = np.arange(len(comparison.class_id)).reshape(-1, classes)
    starts = range(0, classes - ways + 1, ways)
    tasks = [turn[start : start + ways] for turn in rounds for start in starts]

    def score_of(train: Float[np.ndarray, "N n d"]) -> Score:
        """The mean over rounds of each group of classes is what varies independently."""
        found = np.array([_accuracy(comparison, task, train) for task in tasks])
        return score(found.reshape(len(rounds), -1).mean(0), share=True)

    supports = _floats(comparison.real.features[comparison.supports])
    train = {n: _floats(s.features) for n, s in comparison.sets.items() if n != "real"}
    # All supports, where other metrics take as many as there are samples.
    train["copied_support"] = supports
    alone = {name: score_of(x) for name, x in train.items()}
    with_supports = {"copied_support": alone["copied_support"]}
    for name in ("samples", "mean_of_supports", "other_class"):
        if name in train:
            with_supports[name] = score_of(np.concatenate([supports, train[name]], axis=1))
    return {"classifier": alone, "classifier_with_supports": with_supports}


def _floats(features: Shaped[np.ndarray, "N n *D"]) -> Float[np.ndarray, "N n d"]:
    return features.reshape(*features.shape[:2], -1).astype(np.float64)


def _accuracy(
    comparison: Comparison, task: Int[np.ndarray, "w"], train: Float[np.ndarray, "N n d"]
) -> float:
    """Accuracy on one task, whose classes are those of the episodes `task`."""
    each = train.shape[1]
    test = np.concatenate([comparison.rest[e] for e in task])
    tested = np.repeat(comparison.class_id[task], [len(comparison.rest[e]) for e in task])
    if not len(test):
        return np.nan
    return classified_right(
        train[task].reshape(-1, train.shape[-1]),
        np.repeat(comparison.class_id[task], each),
        _floats(comparison.real.features[test][None])[0],
        tested,
    ).mean()
