"""Copying: is a drawing nearer to its supports than real images of the class are?

The nearest training image is `k_nearest(drawings, training, 1)` of distances.py.
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

    real: of real images of the classes, that are no supports, to their nearest support.
    The threshold is the least of these distances that the share `quantile` does not
    exceed, so at least that share of real images are near-copies themselves: more where
    many are equally near, as rendered characters may be.
    """
    return float(np.quantile(real, quantile, method="inverted_cdf"))


def near_copies(distances: Float[np.ndarray, "*E"], threshold: float) -> Bool[np.ndarray, "*E"]:
    """Which images are near-copies. The figure is the mean, beside that of real images."""
    return distances <= threshold
