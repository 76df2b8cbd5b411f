"""Usefulness of samples: does a few-shot classifier that is trained on them work?"""

import numpy as np
from jaxtyping import Bool, Float, Int

from fsdit.errors import DataError
from fsdit.evaluation.figures.blas import one_blas_thread

# Weight of the loss of one class against the regularisation |W|^2 / 2 of the classifier's
# weights W. With scikit-learn's default, a class of 25 rows has this weight.
_CLASS_WEIGHT = 25.0


def classified_right(
    train: Float[np.ndarray, "N D"],
    train_classes: Int[np.ndarray, "N"],
    test: Float[np.ndarray, "M D"],
    test_classes: Int[np.ndarray, "M"],
) -> Bool[np.ndarray, "M"]:
    """Which test features are classified right by a classifier fitted to the training features.

    Multinomial logistic regression on features of unit length, as in the few-shot baseline of
    Tian et al., arXiv 2003.11539. All rows of a class together have the same weight, whatever
    their number, so that copies of a row change nothing. The result is deterministic.

    Raises DataError where the training features are of fewer than two classes.
    """
    # Imported here because it is slow, and training imports this package but never classifies.
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import normalize

    if len(np.unique(train_classes)) < 2:
        raise DataError("a classifier needs two classes or more: choose more classes")
    _, row, counts = np.unique(train_classes, return_inverse=True, return_counts=True)
    model = LogisticRegression(C=_CLASS_WEIGHT, max_iter=1000)
    with one_blas_thread():
        train, test = _in_span(normalize(train), normalize(test))
        model.fit(train, train_classes, sample_weight=1 / counts[row])
        return model.predict(test) == test_classes


def _in_span(
    train: Float[np.ndarray, "N D"], test: Float[np.ndarray, "M D"]
) -> tuple[Float[np.ndarray, "N d"], Float[np.ndarray, "M d"]]:
    """Both sets in coordinates of an orthonormal basis of the training rows' span, d = min(N, D).

    A linear classifier with an L2 penalty decides the same in these coordinates: its weights
    lie in the span (the representer theorem), and the basis keeps products of vectors in it.
    """
    if len(train) >= train.shape[1]:
        return train, test
    basis = np.linalg.qr(train.T).Q
    return train @ basis, test @ basis
