"""Fidelity to the class by use: do drawings teach a few-shot classifier?"""

import numpy as np
from jaxtyping import Bool, Float, Int

from fsdit.errors import DataError
from fsdit.evaluation.figures.blas import one_blas_thread

# The loss of a class against the regularisation of the weights, |W|^2 / 2: at scikit-learn's
# default, that of so many rows.
_WEIGHT = 25.0


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
    with one_blas_thread():
        train, test = _in_span(normalize(train), normalize(test))
        model.fit(train, train_classes, sample_weight=1 / counts[row])
        return model.predict(test) == test_classes


def _in_span(
    train: Float[np.ndarray, "N D"], test: Float[np.ndarray, "M D"]
) -> tuple[Float[np.ndarray, "N d"], Float[np.ndarray, "M d"]]:
    """Coordinates in an orthonormal basis of the training rows' span, d = min(N, D).

    What a linear classifier with an L2 penalty decides stays the same: its weights lie in that
    span (the representer theorem), and products within it do not change.
    """
    if len(train) >= train.shape[1]:
        return train, test
    basis = np.linalg.qr(train.T).Q
    return train @ basis, test @ basis
