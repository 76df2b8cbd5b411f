"""Variety: how much the drawings of one episode differ from one another."""

import numpy as np
from jaxtyping import Float


def mean_pairwise(distances: Float[np.ndarray, "E R R"]) -> Float[np.ndarray, "E"]:
    """Mean distance between two different drawings of an episode, R >= 2 a piece.

    distances: `episode_distances` of the drawings with themselves, or any other symmetric
    distance, such as LPIPS. To be read beside that of as many real images of the class:
    the mean over pairs does not depend on R.
    """
    rows = distances.shape[-1]
    off_diagonal = distances.sum((1, 2)) - np.trace(distances, axis1=1, axis2=2)
    return off_diagonal / (rows * (rows - 1))
