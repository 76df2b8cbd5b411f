"""Figures of merit on drawings, in plain NumPy."""

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8


def squared_distances(
    a: Shaped[np.ndarray, "N *D"], b: Shaped[np.ndarray, "M *D"]
) -> Float[np.ndarray, "N M"]:
    """Squared Euclidean distances between flattened rows, in float64.

    Exact for uint8 images: equal images are at distance zero, and ties are exact.
    """
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (a, b))
    return np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None] - 2 * a @ b.T


def lookalikes(
    images: UInt8[np.ndarray, "M *D"], classes: Int[np.ndarray, "M"], num_classes: int
) -> Bool[np.ndarray, "C C"]:
    """Which classes share a pixel-identical image, such as Latin and Greek A, or are equal."""
    alike = np.eye(num_classes, dtype=bool)
    _, group = np.unique(images.reshape(len(images), -1), axis=0, return_inverse=True)
    holders = np.zeros((group.max() + 1, num_classes), dtype=bool)
    holders[group.ravel(), classes] = True
    for members in holders[holders.sum(1) > 1]:
        alike |= members[:, None] & members[None]
    return alike


def nearest_is_right(
    queries: UInt8[np.ndarray, "N *D"],
    pool: UInt8[np.ndarray, "M *D"],
    right: Bool[np.ndarray, "N M"],
    left_out: UInt8[np.ndarray, "N K *D"],
) -> Bool[np.ndarray, "N"]:
    """Top-1 retrieval: whether the nearest pool image is one that is right for the query.

    All images are uint8. left_out: images that a query must not find, its episode's
    supports; pool images equal to one of them are left out too. Where several pool
    images are equally near, a right one among them is enough.
    """
    distances = squared_distances(queries, pool)
    for row, supports in zip(distances, left_out, strict=True):
        row[(squared_distances(supports, pool) == 0).any(0)] = np.inf
    nearest = np.isfinite(distances) & (distances == distances.min(1, keepdims=True))
    return (nearest & right).any(1)
