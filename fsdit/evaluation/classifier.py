"""Fidelity to the class by use: do drawings teach a few-shot classifier?"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from fsdit.errors import DataError

# The loss of a class against the regularisation of the weights, |W|^2 / 2: at scikit-learn's
# default, that of so many rows.
_WEIGHT = 25.0


@dataclasses.dataclass(frozen=True)
class Accuracies:
    """Of a classifier trained on real supports, on drawings, on both; tested on real images."""

    supports: float
    drawings: float
    both: float


def classified_right(
    train: Float[np.ndarray, "N D"],
    train_classes: Int[np.ndarray, "N"],
    test: Float[np.ndarray, "M D"],
    test_classes: Int[np.ndarray, "M"],
) -> Bool[np.ndarray, "M"]:
    """Which test features a classifier fitted to the training features puts in their class.

    Multinomial logistic regression on features of unit length, as the few-shot baseline of
    Tian et al., arXiv 2003.11539. The rows of a class weigh the same together whatever their
    number, so that mere copies of them change nothing. Deterministic.
    """
    # Slow to import, and training, which imports this room, never classifies.
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import normalize

    if len(np.unique(train_classes)) < 2:
        raise DataError("a classifier needs two classes or more: choose more classes")
    _, row, counts = np.unique(train_classes, return_inverse=True, return_counts=True)
    model = LogisticRegression(C=_WEIGHT, max_iter=1000)
    model.fit(normalize(train), train_classes, sample_weight=1 / counts[row])
    return model.predict(normalize(test)) == test_classes


def few_shot_accuracies(
    supports: Float[np.ndarray, "C K D"],
    drawings: Float[np.ndarray, "C R D"],
    test: Float[np.ndarray, "C T D"],
) -> Accuracies:
    """One C-way episode: K supports and R drawings a class, T real images that are no supports.

    If `both` is above `supports`, the drawings help as augmentation. In `both` each image
    weighs the same, so that with many drawings it is mostly theirs.
    """

    def accuracy(*sets: Float[np.ndarray, "C _ D"]) -> float:
        train = np.concatenate(sets, axis=1)
        return float(classified_right(*_rows(train), *_rows(test)).mean())

    return Accuracies(accuracy(supports), accuracy(drawings), accuracy(supports, drawings))


def _rows(features: Float[np.ndarray, "C n D"]) -> tuple[np.ndarray, np.ndarray]:
    """Features (C n, D) and their classes (C n,)."""
    classes, count, dim = features.shape
    return features.reshape(-1, dim), np.repeat(np.arange(classes), count)
