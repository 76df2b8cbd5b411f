"""Copying: is a sample nearer to its supports than real images of the class are?

The training image nearest to a sample is `k_nearest(samples, training, 1)` of distances.py.
"""

import numpy as np
from jaxtyping import Bool, Float


def nearest_support(distances: Float[np.ndarray, "E R K"]) -> Float[np.ndarray, "E R"]:
    """Distance of each of R images of an episode to the nearest of its K supports.

    distances: `episode_distances` of the images to the supports.
    """
    return distances.min(-1)


def near_copy_threshold(real: Float[np.ndarray, "*R"], quantile: float = 0.05) -> float:
    """The distance up to which an image counts as a near-copy of its nearest support.

    real: distances of real images of the classes, without the supports, to their nearest
    support. The threshold is the smallest of these distances such that at least the share
    `quantile` of them do not exceed it. So at least that share of real images are near-copies
    themselves, and more where many are equally near, as rendered characters may be.
    """
    return float(np.quantile(real, quantile, method="inverted_cdf"))


def near_copies(distances: Float[np.ndarray, "*E"], threshold: float) -> Bool[np.ndarray, "*E"]:
    """Which images are near-copies: those at most `threshold` from their nearest support."""
    return distances <= threshold
